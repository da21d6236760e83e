"""A pipeline's pictures, videos, sound and data as the files of a result. `formats` lists the output formats.

Equal input gives equal bytes: no time stamps are written, and encoders' numbers of threads are fixed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from triptych.errors import InvalidRequest
from triptych.media import arrays, pictures
from triptych.media.clips import Clip, to_array
from triptych.media.formats import EXACT, FORMATS, MOVING, SOUND, default_format
from triptych.media.made import Made, exact_values, gather
from triptych.media.sounds import encode_sound
from triptych.media.videos import encode_video
from triptych.v1.job_pb2 import OutputOptions

THUMBNAIL = "thumbnail"
"""Part of a small picture's name: `0.thumbnail.webp`."""
_NOTHING = OutputOptions()


@dataclass(frozen=True)
class EncodedArtifact:
    """One file of a result."""

    name: str
    media_type: str
    data: bytes


def encode_outputs(
    outputs: Mapping[str, object],
    output_format: str,
    frames_per_second: float,
    options: OutputOptions = _NOTHING,
    *,
    sampling_rate_hz: int = 0,
    metadata_json: str = "",
) -> list[EncodedArtifact]:
    """A pipeline's outputs as files: one per clip (`0.mp4`, `1.mp4`) or sound, other data as NPY or JSON.

    `output_format` is one of `FORMATS`, or empty for the default of what was made. Sound goes into a video file where
    there is one for each, else beside the pictures. `sampling_rate_hz` is its rate, unless the outputs tell it.
    Raises InvalidRequest for a format that can't hold what was made, and for what an encoder can't take.
    """
    made = gather(outputs, sampling_rate_hz)
    maker = _Maker(outputs, made, frames_per_second, options, metadata_json)
    accepted = made.accepted()
    for field, name in (("output_format", output_format), *(("output.also_formats", n) for n in options.also_formats)):
        if name and name not in accepted:
            raise InvalidRequest(field, name, f"{', '.join(accepted)}, for what this pipeline yielded")
    kinds = [MOVING if clip.is_video else "images" for clip in made.clips] + [SOUND] * bool(made.sounds)
    chosen = output_format or default_format(kinds)
    files = maker.files(chosen)
    for name in options.also_formats:
        files += maker.files(name)
    files += maker.beside(chosen)
    return list({file.name: file for file in files}.values())


class _Maker:
    """Makes the files of one result."""

    def __init__(
        self, outputs: Mapping[str, object], made: Made, fps: float, options: OutputOptions, metadata_json: str
    ) -> None:
        self._outputs = outputs
        self._made = made
        self._fps = fps
        self._options = options
        self._comment = metadata_json
        self._tags = {"comment": metadata_json} if metadata_json else {}

    def files(self, name: str) -> list[EncodedArtifact]:
        """The files of one format, in the order of clips."""
        made = self._made
        if name == "safetensors":
            if values := exact_values(self._outputs):
                return [_artifact("0", name, arrays.encode_safetensors(values, self._comment))]
            return []
        if SOUND in FORMATS[name].holds and name not in EXACT:
            return self._sound_files(name)
        files = [_artifact(clip.name, name, self._encode(clip, name, i)) for i, clip in enumerate(made.clips)]
        if name == "npy":
            files += [
                _artifact(output, name, arrays.encode_npy(array))
                for output, array in _arrays_of(made.sound_values).items()
            ]
        return files

    def beside(self, chosen: str) -> list[EncodedArtifact]:
        """Sound that is in no file yet or asked for by itself, small pictures, data, and metadata without a place."""
        made = self._made
        options = self._options
        files: list[EncodedArtifact] = []
        if options.thumbnail:
            for clip in made.clips:
                data = pictures.encode_thumbnail(clip, options.thumbnail)
                files.append(_artifact(f"{clip.name}.{THUMBNAIL}", options.thumbnail, data))
        if made.sounds and not self._holds_sound(chosen):
            files += self._separate_sound(options.audio_format or "wav")
        elif made.sounds and options.audio_format:
            files += self._separate_sound(options.audio_format)
        if chosen != "safetensors":
            files += [_data(name, value) for name, value in made.data.items()]
        else:
            rest = {name: value for name, value in made.data.items() if not _is_exact(value)}
            files += [_data(name, value) for name, value in rest.items()]
        if self._comment and not FORMATS[chosen].has_metadata:
            files.append(EncodedArtifact("metadata.json", "application/json", self._comment.encode()))
        return files

    def _encode(self, clip: Clip, name: str, index: int) -> bytes:
        options = self._options
        if name == "npy":
            return arrays.encode_npy(clip.frames_FHWC if clip.is_video else clip.frames_FHWC[0])
        if FORMATS[name].codecs:
            codec = options.codec if options.codec in FORMATS[name].codecs else ""
            return encode_video(
                clip,
                name,
                self._fps,
                codec=codec,
                quality=options.quality,
                sound=self._made.sounds[index] if self._is_muxed else None,
                metadata=self._tags,
            )
        return pictures.ENCODERS[name](clip, self._fps, options.quality, self._comment)

    def _separate_sound(self, name: str) -> list[EncodedArtifact]:
        if name == "npy":
            found = _arrays_of(self._made.sound_values)
            return [_artifact(output, name, arrays.encode_npy(array)) for output, array in found.items()]
        if name == "safetensors":
            values = exact_values(self._made.sound_values)
            return [_artifact("sound", name, arrays.encode_safetensors(values, self._comment))]
        return self._sound_files(name)

    def _sound_files(self, name: str) -> list[EncodedArtifact]:
        quality = self._options.quality
        return [
            _artifact(str(index), name, encode_sound(sound, name, quality, self._tags))
            for index, sound in enumerate(self._made.sounds)
        ]

    def _holds_sound(self, chosen: str) -> bool:
        """Whether the sound is in files of the chosen format already."""
        one = FORMATS[chosen]
        return SOUND in one.holds or (bool(one.codecs) and self._is_muxed)

    @property
    def _is_muxed(self) -> bool:
        """Whether there is one sound for each clip."""
        return bool(self._made.sounds) and len(self._made.sounds) == len(self._made.clips)


def _artifact(name: str, output_format: str, data: bytes) -> EncodedArtifact:
    return EncodedArtifact(f"{name}.{output_format}", FORMATS[output_format].media_type, data)


def _arrays_of(values: Mapping[str, object]) -> dict[str, npt.NDArray[Any]]:
    """Arrays by name; a list's items have their number."""
    found = {name: to_array(value) for name, value in exact_values(values).items()}
    return {name: array for name, array in found.items() if array is not None}


def _is_exact(value: object) -> bool:
    return bool(exact_values({"value": value}))


def _data(name: str, value: object) -> EncodedArtifact:
    array = to_array(value)
    if array is not None:
        return _artifact(name, "npy", arrays.encode_npy(array))
    return EncodedArtifact(f"{name}.json", "application/json", arrays.encode_json(name, value))
