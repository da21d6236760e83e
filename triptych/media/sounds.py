"""A pipeline's sound as waveforms, and as files."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any, NamedTuple

import av
import numpy as np
import numpy.typing as npt

from triptych.errors import InvalidRequest
from triptych.media import containers
from triptych.media.clips import to_array
from triptych.media.formats import FORMATS

PCM_MAX = 32767
"""A sample of 1.0 in 16 bits."""
_LAYOUTS = {1: "mono", 2: "stereo", 3: "2.1", 4: "quad", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}
_BIT_RATE_OF_CHANNEL = 96_000
"""Of a video's track: transparent for AAC and for Opus."""


class Sound(NamedTuple):
    """One waveform: 16 bits a sample, shaped [channels, samples]."""

    samples_CT: npt.NDArray[np.int16]
    rate_hz: int


def waveforms(value: object, rate_hz: int, clip_count: int) -> list[Sound]:
    """The sound of each item of a batch; nothing for a value that is none.

    Waveforms are floats in -1…1: [samples], [B,samples], [B,channels,samples], or a list of them. Two axes beside one
    picture or video are [channels,samples], unless there are as many rows as clips.
    """
    items = list(value) if isinstance(value, list | tuple) else [value]
    arrays = [array for item in items if (array := to_array(item)) is not None]
    if not arrays or len(arrays) != len(items):
        return []
    whole = arrays[0] if not isinstance(value, list | tuple) else None
    if whole is None:
        parts = arrays
    elif whole.ndim == 2 and clip_count and len(whole) != clip_count:
        parts = [whole]
    elif whole.ndim in (2, 3):
        parts = list(whole)
    else:
        parts = [whole]
    if any(part.ndim not in (1, 2) or part.size == 0 or not np.issubdtype(part.dtype, np.floating) for part in parts):
        return []
    return [Sound(_pcm(np.atleast_2d(part)), rate_hz) for part in parts]


def _pcm(waveform_CT: npt.NDArray[Any]) -> npt.NDArray[np.int16]:
    """Samples in 16 bits. NaN becomes silence."""
    clipped = np.clip(np.nan_to_num(waveform_CT.astype(np.float64)), -1.0, 1.0)
    return (clipped * PCM_MAX).round().astype(np.int16)


def encode_sound(sound: Sound, output_format: str, quality: int, metadata: Mapping[str, str]) -> bytes:
    """A sound file. Raises InvalidRequest where the format can't hold so many channels."""
    one = FORMATS[output_format]
    file = io.BytesIO()
    options = {}
    if one.scale is not None:
        options = {"flags": "+qscale", "global_quality": str(one.scale.at(quality) * containers.QP_TO_LAMBDA)}
    with containers.writing(file, output_format, metadata) as container:
        stream = add_track(container, output_format, sound, options)
        for packet in packets(stream, sound):
            container.mux(packet)
    return file.getvalue()


def add_track(container: Any, output_format: str, sound: Sound, options: Mapping[str, str]) -> Any:
    """A stream of a file for this sound, at the nearest rate that its encoder has.

    Raises InvalidRequest for more channels than it takes.
    """
    encoder = FORMATS[output_format].sound_encoder
    channels = len(sound.samples_CT)
    rates = av.codec.Codec(encoder, "w").audio_rates or [sound.rate_hz]
    rate_hz = min((rate for rate in rates if rate >= sound.rate_hz), default=max(rates))
    stream = container.add_stream(encoder, rate=rate_hz, layout=_LAYOUTS.get(channels, "mono"))
    stream.options = dict(options)
    if not options and encoder not in ("flac", "pcm_s16le"):
        stream.bit_rate = channels * _BIT_RATE_OF_CHANNEL
    try:
        if channels not in _LAYOUTS:
            raise ValueError(channels)
        stream.codec_context.open()
    except (av.error.FFmpegError, ValueError) as error:
        accepted = "wav, flac or npy, which hold up to 8 channels" if channels in _LAYOUTS else "npy, or safetensors"
        raise InvalidRequest("output_format", f"{output_format} with {channels} channels", accepted) from error
    return stream


def packets(stream: Any, sound: Sound) -> list[Any]:
    """The encoded sound."""
    interleaved = np.ascontiguousarray(sound.samples_CT.T).reshape(1, -1)
    frame = av.AudioFrame.from_ndarray(interleaved, format="s16", layout=stream.layout.name)
    frame.sample_rate = sound.rate_hz
    frame.pts = 0
    return [*stream.encode(frame), *stream.encode(None)]
