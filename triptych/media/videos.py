"""A clip as a video file, with its sound where there is one."""

from __future__ import annotations

import io
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc

from triptych.errors import InvalidRequest
from triptych.media import containers, sounds
from triptych.media.clips import Clip
from triptych.media.formats import FORMATS, Codec
from triptych.media.pictures import opaque_frames
from triptych.media.sounds import Sound

_TAGS = {("mp4", "libx265"): "hvc1"}
"""Names of codecs in a file where players want another than FFmpeg's."""


def encode_video(
    clip: Clip,
    output_format: str,
    frames_per_second: float,
    *,
    codec: str = "",
    quality: int = 0,
    sound: Sound | None = None,
    metadata: Mapping[str, str] | None = None,
) -> bytes:
    """A video file: 4:2:0, BT.709. An odd side grows by one repeated row or column, because 4:2:0 halves both.

    Raises InvalidRequest where FFmpeg's library lacks the encoder, or it refuses the size.
    """
    codecs = FORMATS[output_format].codecs
    chosen = codecs[codec or next(iter(codecs))]
    frames = np.stack([np.asarray(frame.convert("RGB")) for frame in opaque_frames(clip)])
    _count, height, width, _channels = frames.shape
    frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    file = io.BytesIO()
    with containers.writing(file, output_format, metadata or {}) as container:
        stream = _add_pictures(container, output_format, chosen, frames.shape[1:3], frames_per_second, quality)
        track = None if sound is None else sounds.add_track(container, output_format, sound, {})
        found = []
        for rgb_HWC in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb_HWC), format="rgb24").reformat(
                format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
            )
            found += stream.encode(frame)
        found += stream.encode()
        if track is not None and sound is not None:
            found += sounds.packets(track, sound)
        for packet in sorted(found, key=_time):
            container.mux(packet)
    return file.getvalue()


def _add_pictures(
    container: Any, output_format: str, codec: Codec, size: tuple[int, ...], frames_per_second: float, quality: int
) -> Any:
    height, width = size
    if codec.encoder not in av.codecs_available:
        raise InvalidRequest("output.codec", codec.encoder, "another codec; this worker's FFmpeg can't write this one")
    stream = container.add_stream(codec.encoder, rate=Fraction(frames_per_second).limit_denominator(1001))
    stream.height, stream.width = height, width
    stream.pix_fmt = "yuv420p"
    stream.options = {"crf": str(codec.scale.at(quality)), **codec.options}
    context = stream.codec_context
    context.color_range = ColorRange.MPEG
    context.colorspace = Colorspace.ITU709
    context.color_primaries = ColorPrimaries.BT709
    context.color_trc = ColorTrc.BT709
    if tag := _TAGS.get((output_format, codec.encoder)):
        context.codec_tag = tag
    try:
        context.open()
    except av.error.FFmpegError as error:
        shown = f"{codec.encoder} for pictures of {width} x {height}"
        raise InvalidRequest("output.codec", shown, "a codec that takes this size, as h264 does") from error
    return stream


def _time(packet: Any) -> tuple[Fraction, int]:
    """When a packet is decoded: files have pictures and sound in this order, so that players need not seek."""
    return packet.dts * packet.time_base, packet.stream_index
