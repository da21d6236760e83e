"""Decodes the frames of videos by FFmpeg, and says when each is shown."""

from __future__ import annotations

import io
from collections.abc import Iterator
from fractions import Fraction

import av
from av import VideoFrame
from av.stream import Disposition

from triptych.errors import InvalidRequest
from triptych.media.decoding import headers
from triptych.media.decoding.headers import File
from triptych.media.decoding.pixels import check_frame
from triptych.media.decoding.timing import Shown

ASPECT_DIFFERENCE_MAX = 0.01
"""A pixel's width over its height may differ from 1 by so much: encoders write 4095:4096 where sides were cut."""
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
"""FFmpeg's own decoders of these leave the transparency of WebM out, without a word."""


def frames(file: File) -> Iterator[tuple[VideoFrame, Shown | None, Fraction | None]]:
    """Yield each frame, when it is shown where the file says that, and the video's mean rate.

    Raises InvalidRequest for what can't be read whole or converted without guessing.
    """
    try:
        # The container is named, never probed: some of FFmpeg's formats are lists of files and addresses to open.
        with av.open(io.BytesIO(file.data), "r", format=headers.format_of(file.data)) as container:
            films = [one for one in container.streams.video if not one.disposition & Disposition.attached_pic]
            if not films:
                raise headers.refusal(file)
            stream = films[0]
            if stream.codec_context is None:  # FFmpeg lacks the codec
                raise headers.refusal(file)
            _check_aspect(file, stream)
            count = 0
            for frame in _decoded(container, stream):
                if frame.is_corrupt:
                    raise InvalidRequest(file.place, f"damaged at frame {count}", headers.WANTED_FILES[headers.VIDEO])
                check_frame(file, frame)
                yield frame, _shown(frame, stream.average_rate), stream.average_rate
                count += 1
            _check_whole(file, stream, count)
    except (InvalidRequest, MemoryError):  # FFmpeg's MemoryError is an OSError, too
        raise
    except (av.FFmpegError, OSError, ValueError, IndexError) as error:
        raise headers.refusal(file) from error


def _decoded(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[VideoFrame]:
    name = _ALPHA_DECODERS.get(stream.codec_context.name, "") if stream.metadata.get("alpha_mode") == "1" else ""
    if not name:
        stream.codec_context.thread_count = 1  # more threads take more memory and as much CPU time
        yield from container.decode(stream)
        return
    decoder = av.CodecContext.create(name, "r")
    assert isinstance(decoder, av.VideoCodecContext)
    decoder.thread_count = 1
    for packet in container.demux(stream):
        yield from decoder.decode(packet if packet.size else None)


def _check_aspect(file: File, stream: av.VideoStream) -> None:
    aspect = stream.sample_aspect_ratio
    if aspect and abs(aspect - 1) > ASPECT_DIFFERENCE_MAX:
        shown = f"of pixels {aspect.numerator}:{aspect.denominator}"
        raise InvalidRequest(file.place, shown, "a video of square pixels: scale it to the size that players show")


def _shown(frame: VideoFrame, rate: Fraction | None) -> Shown | None:
    if frame.pts is None or not frame.time_base:
        return None
    start_s = frame.pts * frame.time_base
    return Shown(start_s, start_s + (frame.duration * frame.time_base if frame.duration else 1 / rate if rate else 0))


def _check_whole(file: File, stream: av.VideoStream, count: int) -> None:
    """Raise InvalidRequest if fewer frames than promised could be read, after the whole stream was read.

    FFmpeg's index has every sample that an MP4's tables and fragments name. Those that an edit list leaves out are
    missing or marked. `stream.frames` counts them all, but none of the fragments'; it is used for a GIF, whose index
    has only decoded frames. Some decoders fill in missing parts of a frame, so each sample's place is checked as well.
    A Matroska file's parts are checked by its headers.
    """
    promised = max(stream.frames, 1)
    if headers.format_of(file.data) == "mp4":
        shown = [entry for entry in stream.index_entries if not entry.is_discard]
        promised = len(shown) or promised
        if shown:
            count = min(count, sum(entry.pos + entry.size <= len(file.data) for entry in shown))
    if count < promised:
        raise InvalidRequest(file.place, f"{count} readable of {promised} frames", headers.WANTED_FILES[headers.VIDEO])
