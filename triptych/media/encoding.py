"""A pipeline's pictures, videos and sound as files. `formats` lists the output formats.

Equal input gives equal bytes: no time stamps are written, and the video encoder's number of threads is fixed.
"""

from __future__ import annotations

import io
import json
import wave
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from PIL import Image

from triptych.errors import InvalidRequest
from triptych.media import animation
from triptych.media.clips import Clip, clips, to_array
from triptych.media.decoding.pixels import over_white
from triptych.media.formats import FORMATS

H264_CRF = "12"
"""Visually lossless: users judge a model by this file."""
H264_THREADS = 2
"""Fixed, because x264's output depends on it. Two keep the smallest machine busy."""
H264_PARAMETERS = "mbtree=0"
"""With macroblock-tree rate control, x264 encodes some small clips differently from run to run."""
GIF_TICK_S = 0.01
"""GIF counts time in hundredths. A frame lasts at least two: players take less for a mistake and slow down."""
_AUDIO_NAMES = ("audio", "audios")


@dataclass(frozen=True)
class EncodedArtifact:
    """One file of a result."""

    name: str
    media_type: str
    data: bytes


def encode_outputs(
    outputs: Mapping[str, object], output_format: str, frames_per_second: float
) -> list[EncodedArtifact]:
    """A pipeline's outputs as files: one per clip (`0.mp4`, `1.mp4`), audio as WAV, other data as NPY or JSON.

    `output_format` is one of `FORMATS` (`png` is animated for videos, `npy` is the exact array), or empty for `mp4` of
    videos and `png` of images. Raises InvalidRequest for any other, and if the outputs have nothing to show in it.
    """
    if output_format and output_format not in FORMATS:
        raise InvalidRequest("output_format", output_format, "one of " + ", ".join(FORMATS))
    found, rest = clips(outputs)
    if not found and output_format not in ("", "npy"):
        raise InvalidRequest("output_format", output_format, "npy; this pipeline yielded no pictures")
    artifacts = []
    for clip in found:
        suffix = output_format or ("mp4" if clip.is_video else "png")
        data = ENCODERS[suffix](clip, frames_per_second)
        artifacts.append(EncodedArtifact(f"{clip.name}.{suffix}", FORMATS[suffix].media_type, data))
    rate = rest.get("sampling_rate")
    for name, value in rest.items():
        if name in _AUDIO_NAMES and isinstance(rate, int | float):
            artifacts += _encode_audio(value, int(rate))
        elif value is not None and not (name == "sampling_rate" and set(rest) & set(_AUDIO_NAMES)):
            artifacts.append(_encode_data(name, value))
    return artifacts


def _encode_mp4(clip: Clip, frames_per_second: float) -> bytes:
    """H.264, 4:2:0, BT.709. An odd side grows by one repeated row or column, because 4:2:0 halves both."""
    frames = np.stack([np.asarray(frame.convert("RGB")) for frame in _opaque_frames(clip)])
    _count, height, width, _channels = frames.shape
    frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(frames_per_second).limit_denominator(1001))
        _count, stream.height, stream.width, _channels = frames.shape
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": H264_CRF, "threads": str(H264_THREADS), "x264-params": H264_PARAMETERS}
        context = stream.codec_context
        context.color_range = ColorRange.MPEG
        context.colorspace = Colorspace.ITU709
        context.color_primaries = ColorPrimaries.BT709
        context.color_trc = ColorTrc.BT709
        for rgb_HWC in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb_HWC), format="rgb24").reformat(
                format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


def _encode_gif(clip: Clip, frames_per_second: float) -> bytes:
    return animation.gif(_opaque_frames(clip), max(2, round(1 / frames_per_second / GIF_TICK_S)))


def _encode_png(clip: Clip, frames_per_second: float) -> bytes:
    images = clip.images()
    if len(images) > 1:
        return animation.apng(images, 1 / frames_per_second)
    return animation.encoded(images[0], "PNG")


def _encode_npy(clip: Clip, _frames_per_second: float) -> bytes:
    return _npy(clip.frames_FHWC if clip.is_video else clip.frames_FHWC[0])


ENCODERS: Mapping[str, Callable[[Clip, float], bytes]] = {
    "mp4": _encode_mp4,
    "gif": _encode_gif,
    "png": _encode_png,
    "npy": _encode_npy,
}
"""A function from a clip and its frames per second to the bytes of a file, for each of `FORMATS`."""


def _encode_audio(value: object, sampling_rate_hz: int) -> list[EncodedArtifact]:
    """16-bit WAV files. Waveforms are in -1…1, shaped [samples], [B,samples] or [B,channels,samples]."""
    items = value if isinstance(value, list | tuple) else [value]
    arrays = [array for item in items if (array := to_array(item)) is not None]
    waveforms = arrays[0] if items[0] is value else np.stack(arrays)
    if waveforms.ndim < 3:
        waveforms = np.atleast_2d(waveforms)[:, None]
    batch_BCT = waveforms.reshape(len(waveforms), -1, waveforms.shape[-1])
    artifacts = []
    for index, waveform_CT in enumerate(batch_BCT):
        clipped = np.clip(np.nan_to_num(waveform_CT.astype(np.float64)), -1.0, 1.0)
        samples_TC = (clipped.T * 32767).round().astype("<i2")
        file = io.BytesIO()
        with wave.open(file, "wb") as writer:
            writer.setnchannels(samples_TC.shape[1])
            writer.setsampwidth(2)
            writer.setframerate(sampling_rate_hz)
            writer.writeframes(samples_TC.tobytes())
        artifacts.append(EncodedArtifact(f"{index}.wav", "audio/wav", file.getvalue()))
    return artifacts


def _encode_data(name: str, value: object) -> EncodedArtifact:
    array = to_array(value)
    if array is not None:
        return EncodedArtifact(f"{name}.npy", FORMATS["npy"].media_type, _npy(array))
    try:
        text = json.dumps(value, ensure_ascii=False, sort_keys=True, default=_listed_numbers)
    except (TypeError, ValueError) as error:
        accepted = "pictures, audio, arrays or JSON values"
        raise InvalidRequest(f"output {name}", type(value).__name__, accepted) from error
    return EncodedArtifact(f"{name}.json", "application/json", text.encode())


def _listed_numbers(value: object) -> object:
    array = np.asarray(value) if isinstance(value, np.generic) else to_array(value)
    if array is None:
        raise TypeError(f"{type(value).__name__} is no JSON value")
    return array.tolist()


def _npy(array: npt.NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(array), allow_pickle=False)
    return file.getvalue()


def _opaque_frames(clip: Clip) -> list[Image.Image]:
    """The frames with transparency laid over white, as for pictures of a request."""
    return [over_white(frame) if frame.mode == "RGBA" else frame for frame in clip.images()]
