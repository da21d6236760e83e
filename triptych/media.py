"""Pictures, videos and sound that a pipeline yields, as files.

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

from triptych.clips import Clip, clips, to_array
from triptych.errors import InvalidRequest
from triptych.v1 import model_pb2

FRAMES_PER_SECOND_DEFAULT = 16.0
"""Wan's rate, for models that don't say theirs."""
H264_CRF = "12"
"""Visually lossless: the file is a result to judge a model by, not a stream."""
H264_THREADS = 2
"""Fixed, because x264's output depends on it; two use the smallest machine whole."""
H264_PARAMETERS = "mbtree=0"
"""With macroblock-tree rate control x264 gives one of several files for some small clips, by chance."""
GIF_TICK_S = 0.01
"""GIF counts time in hundredths; a frame lasts at least two, since players take less for a mistake and go slow."""
_AUDIO_NAMES = ("audio", "audios")
_RATE_NAMES = ("frame_rate", "fps")


@dataclass(frozen=True)
class EncodedArtifact:
    """One file of a result."""

    name: str
    media_type: str
    data: bytes


def frames_per_second(description: model_pb2.ModelDescription) -> float:
    """The rate at which a model's videos play: what its folder recommends, its pipeline's default, or 16."""
    recommended = json.loads(description.defaults_json or "{}")
    for described in description.inputs:
        if described.name in _RATE_NAMES and described.default_json:
            recommended.setdefault(described.name, json.loads(described.default_json))
    for name in ("frames_per_second", *_RATE_NAMES):
        if isinstance(recommended.get(name), int | float) and recommended[name] > 0:
            return float(recommended[name])
    return FRAMES_PER_SECOND_DEFAULT


def encode_outputs(
    outputs: Mapping[str, object], output_format: str, frames_per_second: float
) -> list[EncodedArtifact]:
    """A pipeline's outputs as files: one a clip (`0.mp4`, `1.mp4`), audio as WAV, other data as NPY or JSON.

    `output_format` is `mp4`, `gif`, `png` (animated for videos), `npy` (the exact array), or empty: `mp4` for
    videos, `png` for images. Raises InvalidRequest for another, and where nothing can be shown in the one asked for.
    """
    if output_format and output_format not in _ENCODERS:
        raise InvalidRequest("output_format", output_format, "one of " + ", ".join(_ENCODERS))
    found, rest = clips(outputs)
    if not found and output_format not in ("", "npy"):
        raise InvalidRequest("output_format", output_format, "npy; this pipeline yielded no pictures")
    artifacts = []
    for clip in found:
        suffix = output_format or ("mp4" if clip.is_video else "png")
        media_type, encode = _ENCODERS[suffix]
        artifacts.append(EncodedArtifact(f"{clip.name}.{suffix}", media_type, encode(clip, frames_per_second)))
    rate = rest.get("sampling_rate")
    for name, value in rest.items():
        if name in _AUDIO_NAMES and isinstance(rate, int | float):
            artifacts += _encode_audio(value, int(rate))
        elif value is not None and not (name == "sampling_rate" and set(rest) & set(_AUDIO_NAMES)):
            artifacts.append(_encode_data(name, value))
    return artifacts


def _encode_mp4(clip: Clip, frames_per_second: float) -> bytes:
    """H.264, 4:2:0, BT.709; an odd side grows by one repeated row or column, because 4:2:0 halves both."""
    frames = _as_rgb(clip)
    _count, height, width, _channels = frames.shape
    frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(frames_per_second).limit_denominator(1001))
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        stream.options = {"crf": H264_CRF, "threads": str(H264_THREADS), "x264-params": H264_PARAMETERS}
        context = stream.codec_context
        context.color_range, context.colorspace = ColorRange.MPEG, Colorspace.ITU709
        context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        for rgb_HWC in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb_HWC), format="rgb24").reformat(
                format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


def _encode_gif(clip: Clip, frames_per_second: float) -> bytes:
    images = _pil_frames(clip)
    duration_ms = round(max(2, round(1 / frames_per_second / GIF_TICK_S)) * GIF_TICK_S * 1000)
    file = io.BytesIO()
    images[0].save(file, "GIF", save_all=True, append_images=images[1:], duration=duration_ms, loop=0)
    return file.getvalue()


def _encode_png(clip: Clip, frames_per_second: float) -> bytes:
    images = _pil_frames(clip)
    file = io.BytesIO()
    if len(images) == 1:
        images[0].save(file, "PNG")
    else:
        duration_ms = 1000 / frames_per_second
        images[0].save(file, "PNG", save_all=True, append_images=images[1:], duration=duration_ms, loop=0)
    return file.getvalue()


def _encode_npy(clip: Clip, _frames_per_second: float) -> bytes:
    return _npy(clip.frames_FHWC if clip.is_video else clip.frames_FHWC[0])


_ENCODERS: Mapping[str, tuple[str, Callable[[Clip, float], bytes]]] = {
    "mp4": ("video/mp4", _encode_mp4),
    "gif": ("image/gif", _encode_gif),
    "png": ("image/png", _encode_png),
    "npy": ("application/x-npy", _encode_npy),
}


def _encode_audio(value: object, sampling_rate_hz: int) -> list[EncodedArtifact]:
    """16-bit WAV files of waveforms in -1…1, shaped [samples], [B,samples] or [B,channels,samples]."""
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
        return EncodedArtifact(f"{name}.npy", "application/x-npy", _npy(array))
    try:
        text = json.dumps(value, ensure_ascii=False, sort_keys=True, default=_listed_numbers)
    except (TypeError, ValueError) as error:
        raise InvalidRequest(
            f"output {name}", type(value).__name__, "pictures, audio, arrays or JSON values"
        ) from error
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


def _as_rgb(clip: Clip) -> npt.NDArray[np.uint8]:
    frames = clip.bytes_FHWC()
    return np.repeat(frames, 3, axis=-1) if frames.shape[-1] == 1 else frames[..., :3]


def _pil_frames(clip: Clip) -> list[Image.Image]:
    frames = clip.bytes_FHWC()
    return [Image.fromarray(np.ascontiguousarray(frame[..., 0] if frame.shape[-1] == 1 else frame)) for frame in frames]
