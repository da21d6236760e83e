"""Progress, cancellation and previews: one block at the end of every loop under `denoise`.

Models and loops stay unpatched. The block reads the loop's state and changes nothing in it; it finds the job's
callbacks on the job's own pipeline.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from triptych.stages import Step
from triptych.stages.handoff import walk
from triptych.stages.library import InputParam, LoopSequentialPipelineBlocks, ModularPipelineBlocks
from triptych.stages.preview import draw_preview

BLOCK_NAME = "triptych_observer"


class Stop(BaseException):
    """Leaves the blocks when a job is cancelled; `Stage.run` turns it into `JobCancelled`.

    Not an `Exception`, because every level of diffusers logs those as errors with their traceback.
    """


class Observer:
    """The callbacks of one job, called after each step."""

    def __init__(
        self,
        on_step: Callable[[Step], None],
        cancelled: Callable[[], bool],
        preview_every_steps: int,
        token_pixels: int,
    ) -> None:
        self._on_step = on_step
        self._cancelled = cancelled
        self._preview_every_steps = preview_every_steps
        self._token_pixels = token_pixels
        self._step = 0

    def after_step(self, block_state: Any) -> None:
        """Reports the step. Raises `Stop` where the job was cancelled."""
        self._step += 1
        step_count = max(_count_steps(block_state), self._step)
        preview = b""
        if self._preview_every_steps and self._step % self._preview_every_steps == 0:
            preview = draw_preview(block_state, self._token_pixels)
        self._on_step(Step(self._step, step_count, preview))
        if self._cancelled():
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

    def __call__(self, components: Any, block_state: Any, **_: object) -> tuple[Any, Any]:
        """Called by the loop after its own blocks; the loop's variables aren't needed."""
        components._role_observer.after_step(block_state)
        return components, block_state


def insert_observers(blocks: ModularPipelineBlocks) -> None:
    """Appends an observer to every loop, and turns the loops' own progress bars off."""
    for block in walk(blocks):
        if isinstance(block, LoopSequentialPipelineBlocks):
            block.set_progress_bar_config(disable=True)
            block.sub_blocks[BLOCK_NAME] = ObserverBlock()
