"""Decodes sound by FFmpeg: float32 samples of mono or stereo, at the file's own rate or another."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from triptych.errors import InvalidRequest
from triptych.media.decoding import headers
from triptych.media.decoding.headers import Budget, File
from triptych.media.decoding.values import Sound

CHANNELS_MAX = 2
"""More than stereo would have to be mixed down, which can be done in several ways."""
SAMPLE_RATE_MIN, SAMPLE_RATE_MAX = 1000, 768_000
"""Of sound, in Hz: telephones have 8000, the finest recorders 768,000."""
PADDING_MAX = 4096
"""Most samples that an encoder adds to fill its last frame: AAC's longest frame has 2048, half of Vorbis' 4096."""
_PADDED = ("mp4", "ogg")
"""Formats that say how long the sound is without that."""


def pieces(file: File, budget: Budget) -> Iterator[Sound]:
    """Yield a file's sound, or that of a video, piece by piece. Raises InvalidRequest, MemoryError."""
    name = headers.format_of(file.data)
    try:
        # The container is named, never probed, as for videos.
        with av.open(io.BytesIO(file.data), "r", format=name) as container:
            if not container.streams.audio:
                raise InvalidRequest(file.place, "a file without sound", headers.WANTED_FILES[headers.AUDIO])
            stream = container.streams.audio[0]
            if stream.codec_context is None:  # FFmpeg lacks the codec
                raise headers.refusal(file)
            _check_kind(file, stream)
            arrays = list(_arrays(file, container, stream, budget))
            _check_whole(file, stream, name, arrays)
            if name in _PADDED:
                _cut_padding(stream, arrays)
            yield from _at_rate(file, stream, arrays, budget)
    except (InvalidRequest, MemoryError):  # FFmpeg's MemoryError is an OSError, too
        raise
    except (av.FFmpegError, OSError, ValueError, IndexError) as error:
        raise headers.refusal(file) from error


def _check_kind(file: File, stream: av.AudioStream) -> None:
    channels, rate = stream.codec_context.channels, stream.codec_context.sample_rate
    if not 1 <= channels <= CHANNELS_MAX:
        raise InvalidRequest(file.place, f"sound of {channels} channels", "mono or stereo: mix it down first")
    if not SAMPLE_RATE_MIN <= rate <= SAMPLE_RATE_MAX:
        raise InvalidRequest(file.place, f"sound at {rate} Hz", f"{SAMPLE_RATE_MIN} to {SAMPLE_RATE_MAX} Hz")


def _arrays(file: File, container: Any, stream: av.AudioStream, budget: Budget) -> Iterator[npt.NDArray[np.float32]]:
    """Yield the samples at the file's own rate, which only changes their type."""
    as_float = av.AudioResampler("fltp", stream.layout, stream.codec_context.sample_rate)
    for frame in (*container.decode(stream), None):
        for converted in as_float.resample(frame):
            samples_CN: Any = converted.to_ndarray()
            if not np.isfinite(samples_CN).all():
                raise InvalidRequest(file.place, "sound with samples that aren't finite", "finite samples")
            budget.take_sound(file, samples_CN.size)
            yield samples_CN


def _check_whole(file: File, stream: av.AudioStream, name: str, arrays: Sequence[npt.NDArray[np.float32]]) -> None:
    """Raise InvalidRequest if fewer samples than promised could be read. What headers tell is checked before."""
    count = sum(samples_CN.shape[1] for samples_CN in arrays)
    promised = _promised(stream) if name == "flac" else 1
    if name == "mp4" and any(entry.pos + entry.size > len(file.data) for entry in stream.index_entries):
        raise InvalidRequest(file.place, "sound that was cut", headers.WANTED_FILES[headers.AUDIO])
    if count < promised:
        raise InvalidRequest(file.place, f"{count} readable of {promised} samples", headers.WANTED_FILES[headers.AUDIO])


def _promised(stream: av.AudioStream) -> int:
    if not stream.duration or not stream.time_base:
        return 1
    return round(stream.duration * stream.time_base * stream.codec_context.sample_rate)


def _cut_padding(stream: av.AudioStream, arrays: list[npt.NDArray[np.float32]]) -> None:
    """Take away what an encoder added to fill its last frame, which players don't play either."""
    excess = sum(samples_CN.shape[1] for samples_CN in arrays) - _promised(stream)
    if stream.duration and 0 < excess <= PADDING_MAX:
        while excess >= arrays[-1].shape[1]:
            excess -= arrays.pop().shape[1]
        arrays[-1] = arrays[-1][:, : arrays[-1].shape[1] - excess]


def _at_rate(
    file: File, stream: av.AudioStream, arrays: Sequence[npt.NDArray[np.float32]], budget: Budget
) -> Iterator[Sound]:
    own_rate = stream.codec_context.sample_rate
    if file.sample_rate in (0, own_rate):
        yield from (Sound(samples_CN, own_rate) for samples_CN in arrays)
        return
    resampler = av.AudioResampler("fltp", stream.layout, file.sample_rate)
    for samples_CN in (*arrays, None):
        frame = None
        if samples_CN is not None:
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples_CN), "fltp", stream.layout)
            frame.sample_rate = own_rate
        for converted in resampler.resample(frame):
            found: Any = converted.to_ndarray()
            budget.take_sound(file, found.size)
            yield Sound(found, file.sample_rate)
