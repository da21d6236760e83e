"""Converts a file's samples to RGB of eight bits: depth, transparency, range, orientation. See docs/files.md."""

from __future__ import annotations

import struct
from typing import Any

import av
import numpy as np
from av.sidedata.sidedata import Type
from av.video.reformatter import ColorPrimaries, ColorTrc
from PIL import Image

from triptych.errors import InvalidRequest
from triptych.media.decoding.headers import File

_TURNS = {
    90: Image.Transpose.ROTATE_90,
    180: Image.Transpose.ROTATE_180,
    -90: Image.Transpose.ROTATE_270,
    -180: Image.Transpose.ROTATE_180,
}
"""By the degrees of a video's rotation, counterclockwise."""
HDR = (ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67)
"""Transfer functions PQ and HLG."""
WIDE_GAMUTS = (ColorPrimaries.BT2020, ColorPrimaries.SMPTE431, ColorPrimaries.SMPTE432)
"""The primaries of BT.2020 and of P3."""
BT2020_MATRICES = (9, 10)
"""With constant luminance or without, by the numbers of ITU-T H.273, which FFmpeg uses."""


def in_8_bits(picture: Image.Image) -> Image.Image:
    """A picture of 16 bits by its higher eight, a palette's picture by its colours, any other as it is."""
    if picture.mode.startswith("I;16"):
        samples = np.asarray(picture)
        grey = Image.fromarray((samples >> 8).astype(np.uint8))
        grey.info = {**picture.info}
        if (clear := grey.info.pop("transparency", None)) is not None:  # a sample of 16 bits
            grey.putalpha(Image.fromarray(np.where(samples == clear, 0, 255).astype(np.uint8)))
        return grey
    if picture.mode in ("P", "PA"):
        return picture.convert("RGBA" if picture.has_transparency_data else "RGB")
    return picture


def over_white(picture: Image.Image) -> Image.Image:
    """An RGBA picture as RGB on a white page."""
    page = Image.new("RGB", picture.size, "white")
    page.paste(picture, mask=picture)
    return page


def as_rgb(file: File, picture: Image.Image) -> Image.Image:
    """A picture as RGBA if the input takes that, else as RGB, with transparency laid over white.

    Raises InvalidRequest for a mask with transparency.
    """
    if file.takes_alpha:
        return picture.convert("RGBA")
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    picture = picture.convert("RGBA")
    opacity_min, _ = picture.getchannel("A").getextrema()
    if opacity_min == 255:
        return picture.convert("RGB")
    if file.is_mask:
        accepted = "a mask without transparency, which may mean either side: white and black say which"
        raise InvalidRequest(f"media.{file.name}", "partly transparent", accepted)
    return over_white(picture)


def frame_as_rgb(file: File, frame: av.VideoFrame) -> Image.Image:
    """A video's frame as RGB, turned upright. Raises InvalidRequest as `check_frame` does."""
    check_frame(file, frame)
    has_alpha = any(component.is_alpha for component in frame.format.components)
    picture = as_rgb(file, Image.fromarray(frame.to_ndarray(format="rgba" if has_alpha else "rgb24")))
    return picture.transpose(_TURNS[frame.rotation]) if frame.rotation in _TURNS else picture


def check_frame(file: File, frame: av.VideoFrame) -> None:
    """Raise InvalidRequest for a video of HDR or a wide gamut, of half pictures, or at an odd angle."""
    is_wide = frame.color_primaries in WIDE_GAMUTS or frame.colorspace in BT2020_MATRICES
    if frame.color_trc in HDR or is_wide:
        accepted = "a video of standard range in BT.709's colours: tone-map it first"
        raise InvalidRequest(f"media.{file.name}", "HDR, or of a wide gamut", accepted)
    if frame.interlaced_frame:
        raise InvalidRequest(f"media.{file.name}", "interlaced", "a progressive video: deinterlace it first")
    _check_turn(file, frame)


def _check_turn(file: File, frame: av.VideoFrame) -> None:
    side_data: Any = frame.side_data  # PyAV's own types leave most kinds out
    if Type.DISPLAYMATRIX not in side_data:
        return
    matrix = side_data[Type.DISPLAYMATRIX]
    a, b, _, c, d = struct.unpack_from("=5i", bytes(matrix))
    if a * d - b * c <= 0 or frame.rotation not in (0, *_TURNS):
        shown = f"to be mirrored, or turned by {frame.rotation} degrees"
        raise InvalidRequest(f"media.{file.name}", shown, "a video turned by quarters, and not mirrored")
