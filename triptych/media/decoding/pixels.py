"""Converts a picture's samples to sRGB of eight bits: depth, colours, transparency, orientation. See docs/files.md."""

from __future__ import annotations

import functools
import io
import struct
from typing import Any

import av
import numpy as np
from av.sidedata.sidedata import Type
from av.video.reformatter import ColorPrimaries, ColorTrc
from PIL import Image, ImageCms

from triptych.errors import InvalidRequest
from triptych.media.decoding.headers import File
from triptych.media.decoding.picture_headers import PNG_SIGNATURE, png_chunks

IMAGE_ERRORS = (OSError, SyntaxError, ValueError, TypeError, IndexError, struct.error, Image.DecompressionBombError)
"""Errors of Pillow's parsers on broken files."""
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
SRGB_DIFFERENCE_MAX = 1
"""A profile that changes no colour by more counts as sRGB's and is ignored, so that equal pictures with different
sRGB profiles keep equal bits."""
_CUBE_STEP = 15
"""Step between the samples of the colours that are tried: 0, 15, … 255."""
SRGB_GAMMA = 1 / 2.2
"""The gamma of a PNG that stands for sRGB, as closely as one number can."""
GAMMA_DIFFERENCE_MAX = 0.01
SRGB_CHROMATICITIES = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
"""White, red, green, blue, each x and y (IEC 61966-2-1)."""
CHROMATICITY_DIFFERENCE_MAX = 0.01
_CODE_POINTS = (b"\x01\x0d", b"\x01\x01")
"""Primaries and transfer (ITU-T H.273) of sRGB, and of BT.709, which is shown in the same way."""


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


def in_srgb(file: File, picture: Image.Image) -> Image.Image:
    """A picture of eight bits with its colours in sRGB. A mask has no colours and is returned as it is.

    CMYK without a profile is left to Pillow's formula. Raises InvalidRequest for an unusable profile, for primaries
    that need a profile, and for HDR.
    """
    if file.is_mask:
        return picture
    _check_code_points(file)
    if profile := picture.info.get("icc_profile"):
        return _by_profile(file, picture, profile)
    gamma = picture.info.get("gamma")
    if gamma and "srgb" not in picture.info:
        said = picture.info.get("chromaticity", SRGB_CHROMATICITIES)
        if max(abs(a - b) for a, b in zip(said, SRGB_CHROMATICITIES, strict=True)) > CHROMATICITY_DIFFERENCE_MAX:
            accepted = "a picture in sRGB, or with a colour profile (ICC)"
            raise InvalidRequest(file.place, "of other primaries than sRGB's", accepted)
        if abs(gamma - SRGB_GAMMA) > GAMMA_DIFFERENCE_MAX:
            return _by_gamma(picture, gamma)
    return picture


def _check_code_points(file: File) -> None:
    """Check a PNG's cICP chunk, which names its colours by numbers as videos do. Pillow ignores it."""
    for kind, content in png_chunks(file.data) if file.data.startswith(PNG_SIGNATURE) else ():
        if kind == b"cICP" and content[:2] not in _CODE_POINTS:
            accepted = "a picture in sRGB: tone-map it first"
            raise InvalidRequest(file.place, "HDR, or of a wide gamut", accepted)
        if kind in (b"cICP", b"IDAT"):  # cICP comes before the samples
            return


def _by_profile(file: File, picture: Image.Image, profile: bytes) -> Image.Image:
    alpha = picture.getchannel("A") if picture.mode in ("RGBA", "LA") else None
    plain = picture if alpha is None else picture.convert(picture.mode[:-1])
    try:
        own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if plain.mode in ("1", "L"):  # grey pictures often have a profile of three channels
            plain = plain.convert("RGB" if own.profile.xcolor_space == "RGB " else "L")
        transform = ImageCms.buildTransform(own, _srgb(), plain.mode, "RGB", ImageCms.Intent.PERCEPTUAL)
        if plain.mode == "RGB" and _is_srgb(transform):
            return picture
        shown = ImageCms.applyTransform(plain, transform)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
        accepted = "a picture with a sound profile of its own kind of colours (ICC), or with none"
        raise InvalidRequest(file.place, "a picture whose colour profile can't be used", accepted) from error
    assert shown is not None
    if alpha is not None:
        shown.putalpha(alpha)
    return shown


