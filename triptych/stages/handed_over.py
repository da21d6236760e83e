"""A component whose weights are with an engine: a shell that sends calls of its modules there.

The shell is the component's own class with its configuration and meta parameters, so whatever blocks ask of it but a
result (`dtype`, `config`, a signature) it answers itself. A module without parameters runs here.

What comes back is read part by part, and only parts that were read before are asked for (`parts`).

Some uses can't be sent: caches of text generation, hooks on modules inside, gradients. Then the component is loaded
into the shell, in place, and runs here from then on; the log says so.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch

from triptych.errors import EngineAbsent, InvalidRequest
from triptych.stages import parts
from triptych.stages.engines import RUN_LOCALLY, Answer, Call, Engine
from triptych.stages.library import PreTrainedModel

log = logging.getLogger(__name__)


class _OnDevice:
    """What a shell's class is given: its parameters are on no device, but its results come to the role's."""

    _handed_device: torch.device

    @property
    def device(self) -> torch.device:
        return self._handed_device


def can_be_handed(kind: Any) -> bool:
    """Whether a component of this class may run elsewhere: any model of transformers, and none of diffusers."""
    return isinstance(kind, type) and issubclass(kind, PreTrainedModel)


def hand_over(
    name: str, shell: torch.nn.Module, device: torch.device, engine: Engine, load: Callable[[], torch.nn.Module]
) -> torch.nn.Module:
    """Makes `shell` send its calls to `engine`; returns it. `load` loads the component, where it must run here."""
    handed = HandedOver(name, shell, device, engine, load)
    handed.send()
    return shell


class HandedOver:
    """One component and where it runs. All belongs to the stage's thread."""

    def __init__(
        self,
        name: str,
        shell: torch.nn.Module,
        device: torch.device,
        engine: Engine,
        load: Callable[[], torch.nn.Module],
    ) -> None:
        self._name = name
        self._shell = shell
        self._device = device
        self._engine = engine
        self._load = load
        self._class = type(shell)
        self._read: dict[str, set[str]] = {}
        """Paths of the parts that were read so far of each module's outputs."""
        self._is_here = False

    def send(self) -> None:
        """From now on calls of modules that have parameters are sent."""
        self._shell.__class__ = type(self._class.__name__, (_OnDevice, self._class), {"__module__": __name__})
        self._shell._handed_device = self._device  # type: ignore[assignment]
        for path, module in self._shell.named_modules():
            if next(module.parameters(), None) is not None:
                own = functools.partial(self._forward, path, module)
                module.forward = functools.wraps(module.forward)(own)

    def run_here(self, why: str) -> None:
        """Load the component into the shell; later calls stay in this process."""
        log.warning("%s is loaded in this process: %s", self._name, why)
        loaded = self._load()
        for path, module in self._shell.named_modules():
            held = loaded.get_submodule(path)
            module._parameters.update(held._parameters)
            module._buffers.update(held._buffers)
            module.__dict__.pop("forward", None)
        self._shell.__class__ = self._class
        self._shell.__dict__.update({key: vars(loaded)[key] for key in ("generation_config",) if key in vars(loaded)})
        self._is_here = True

    def _forward(self, path: str, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Stands for a module's `forward`, within the hooks of its own call."""
        read = self._read.setdefault(path, set())
        call = Call(self._name, path, args, kwargs, tuple(sorted(read)), self._shell.config)
        if (answer := self._answer(module, call)) is None:
            return module.forward(*args, **kwargs)
        if answer.sent is not None:  # what is fetched later must be of these values, which the caller may change
            copied = parts.each_tensor([list(args), kwargs], torch.clone)
            call = dataclasses.replace(call, args=copied[0], kwargs=copied[1])
        whole = functools.cache(functools.partial(self._whole, module, call))
        return parts.noting(self._placed(answer.output), answer.sent, read.add, whole)

    def _whole(self, module: torch.nn.Module, call: Call) -> Any:
        """All that a call returns, where a part is read that wasn't sent."""
        answer = None if self._is_here else self._answer(module, dataclasses.replace(call, wanted=()))
        if answer is not None and answer.sent is None:
            return self._placed(answer.output)
        if not self._is_here:
            self.run_here(f"{self._engine.name} doesn't have all that is read of its outputs")
        return module.forward(*call.args, **call.kwargs)

    def _answer(self, module: torch.nn.Module, call: Call) -> Answer | None:
        """What the engine says; None where the component runs here from now on."""
        try:
            if why := _kept_by(module, call.kwargs):
                raise InvalidRequest(f"{call.component}.{call.module}".rstrip("."), why, "a call that can be sent")
            return self._engine.call(call)
        except InvalidRequest as error:
            self.run_here(f"{self._engine.name} can't take a call of it ({error.field}; accepted: {error.accepted})")
        except EngineAbsent as error:
            if self._engine.absent != RUN_LOCALLY:
                raise
            self.run_here(str(error))
        return None

    def _placed(self, output: Any) -> Any:
        return parts.each_tensor(output, lambda tensor: tensor.to(self._device))


def _kept_by(module: torch.nn.Module, kwargs: Mapping[str, Any]) -> str:
    """What keeps a call in this process; empty where nothing does."""
    if kwargs.get("use_cache") is True:
        return "a cache that goes from call to call"
    inside = (one for one in module.modules() if one is not module)
    if any(one._forward_hooks or one._forward_pre_hooks for one in inside):
        return "hooks on modules inside"
    return ""
