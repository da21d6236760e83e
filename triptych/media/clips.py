"""Pipelines' outputs as arrays of frames: one `Clip` for each item of a batch.

Pipelines answer in many shapes, and only the output's name tells some apart: a list of PIL images is a batch if it is
called `images`, and one video if it is called `videos` or `frames`. Layouts of B items, F frames, C channels (1, 3, 4):

    PIL     image · [B] images · [F] video · [B][F] videos · [B][n] layers of images
    numpy   [B,H,W,C] images · [F,H,W,C] video · [B,F,H,W,C] videos     float in 0…1, or uint8
    torch   [B,C,H,W] images · [F,C,H,W] video · [B,F,C,H,W] or [B,C,F,H,W] videos

Any other value of these outputs (latents, for example) is data and not a clip.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from triptych.media.decoding.pixels import in_8_bits
from triptych.media.formats import MOVING, OUTPUT_NAMES, STILL

_VIDEO_NAMES = OUTPUT_NAMES[MOVING]
_CLIP_NAMES = (*OUTPUT_NAMES[STILL], *_VIDEO_NAMES)
_CHANNELS = (1, 3, 4)
"""Grey, RGB, RGBA."""


class Clip(NamedTuple):
    """One item of a batch. `frames_FHWC` has the pipeline's own numbers, in this order of axes."""

    name: str
    frames_FHWC: npt.NDArray[Any]
    is_video: bool

    def images(self) -> list[Image.Image]:
        """The frames in 0…255, rounded as diffusers rounds for PIL. NaN becomes black."""
        frames = self.frames_FHWC
        if frames.dtype != np.uint8:
            frames = (np.clip(np.nan_to_num(frames.astype(np.float32)), 0.0, 1.0) * 255).round().astype(np.uint8)
        frames = frames[..., 0] if frames.shape[-1] == 1 else frames
        return [Image.fromarray(np.ascontiguousarray(frame)) for frame in frames]


def clips(outputs: Mapping[str, object]) -> tuple[list[Clip], dict[str, object]]:
    """The clips among a pipeline's outputs, and the other outputs.

    The first output's clips are named `0`, `1`, …; those of another carry its name: `image-0`.
    """
    found: list[Clip] = []
    rest: dict[str, object] = {}
    for name, value in outputs.items():
        items = list(_items(value, name in _VIDEO_NAMES)) if name in _CLIP_NAMES else []
        if not items:
            rest[name] = value
        prefix = f"{name}-" if found else ""
        found += [Clip(prefix + item_name, frames, is_video) for item_name, frames, is_video in items]
    return found, rest


def to_array(value: object) -> npt.NDArray[Any] | None:
    """A tensor or an array as an array; None for any other value. Types that numpy lacks (bfloat16) become float32."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        plain = value.detach().cpu().resolve_conj().resolve_neg()
        if plain.is_floating_point() and plain.dtype not in (torch.float16, torch.float32, torch.float64):
            plain = plain.float()
        array: npt.NDArray[Any] = plain.numpy()
        return array
    return value if isinstance(value, np.ndarray) else None


def _items(value: object, is_video: bool) -> Iterator[tuple[str, npt.NDArray[Any], bool]]:
    if isinstance(value, Image.Image):
        value = [value]
    if isinstance(value, list | tuple):
        yield from _listed(value, is_video)
        return
    array = to_array(value)
    pictures = None if array is None else _channels_last(array, isinstance(value, np.ndarray))
    if pictures is None:
        return
    if pictures.ndim == 4:
        batch_BFHWC = pictures[None] if is_video else pictures[:, None]
    else:
        batch_BFHWC = pictures
        is_video = True
    for index, frames in enumerate(batch_BFHWC):
        yield str(index), frames, is_video


def _listed(values: Sequence[Any], is_video: bool) -> Iterator[tuple[str, npt.NDArray[Any], bool]]:
    if values and all(isinstance(value, Image.Image) for value in values):
        if is_video:
            yield "0", _stack(values), True
        else:
            for index, image in enumerate(values):
                yield str(index), _stack([image]), False
        return
    for index, value in enumerate(values):
        if isinstance(value, list | tuple):
            for name, frames, video in _listed(value, is_video):
                yield (str(index) if is_video else f"{index}-{name}"), frames, video
        elif (array := to_array(value)) is not None:
            # One item of a batch that came as a list, so it lacks the first axis.
            item = _channels_last(array[None], isinstance(value, np.ndarray))
            if item is not None:
                yield str(index), item[0] if item.ndim == 5 else item, item.ndim == 5


def _channels_last(array: npt.NDArray[Any], is_last: bool) -> npt.NDArray[Any] | None:
    """Pictures with their axes in numpy's order; None if no axis can be the channels, or the numbers are no pixels.

    A tensor that fits both layouts is taken as diffusers' [B,F,C,H,W].
    """
    is_pixels = array.dtype == np.uint8 or np.issubdtype(array.dtype, np.floating)
    if array.size == 0 or array.ndim not in (4, 5) or not is_pixels:
        return None
    if is_last:
        return array if array.shape[-1] in _CHANNELS else None
    if array.ndim == 4:
        return array.transpose(0, 2, 3, 1) if array.shape[1] in _CHANNELS else None
    if array.shape[2] in _CHANNELS:
        return array.transpose(0, 1, 3, 4, 2)
    return array.transpose(0, 2, 3, 4, 1) if array.shape[1] in _CHANNELS else None


def _stack(images: Sequence[Image.Image]) -> npt.NDArray[np.uint8]:
    """Pictures in one mode that fits them all: RGBA if any has transparency, grey if all are, else RGB."""
    images = [in_8_bits(image) for image in images]
    has_alpha = any(image.has_transparency_data for image in images)
    mode = "RGBA" if has_alpha else "L" if all(image.mode == "L" for image in images) else "RGB"
    stacked = np.stack([np.asarray(image if image.mode == mode else image.convert(mode)) for image in images])
    return stacked[..., None] if stacked.ndim == 3 else stacked