@functools.cache
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def _is_srgb(transform: ImageCms.ImageCmsTransform) -> bool:
    steps = np.arange(0, 256, _CUBE_STEP, dtype=np.uint8)
    cube = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(len(steps), -1, 3)
    changed = ImageCms.applyTransform(Image.fromarray(cube), transform)
    return int(np.abs(np.asarray(changed).astype(int) - cube).max()) <= SRGB_DIFFERENCE_MAX


def _by_gamma(picture: Image.Image, gamma: float) -> Image.Image:
    """Samples are light to the power of `gamma` (PNG, gAMA); sRGB's curve converts that light to samples again."""
    light = np.linspace(0, 1, 256) ** (1 / gamma)
    curve = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    table = np.round(255 * curve).astype(int).tolist()
    bands = zip(picture.getbands(), picture.split(), strict=True)
    return Image.merge(picture.mode, [band if name == "A" else band.point(table) for name, band in bands])


def over_white(picture: Image.Image) -> Image.Image:
    """An RGBA picture as RGB on a white page."""
    page = Image.new("RGB", picture.size, "white")
    page.paste(picture, mask=picture)
    return page


def as_wanted(file: File, picture: Image.Image) -> Image.Image:
    """A picture in the file's `mode`: transparency is kept where the input takes it, and else laid over white.

    Raises InvalidRequest for a mask with transparency.
    """
    if file.mode == "RGBA":
        return picture.convert("RGBA")
    if not picture.has_transparency_data:
        return _opaque(picture, file.mode)
    picture = picture.convert("RGBA")
    opacity_min, _ = picture.getchannel("A").getextrema()
    if opacity_min == 255:
        return _opaque(picture, file.mode)
    if file.is_mask:
        accepted = "a mask without transparency, which may mean either side: white and black say which"
        raise InvalidRequest(file.place, "partly transparent", accepted)
    return over_white(picture)


def _opaque(picture: Image.Image, mode: str) -> Image.Image:
    coloured = picture.convert("RGB")
    return coloured if mode == "RGB" else coloured.convert(mode)  # Pillow copies even where the mode is the same


def frame_as_wanted(file: File, frame: av.VideoFrame) -> Image.Image:
    """A video's frame in the file's `mode`, turned upright. Raises InvalidRequest for a mask with transparency."""
    has_alpha = any(component.is_alpha for component in frame.format.components)
    picture = as_wanted(file, Image.fromarray(frame.to_ndarray(format="rgba" if has_alpha else "rgb24")))
    return picture.transpose(_TURNS[frame.rotation]) if frame.rotation in _TURNS else picture


def check_frame(file: File, frame: av.VideoFrame) -> None:
    """Raise InvalidRequest for a video of HDR or a wide gamut, of half pictures, or at an odd angle."""
    is_wide = frame.color_primaries in WIDE_GAMUTS or frame.colorspace in BT2020_MATRICES
    if frame.color_trc in HDR or is_wide:
        accepted = "a video of standard range in BT.709's colours: tone-map it first"
        raise InvalidRequest(file.place, "HDR, or of a wide gamut", accepted)
    if frame.interlaced_frame:
        raise InvalidRequest(file.place, "interlaced", "a progressive video: deinterlace it first")
    side_data: Any = frame.side_data  # PyAV's own types leave most kinds out
    if Type.DISPLAYMATRIX in side_data:
        a, b, _, c, d = struct.unpack_from("=5i", bytes(side_data[Type.DISPLAYMATRIX]))
        if a * d - b * c <= 0 or frame.rotation not in (0, *_TURNS):
            shown = f"to be mirrored, or turned by {frame.rotation} degrees"
            raise InvalidRequest(file.place, shown, "a video turned by quarters, and not mirrored")
