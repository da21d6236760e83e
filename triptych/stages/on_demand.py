"""Models that a role may need and hasn't loaded: stand-ins that tell when a job uses their weights.

Blocks declare more models than they use. Some are read for their configuration only, others are called in some
workflows. So a model that a later role loads, too, is loaded here by the first job that uses a weight of it. Until then
its stand-in has the model's class, configuration, buffers, dtypes and device, and parameters without values. Any use of
a parameter but for such facts ends the role's run. The model is loaded as at a start, with all its means, and the role
runs anew from what it was given, which gives the same bits: a run depends on its inputs alone.

All calls belong to the stage's thread.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch

from triptych import telemetry
from triptych.errors import ModelInvalid
from triptych.stages import parts

Result = TypeVar("Result")
log = logging.getLogger(__name__)


class Touched(BaseException):
    """Leaves the blocks where a job uses a weight that isn't loaded.

    Not an `Exception`, because blocks catch those, and diffusers logs them.
    """

    def __init__(self, component: str) -> None:
        super().__init__(component)
        self.component = component


class Absent(torch.nn.Parameter):
    """A parameter without values. It answers what is known of it, and raises `Touched` for all else."""

    component: str
    place: torch.device

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Called by torch for every function and property of a tensor."""
        absent = next((one for one in args if isinstance(one, Absent)), None)
        if absent is not None and func is not None and func in _FACTS:
            if func == _DEVICE:
                return absent.place
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        raise Touched(absent.component if absent is not None else _found_in((args, kwargs)).component)


_DEVICE = torch.Tensor.device.__get__
_FACTS = frozenset(
    {
        _DEVICE,
        *(getattr(torch.Tensor, name).__get__ for name in ("dtype", "shape", "ndim", "layout", "is_meta")),
        *(getattr(torch.Tensor, name).__get__ for name in ("requires_grad", "nbytes", "itemsize")),
        *(getattr(torch.Tensor, name) for name in ("size", "dim", "numel", "is_floating_point", "is_complex")),
        *(getattr(torch.Tensor, name) for name in ("element_size", "__len__")),
    }
)
"""What may be asked of a parameter that has no values."""


def _found_in(value: Any) -> Absent:
    """The absent parameter at any depth of a call's arguments; torch calls only where there is one."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, Absent):
            return one
        if isinstance(one, dict):
            waiting.extend(one.values())
        elif isinstance(one, list | tuple):
            waiting.extend(one)
    raise AssertionError("torch said that one of the arguments is absent")


def is_absent(model: torch.nn.Module) -> bool:
    """Whether the model is a stand-in that waits for its weights."""
    return isinstance(next(model.parameters(), None), Absent)


def stand_in(name: str, model: torch.nn.Module, place: torch.device) -> torch.nn.Module:
    """The model with parameters that wait for its weights; they say that they are at `place`. Changes `model`."""
    made: dict[int, Absent] = {}
    for module in model.modules():
        for leaf, parameter in module._parameters.items():
            if parameter is None:
                continue
            if id(parameter) not in made:
                absent = Absent(parameter, requires_grad=False)
                absent.component, absent.place = name, place
                made[id(parameter)] = absent
            module._parameters[leaf] = made[id(parameter)]
    return model


def _copied(leaf: Any) -> Any:
    """What a run may change, copied: tensors, and generators of random numbers."""
    if isinstance(leaf, torch.Generator):
        return leaf.clone_state()
    return leaf.clone() if type(leaf) is torch.Tensor else leaf


class OnDemand:
    """The models of a role that wait."""

    def __init__(self, whole: Any, components: Any, waiting: list[str], loaded: Callable[[], None]) -> None:
        """`whole` is the `Whole` and `components` the `Components` of the role; `loaded` is called after each load."""
        self.waiting = list(waiting)
        self._whole = whole
        self._components = components
        self._loaded = loaded
        self._digest = whole.config_digest() if waiting else ""

    def run(self, inputs: Mapping[str, object], work: Callable[[Mapping[str, object]], Result]) -> Result:
        """What `work` returns for the inputs: it runs again after each model that it turned out to use."""
        while True:
            try:
                return work(parts.each_leaf(dict(inputs), _copied) if self.waiting else inputs)
            except Touched as touched:
                name = touched.component
                if name not in self.waiting:
                    raise RuntimeError(f"a job uses {name!r} as it was before it was loaded") from touched
            self.load(name)  # outside of the handler, which would keep the run's tensors

    def load(self, name: str) -> None:
        """Loads a model that waits, from files that are as they were at the start.

        Raises as `Stage.load` does, and `ModelInvalid` for files that were changed; then it still waits.
        """
        log.info("loading %s, because a job uses it; until now none did", name)
        started_s = time.monotonic()
        before = self._components.get(name)
        try:
            self._components.load(name)
            if self._whole.config_digest() != self._digest:
                raise ModelInvalid(f"{self._whole.model!r} was changed since this worker started: start it again")
        except BaseException:
            self._components.put_back(name, before)
            raise
        self.waiting.remove(name)
        self._loaded()
        seconds = time.monotonic() - started_s
        log.info("loaded %s in %.1f s", name, seconds)
        telemetry.event("component.loaded", component=name, seconds=seconds)

    def load_all(self) -> None:
        """Loads all that wait."""
        for name in tuple(self.waiting):
            self.load(name)
