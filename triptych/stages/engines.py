"""The seam behind which a text encoder may run elsewhere: in a process of ours, or in another server.

A stage that is given an engine holds no weights of the components that the engine serves. It calls the engine instead
(`handed_over`), and the components are what transformers calls models: no class of them is known here by name.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

WAIT_FOR_IT, RUN_LOCALLY = "wait", "local"
"""What becomes of a job while the engine is absent: it waits for it, or the encoder loads the component itself."""


@dataclass(frozen=True)
class Call:
    """One call of a module of a component."""

    component: str
    module: str
    """Path inside the component; empty for the component itself."""
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    wanted: tuple[str, ...] = ()
    """Paths of the parts that the answer needs (`parts`), sorted; empty for all. An output may lack some of them."""
    config: Any = None
    """The component's configuration."""


class Answer(NamedTuple):
    """What a call returned."""

    output: Any
    """On the CPU or a device of the caller's kind. Tensors that weren't sent have any values."""
    sent: Collection[str] | None = None
    """Paths of the parts that were sent; None where all were."""


class Engine(Protocol):
    """Runs components elsewhere. All methods belong to the stage's thread and block it."""

    name: str
    """Names it in messages, for example `process:127.0.0.1:7171`."""
    absent: str
    """`WAIT_FOR_IT` or `RUN_LOCALLY`."""

    def open(self, config_digest: str, settings: Mapping[str, str]) -> dict[str, str]:
        """Compare models and settings; returns what the stage has to declare, because its bits differ from those of
        a component in this process. Raises `WrongState` for another model, `EngineAbsent` where nobody answers."""

    def serves(self, names: Sequence[str]) -> list[str]:
        """Which of these components it runs, as far as that is known before a call."""

    def begin(self, cancelled: Callable[[], bool]) -> None:
        """A job begins; waits of its calls end with `JobCancelled` when `cancelled()` turns true."""

    def call(self, call: Call) -> Answer:
        """What the module returns, or the parts of it that are wanted.

        Raises `InvalidRequest` for a call that it can't carry, `EngineAbsent`, `JobCancelled`.
        """
