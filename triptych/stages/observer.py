"""Progress, cancellation and previews: one block at the end of every loop under `denoise`.

Models and loops stay unpatched. The block reads the loop's state and changes nothing in it; it finds the job's
callbacks on the job's own pipeline. In loops over chunks, which have their steps inside, the job's scheduler tells of
them: see `chunks`. Drawing a preview draws no random number, so the job's bits don't depend on whether it is watched.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from triptych.stages import Step
from triptych.stages.chunks import Chunk, count_of, goes_over_chunks, scheduler_of, watched
from triptych.stages.handoff import walk
from triptych.stages.library import InputParam, LoopSequentialPipelineBlocks, ModularPipelineBlocks
from triptych.stages.preview import Painter
from triptych.v1 import model_pb2


class Stop(BaseException):
    """Leaves the blocks when a job is cancelled; `Stage.run` turns it into `JobCancelled`.

    Not an `Exception`, because every level of diffusers logs those as errors with their traceback.
    """


@dataclass
class Observer:
    """The callbacks of one job, called after each step."""

    on_step: Callable[[Step], None]
    cancelled: Callable[[], bool]
    preview_every_steps: int
    painter: Painter
    step: int = 0
    steps_before: int = 0
    """Of earlier runs of the loop: some pipelines run it several times."""
    chunk: Chunk | None = None
    """The one that runs, in a loop over chunks."""

    def after_step(self, block_state: Any, index: object = None) -> None:
        """Reports the step at the end of a loop's blocks. Raises `Stop` where the job was cancelled.

        `index` is the loop's own, from 0.
        """
        chunk, self.chunk = self.chunk, None
        if chunk is not None and chunk.step:
            return  # its steps are reported
        if index == 0:
            self.steps_before = self.step
        self._report(self.steps_before + _count_steps(block_state), block_state)

    def begin_chunk(self, components: Any, loop: LoopSequentialPipelineBlocks, block_state: Any, number: int) -> None:
        """From here on the scheduler's steps are reported, each as it is done."""
        scheduler = scheduler_of({name: components.__dict__.get(name) for name in components._component_specs})
        chunk = Chunk.begin(number, count_of(loop, block_state), self.step, block_state)
        self.chunk = chunk

        def after_step(stepped: Any, latents: torch.Tensor) -> None:
            if self.chunk is not chunk:
                return
            chunk.take(stepped)
            size = {name: getattr(block_state, name, None) for name in ("height", "width")}
            self._report(chunk.step_count(), SimpleNamespace(latents=latents, **size))

        if scheduler is not None:
            watched(scheduler, after_step)

    def _report(self, step_count: int, block_state: Any) -> None:
        self.step += 1
        preview = b""
        if self.preview_every_steps and self.step % self.preview_every_steps == 0:
            latents, height, width = (getattr(block_state, name, None) for name in ("latents", "height", "width"))
            preview = self.painter.png(latents, height, width)
        self.on_step(Step(self.step, max(step_count, self.step), preview))
        if self.cancelled():
            raise Stop


def _count_steps(block_state: Any) -> int:
    timesteps = getattr(block_state, "timesteps", None)
    if timesteps is not None and hasattr(timesteps, "__len__"):
        return len(timesteps)
    count = getattr(block_state, "num_inference_steps", None)
    return count if isinstance(count, int) else 0


class ObserverBlock(ModularPipelineBlocks):  # type: ignore[misc]
    """Calls the job's observer; declares no outputs or components."""

    @property
    def inputs(self) -> list[InputParam]:
        """The picture's size, where the state has it, so that packed latents can be drawn."""
        return [InputParam("height"), InputParam("width")]

    @property
    def description(self) -> str:
        """What diffusers shows for this block."""
        return "Reports a step's end, and stops the loop when the job is cancelled."

    def __call__(self, components: Any, block_state: Any, **told: object) -> tuple[Any, Any]:
        """Called by the loop after its own blocks, with the loop's variables."""
        components._role_observer.after_step(block_state, told.get("i"))
        return components, block_state


class ChunkBlock(ObserverBlock):
    """Tells the job's observer that a chunk begins; stands before a loop's own blocks."""

    def __init__(self, loop: LoopSequentialPipelineBlocks) -> None:
        super().__init__()
        self._loop = loop

    def __call__(self, components: Any, block_state: Any, **told: object) -> tuple[Any, Any]:
        """Called by the loop with the chunk's number."""
        (number,) = told.values()
        components._role_observer.begin_chunk(components, self._loop, block_state, number)
        return components, block_state


def step_point(blocks: ModularPipelineBlocks) -> model_pb2.StepPoint.ValueType:
    """Where steps under these blocks are reported: behind the scheduler where one of the loops goes over chunks."""
    loops = [block for block in walk(blocks) if isinstance(block, LoopSequentialPipelineBlocks)]
    if not loops:
        return model_pb2.STEP_POINT_UNSPECIFIED
    is_inside = any(goes_over_chunks(loop) for loop in loops)
    return model_pb2.STEP_POINT_SCHEDULER if is_inside else model_pb2.STEP_POINT_LOOP


def insert_observers(blocks: ModularPipelineBlocks) -> None:
    """Puts observers into every loop, and turns the loops' own progress bars off."""
    for block in walk(blocks):
        if isinstance(block, LoopSequentialPipelineBlocks):
            block.set_progress_bar_config(disable=True)
            if goes_over_chunks(block):
                block.sub_blocks.insert("triptych_chunk", ChunkBlock(block), 0)
            block.sub_blocks["triptych_observer"] = ObserverBlock()
