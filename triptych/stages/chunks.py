"""Steps inside loops that go over chunks, told by the job's own scheduler.

Most loops run their blocks once a denoising step. Some run them once a chunk or segment, and one of the blocks has the
steps in a plain `for`, where no block can be appended. There the job's scheduler is watched: it takes each step.
"""

from __future__ import annotations

import copyreg
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from triptych.stages.library import LoopSequentialPipelineBlocks, SchedulerMixin

_OWN_ARGUMENTS = 3
"""Of a block in a loop: itself, the pipeline and the loop's state. What follows is told by the loop."""
_STEPS = "num_inference_steps"
"""What inputs are called that say how many steps a chunk has, or each part of it."""


def goes_over_chunks(loop: LoopSequentialPipelineBlocks) -> bool:
    """Whether the loop tells its blocks an index and no time: then it doesn't go over steps."""
    told = [list(inspect.signature(type(block).__call__).parameters)[_OWN_ARGUMENTS:] for block in _blocks(loop)]
    return bool(told) and all(len(names) == 1 for names in told)


def count_of(loop: LoopSequentialPipelineBlocks, block_state: Any) -> int:
    """How many chunks the loop goes over, by the first number or list among what it demands; 0 if it doesn't say."""
    for name in loop.loop_required_inputs:
        value = getattr(block_state, name, None)
        if isinstance(value, int):
            return value
        if isinstance(value, (list, tuple)):
            return len(value)
    return 0


@dataclass
class Chunk:
    """The steps of one chunk, as far as they are known."""

    number: int
    """From 0."""
    count: int
    """Chunks in all; 0 where it isn't known."""
    steps_before: int
    """Of earlier chunks."""
    asked: tuple[int, ...] = ()
    """Steps that the request has for each part of a chunk: most have one part."""
    step: int = 0
    planned: int = 0
    """Steps that the scheduler has planned for the parts that have begun."""
    parts: int = 0
    timesteps: torch.Tensor | None = None

    @classmethod
    def begin(cls, number: int, count: int, steps_before: int, block_state: Any) -> Chunk:
        """A chunk of which nothing has run."""
        named = (value for name, value in vars(block_state).items() if _STEPS in name)
        asked = [tuple(value) if isinstance(value, (list, tuple)) else (value,) for value in named]
        numbers = [one for one in asked if one and all(isinstance(part, int) for part in one)]
        return cls(number, count, steps_before, max(numbers, key=len, default=()))

    def take(self, scheduler: Any) -> None:
        """Counts one step."""
        if scheduler.timesteps is not self.timesteps:
            self.timesteps = scheduler.timesteps
            self.planned += len(scheduler.timesteps)
            self.parts += 1
        self.step += 1

    def step_count(self) -> int:
        """Steps of all chunks, by what the scheduler planned so far and the request has for the rest.

        Schedulers may plan more than they are asked for. Then the rest of the chunk is taken in the same proportion.
        """
        rest = sum(self.asked[self.parts :])
        begun = sum(self.asked[: self.parts])
        here = self.planned + (rest * self.planned // begun if rest and begun else 0)
        each = sum(self.asked) if self.number == 0 and self.asked else here
        total = self.steps_before + here + each * max(self.count - self.number - 1, 0)
        return max(total, self.steps_before + self.step)


def watched(scheduler: Any, after_step: Callable[[Any, torch.Tensor], None]) -> Any:
    """The same scheduler, which calls `after_step(scheduler, latents)` after each step. Copies of it don't."""
    if _CALL not in scheduler.__dict__:
        kind: Any = type(scheduler)
        scheduler.__class__ = _watched_class(kind)
    scheduler.__dict__[_CALL] = after_step
    return scheduler


def scheduler_of(components: dict[str, Any]) -> Any:
    """The first of a job's components that is a scheduler: further ones run beside it, for sound. None without one."""
    return next((one for one in components.values() if isinstance(one, SchedulerMixin)), None)


_CALL = "_triptych_after_step"


@functools.cache
def _watched_class(kind: type) -> type:
    """A subclass of the scheduler's class. The copies that some blocks make are of the class itself."""

    @functools.wraps(kind.step)  # type: ignore[attr-defined]  # blocks look at the signature
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        made = kind.step(self, *args, **kwargs)  # type: ignore[attr-defined]
        self.__dict__[_CALL](self, made[0])
        return made

    def reduce(self: Any, _protocol: int) -> tuple[Any, ...]:
        state = {name: value for name, value in self.__dict__.items() if name != _CALL}
        return copyreg.__newobj__, (kind,), state  # type: ignore[attr-defined]

    return type(kind.__name__, (kind,), {"step": step, "__reduce_ex__": reduce, "__module__": kind.__module__})


def _blocks(loop: LoopSequentialPipelineBlocks) -> list[Any]:
    return list(loop.sub_blocks.values())
