"""Decodes the files of a request by Pillow and FFmpeg. Runs in a child process (`child`), or in that of `--fused`."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator, Sequence

import av
from PIL import Image, ImageOps

from triptych.errors import InvalidRequest
from triptych.media.decoding import bounds, headers
from triptych.media.decoding.headers import Budget, File
from triptych.media.decoding.pixels import as_rgb, check_frame, frame_as_rgb, in_8_bits, in_srgb

IMAGE_ERRORS = (OSError, SyntaxError, ValueError, TypeError, IndexError, struct.error, Image.DecompressionBombError)
"""Errors of Pillow's parsers on broken files."""

ASPECT_DIFFERENCE_MAX = 0.01
"""A pixel's width over its height may differ from 1 by so much: encoders write 4095:4096 where sides were cut."""

Decoded = Image.Image | list[Image.Image]
"""A picture, or a video's frames."""


def decode_all(files: Sequence[File]) -> list[Decoded]:
    """Each file as RGB. Raises InvalidRequest. All headers are checked before the first file is decoded."""
    headers.check(files)
    budget = Budget()
    decoded: list[Decoded] = []
    for file in files:
        try:
            found = list(pictures(file, budget))
        except MemoryError as error:
            raise too_much_memory(file) from error
        decoded.append(found if file.is_video else found[0])
    return decoded


def pictures(file: File, budget: Budget, *, wants_pixels: bool = True) -> Iterator[Image.Image]:
    """Yield a picture, or a video's frames, as RGB. Raises InvalidRequest, MemoryError. Headers are checked before.

    If no pixels are wanted, the file is checked all the same, but a video's frames are converted only where that can
    fail: those of masks.
    """
    if not file.is_video:
        picture = _picture(file, budget)
        if wants_pixels:
            yield picture
        return
    for frame in _frames(file, budget):
        if wants_pixels:
            yield frame_as_rgb(file, frame)
        elif file.is_mask:
            frame_as_rgb(file, frame)


def _picture(file: File, budget: Budget) -> Image.Image:
    """A picture as RGB, turned upright as its EXIF data says."""
    try:
        with Image.open(io.BytesIO(file.data), formats=headers.IMAGE_FORMATS) as opened:
            budget.take(file, opened.width, opened.height)
            if opened.format != "MPO" and getattr(opened, "is_animated", False):  # MPO: a camera's second picture
                raise InvalidRequest(file.place, "animated", "a picture of one frame")
            opened.load()
            ImageOps.exif_transpose(opened, in_place=True)
            picture = as_rgb(file, in_srgb(file, in_8_bits(opened)))
            if file.is_crop_mask and picture.convert("L").getbbox() is None:
                accepted = "a picture that isn't black everywhere: parameters.padding_mask_crop cuts out what it shows"
                raise InvalidRequest(file.place, "black", accepted)
            return picture
    except (InvalidRequest, MemoryError):  # FFmpeg's MemoryError is an OSError, too
        raise
    except IMAGE_ERRORS as error:
        raise headers.refusal(file) from error


def _frames(file: File, budget: Budget) -> Iterator[av.VideoFrame]:
    # The container is named, never probed: some of FFmpeg's formats are lists of files and addresses to open.
    container_format = "mp4" if file.data[4:8] == b"ftyp" else "gif"
    count = 0
    try:
        with av.open(io.BytesIO(file.data), "r", format=container_format) as container:
            stream = container.streams.video[0]
            if stream.codec_context is None:  # FFmpeg lacks the codec
                raise headers.refusal(file)
            aspect = stream.sample_aspect_ratio
            if aspect and abs(aspect - 1) > ASPECT_DIFFERENCE_MAX:
                shown = f"of pixels {aspect.numerator}:{aspect.denominator}"
                accepted = "a video of square pixels: scale it to the size that players show"
                raise InvalidRequest(file.place, shown, accepted)
            stream.codec_context.thread_count = 1  # more threads take more memory and as much CPU time
            for frame in container.decode(stream):
                if count == bounds.VIDEO_FRAMES_MAX:
                    accepted = f"at most {bounds.VIDEO_FRAMES_MAX}"
                    raise InvalidRequest(file.place, f"more than {count} frames", accepted)
                budget.take(file, frame.width, frame.height)
                count += 1
                check_frame(file, frame)
                yield frame
            _check_whole(file, stream, count)
    except (InvalidRequest, MemoryError):  # FFmpeg's MemoryError is an OSError, too
        raise
    except (av.FFmpegError, OSError, ValueError, IndexError) as error:
        raise headers.refusal(file) from error


def _check_whole(file: File, stream: av.VideoStream, count: int) -> None:
    """Raise InvalidRequest if fewer frames than promised could be read, after the whole stream was read.

    FFmpeg's index has every sample that the tables and fragments name. Those that an edit list leaves out are missing
    or marked. `stream.frames` counts them all, but none of the fragments'; it is used for a GIF, whose index has only
    decoded frames. Some decoders fill in missing parts of a frame, so each sample's place is checked as well.
    """
    is_mp4 = file.data[4:8] == b"ftyp"
    shown = [entry for entry in stream.index_entries if not entry.is_discard] if is_mp4 else []
    promised = max(len(shown) or stream.frames, 1)
    if shown:
        count = min(count, sum(entry.pos + entry.size <= len(file.data) for entry in shown))
    if count < promised:
        raise InvalidRequest(file.place, f"{count} readable of {promised} frames", headers.VIDEO_ACCEPTED)


def too_much_memory(file: File, memory_bytes: int = 0) -> InvalidRequest:
    """The error for a file that takes more memory than there is, or than these bytes."""
    memory = f"{memory_bytes >> 20} MiB of memory" if memory_bytes else "the memory that there is"
    return InvalidRequest(file.place, f"{len(file.data)} bytes", f"a file that is decoded within {memory}")
