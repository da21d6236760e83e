"""Files of a request, decoded by Pillow and FFmpeg. Runs in a child process (`child`), or in that of `--fused`."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator, Sequence

import av
from PIL import Image, ImageOps

from triptych.decoding import bounds, headers
from triptych.decoding.headers import Budget, File
from triptych.errors import InvalidRequest

IMAGE_ERRORS = (OSError, SyntaxError, ValueError, TypeError, IndexError, struct.error, Image.DecompressionBombError)
"""What Pillow's parsers raise on broken files."""

Decoded = Image.Image | list[Image.Image]
"""A picture, or a video's frames."""


def decode_all(files: Sequence[File]) -> list[Decoded]:
    """Each file as RGB. Raises InvalidRequest; what the files say is checked before the first is decoded."""
    headers.check(files)
    budget, decoded = Budget(), list[Decoded]()
    for file in files:
        try:
            decoded.append(
                [rgb(frame) for frame in video_frames(file, budget)] if file.is_video else image(file, budget)
            )
        except MemoryError as error:
            raise too_much_memory(file) from error
    return decoded


def image(file: File, budget: Budget | None = None) -> Image.Image:
    """A picture as RGB, turned upright as its EXIF data says. Raises InvalidRequest, MemoryError."""
    budget = budget or Budget()
    headers.check([file])
    try:
        with Image.open(io.BytesIO(file.data), formats=headers.IMAGE_FORMATS) as opened:
            budget.take(file, opened.width, opened.height)
            opened.load()
            ImageOps.exif_transpose(opened, in_place=True)
            return opened.convert("RGB")
    except (InvalidRequest, MemoryError):  # FFmpeg's MemoryError is an OSError, too
        raise
    except IMAGE_ERRORS as error:
        raise headers.refusal(file) from error


def video_frames(file: File, budget: Budget | None = None) -> Iterator[av.VideoFrame]:
    """A video's frames, one after the other. Raises InvalidRequest, MemoryError."""
    budget = budget or Budget()
    headers.check([file])
    # The container is named, never probed: other formats of FFmpeg are lists of files and addresses to open.
    container_format = "mp4" if file.data[4:8] == b"ftyp" else "gif"
    count = 0
    try:
        with av.open(io.BytesIO(file.data), "r", format=container_format) as container:
            stream = container.streams.video[0]
            if stream.codec_context is None:  # of a codec that FFmpeg doesn't have
                raise headers.refusal(file)
            stream.codec_context.thread_count = 1  # more take more memory each, and no less CPU time
            for frame in container.decode(stream):
                if count == bounds.VIDEO_FRAMES_MAX:
                    accepted = f"at most {bounds.VIDEO_FRAMES_MAX}"
                    raise InvalidRequest(f"media.{file.name}", f"more than {count} frames", accepted)
                budget.take(file, frame.width, frame.height)
                count += 1
                yield frame
            promised = stream.frames
    except (InvalidRequest, MemoryError):  # FFmpeg's MemoryError is an OSError, too
        raise
    except (av.FFmpegError, OSError, ValueError, IndexError) as error:
        raise headers.refusal(file) from error
    if count < max(promised, 1):
        raise InvalidRequest(f"media.{file.name}", f"{count} readable of {promised} frames", headers.VIDEO_ACCEPTED)


def rgb(frame: av.VideoFrame) -> Image.Image:
    """A frame as a picture."""
    made: Image.Image = frame.to_image()  # type: ignore[no-untyped-call]
    return made


def too_much_memory(file: File, memory_bytes: int = 0) -> InvalidRequest:
    """What to say of a file that takes more than there is, or than these bytes."""
    memory = f"{memory_bytes >> 20} MiB of memory" if memory_bytes else "the memory that there is"
    return InvalidRequest(f"media.{file.name}", f"{len(file.data)} bytes", f"a file that is decoded within {memory}")
