"""Progress, cancellation and previews: one block at the end of every loop under `denoise`.

Models and loops stay unpatched. The block reads the loop's state and changes nothing in it; it finds the job's
callbacks on the job's own pipeline. In loops over chunks, which have their steps inside, the job's scheduler tells of
them: see `chunks`. A preview needs no decoder: the three directions in which the latents vary most
become red, green and blue. It draws no random number, so the job's bits don't depend on whether it is watched.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import PIL.Image
import torch

from triptych.stages import Step
from triptych.stages.chunks import Chunk, count_of, goes_over_chunks, scheduler_of, watched
from triptych.stages.handoff import walk
from triptych.stages.library import InputParam, LoopSequentialPipelineBlocks, ModularPipelineBlocks
from triptych.v1 import model_pb2

SIDE_PIXELS_MIN = 128
"""Previews are magnified by a whole factor until the shorter side has this many pixels: enough to see on a screen."""
PREVIEW_SIDE_PIXELS_MAX = 512
"""Longest side of a preview; larger latents are thinned out. Keeps a preview under about 0.5 MB."""


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
    token_pixels: int
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
            preview = _preview(block_state, self.token_pixels)
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


def _preview(block_state: Any, token_pixels: int) -> bytes:
    """A PNG of `block_state.latents`, or nothing where their layout isn't known.

    Understood: `[B, C, H, W]`, `[B, C, T, H, W]` (its middle frame), and packed `[B, L, C]`, where every token covers
    a square of `token_pixels` of the picture.
    """
    latents = getattr(block_state, "latents", None)
    if not isinstance(latents, torch.Tensor) or not latents.is_floating_point():
        return b""
    plane_chw = _plane(latents.detach(), block_state, token_pixels)
    if plane_chw is None or not bool(torch.isfinite(plane_chw).all()):
        return b""
    stride = math.ceil(max(plane_chw.shape[1:]) / PREVIEW_SIDE_PIXELS_MAX)
    return _png(_colours(plane_chw[:, ::stride, ::stride]))


def _plane(latents: torch.Tensor, block_state: Any, token_pixels: int) -> torch.Tensor | None:
    """The first item's middle frame as float32 `[C, H, W]` on the CPU."""
    if latents.ndim == 5:
        plane = latents[0, :, latents.shape[2] // 2]
    elif latents.ndim == 4:
        plane = latents[0]
    elif latents.ndim == 3:
        frames = _unpack(latents[0], block_state, token_pixels)
        if frames is None:
            return None
        plane = frames[len(frames) // 2].permute(2, 0, 1)
    else:
        return None
    return plane.to(device="cpu", dtype=torch.float32)


def _unpack(tokens_lc: torch.Tensor, block_state: Any, token_pixels: int) -> torch.Tensor | None:
    """Packed tokens as frames `[T, H, W, C]`. Some pipelines pack two by two latents on top of the denoiser's patch."""
    height = getattr(block_state, "height", None)
    width = getattr(block_state, "width", None)
    if not (isinstance(height, int) and isinstance(width, int) and token_pixels):
        return None
    for side_pixels in (token_pixels, 2 * token_pixels):
        rows = height // side_pixels
        columns = width // side_pixels
        if rows * columns and len(tokens_lc) % (rows * columns) == 0:
            return tokens_lc.reshape(-1, rows, columns, tokens_lc.shape[1])
    return None


def _colours(plane_chw: torch.Tensor) -> torch.Tensor:
    """Projects channels onto their first three principal directions, as uint8 `[H, W, 3]`."""
    pixels_nc = plane_chw.flatten(1).T
    pixels_nc = pixels_nc - pixels_nc.mean(dim=0)
    _, directions = torch.linalg.eigh(pixels_nc.T @ pixels_nc)
    axes = directions[:, -3:].flip(1)
    axes = axes * torch.where(axes.sum(dim=0) < 0, -1.0, 1.0)  # an eigenvector's sign is arbitrary: keep colours steady
    colours = pixels_nc @ axes
    colours = torch.nn.functional.pad(colours, (0, 3 - colours.shape[1]))
    spread = 2 * colours.std(dim=0, correction=0).clamp_min(1e-6)
    scaled = ((colours / spread + 1) * 127.5).clamp(0, 255).to(torch.uint8)
    return scaled.reshape(*plane_chw.shape[1:], 3)


def _png(picture_hwc: torch.Tensor) -> bytes:
    image = PIL.Image.fromarray(picture_hwc.numpy(), mode="RGB")
    factor = max(1, math.ceil(SIDE_PIXELS_MIN / min(image.size)))
    image = image.resize((image.width * factor, image.height * factor), PIL.Image.Resampling.NEAREST)
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()
