"""Decodes the files of a request by Pillow and FFmpeg. Runs in a child process (`child`), or in that of `--fused`."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from fractions import Fraction

from av import VideoFrame
from PIL import Image, ImageOps

from triptych.errors import InvalidRequest
from triptych.media.decoding import animations, bounds, headers, sound, videos
from triptych.media.decoding.headers import AUDIO, IMAGE, VIDEO, Budget, File
from triptych.media.decoding.pixels import IMAGE_ERRORS, as_wanted, frame_as_wanted, in_8_bits, in_srgb
from triptych.media.decoding.timing import Shown
from triptych.media.decoding.values import Decoded, Frame, Sound, evened, whole


def decode_all(files: Sequence[File]) -> list[Decoded]:
    """Each file as its `mode` says. Raises InvalidRequest. All headers are checked before the first file is decoded."""
    headers.check(files)
    budget = Budget()
    decoded: list[Decoded] = []
    for file in files:
        try:
            decoded.append(whole(file, list(pieces(file, budget))))
        except MemoryError as error:
            raise too_much_memory(file) from error
    return decoded


def pieces(file: File, budget: Budget, *, wants_pixels: bool = True) -> Iterator[Frame | Sound]:
    """Yield a picture, a video's frames, or sound. Raises InvalidRequest, MemoryError. Headers are checked before.

    If no pixels are wanted, the file is checked all the same, but a video's frames are converted only where that can
    fail: those of masks.
    """
    if file.kind == AUDIO:
        found: Iterator[Frame | Sound] = sound.pieces(file, budget)
    elif file.kind == VIDEO:
        found = _frames(file, budget, wants_pixels)
    else:
        found = iter([Frame(_picture(file, budget))])
    for piece in found:
        if wants_pixels:
            yield piece
        del piece  # or it would stay while the next is decoded


def _picture(file: File, budget: Budget) -> Image.Image:
    """A picture, turned upright as its EXIF data says."""
    try:
        with Image.open(
            io.BytesIO(file.data), formats=[name.upper() for name in headers.WANTED_FORMATS[IMAGE]]
        ) as opened:
            budget.take(file, opened.width, opened.height)
            if opened.format != "MPO" and getattr(opened, "is_animated", False):  # MPO: a camera's second picture
                raise InvalidRequest(file.place, "animated", "a picture of one frame")
            opened.load()
            ImageOps.exif_transpose(opened, in_place=True)
            picture = as_wanted(file, in_srgb(file, in_8_bits(opened)))
            if file.is_crop_mask and picture.convert("L").getbbox() is None:
                accepted = "a picture that isn't black everywhere: parameters.padding_mask_crop cuts out what it shows"
                raise InvalidRequest(file.place, "black", accepted)
            return picture
    except (InvalidRequest, MemoryError):  # FFmpeg's MemoryError is an OSError, too
        raise
    except IMAGE_ERRORS as error:
        raise headers.refusal(file) from error


def _frames(file: File, budget: Budget, wants_pixels: bool) -> Iterator[Frame]:
    times: list[Shown | None] = []
    size = (0, 0)
    for picture, shown, rate in _undone(file):
        if len(times) == bounds.VIDEO_FRAMES_MAX:
            accepted = f"at most {bounds.VIDEO_FRAMES_MAX}"
            raise InvalidRequest(file.place, f"more than {len(times)} frames", accepted)
        own_size = (picture.width, picture.height)
        budget.take(file, *own_size)
        if times and own_size != size:
            differing = "frames of {} × {} and of {} × {} pixels".format(*size, *own_size)
            raise InvalidRequest(file.place, differing, "a video whose frames are of one size")
        size = own_size
        times.append(shown)
        if wants_pixels or file.is_mask:
            converted = as_wanted(file, picture) if isinstance(picture, Image.Image) else frame_as_wanted(file, picture)
            yield Frame(converted, shown, rate)
    if not times:
        raise headers.refusal(file)
    _, numbers = evened(file, times, None)
    budget.take(file, *size, max(0, len(numbers) - len(times)))


def _undone(file: File) -> Iterator[tuple[Image.Image | VideoFrame, Shown | None, Fraction | None]]:
    """Yield the frames before they are converted."""
    if headers.format_of(file.data) in ("png", "webp"):
        for picture, shown in animations.frames(file):
            yield picture, shown, None
    else:
        yield from videos.frames(file)


def too_much_memory(file: File, memory_bytes: int = 0) -> InvalidRequest:
    """The error for a file that takes more memory than there is, or than these bytes."""
    memory = f"{memory_bytes >> 20} MiB of memory" if memory_bytes else "the memory that there is"
    return InvalidRequest(file.place, f"{len(file.data)} bytes", f"a file that is decoded within {memory}")
