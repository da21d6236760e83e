"""The output formats: one table that requests are checked against, and that help, descriptions and errors are made of.

A new one needs an entry here and its encoder in the table `ENCODERS` of `encoding`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

STILL, MOVING, SOUND, DATA = "images", "videos", "sound", "data"
"""Kinds of outputs, in words for people."""
OUTPUT_NAMES: Mapping[str, tuple[str, ...]] = {
    STILL: ("images", "image"),
    MOVING: ("videos", "video", "frames"),
    SOUND: ("audio", "audios", "sound"),
}
"""What diffusers' pipelines call outputs of these kinds. Every other output is data."""
RUNS = "triptych.runs"
"""Where a stage that made several results one after another has them: a list of what each run yields."""
QUALITY_MAX = 100
"""The best quality that a request can ask of a format that loses something."""


class Scale(NamedTuple):
    """An encoder's own measure of quality."""

    worst: float
    best: float
    default: float

    def at(self, quality: int) -> int:
        """The encoder's number for a quality from 1 to `QUALITY_MAX`; its default for 0."""
        if not quality:
            return round(self.default)
        return round(self.worst + (self.best - self.worst) * (quality - 1) / (QUALITY_MAX - 1))


class Codec(NamedTuple):
    """An encoder of FFmpeg. Its options make equal input equal bytes."""

    encoder: str
    scale: Scale
    options: Mapping[str, str]


class Format(NamedTuple):
    """An output format. Its name in a request is also the suffix of its files."""

    media_type: str
    holds: frozenset[str]
    """Kinds of outputs that it can hold."""
    scale: Scale | None = None
    """Of formats without codecs; None for those that lose nothing, or have no choice."""
    codecs: Mapping[str, Codec] = {}
    """By name; the first is the default."""
    sound_encoder: str = ""
    """FFmpeg's encoder for sound: of a video's track, or of the whole file."""
    has_metadata: bool = True
    """Whether it has fields of its own for metadata."""

    @property
    def has_quality(self) -> bool:
        """Whether a request can choose the quality."""
        return self.scale is not None or bool(self.codecs)


_CRF = Scale(51, 1, 12)
"""x264's and x265's rate factor. 12 is visually lossless: users judge a model by this file. 0 would be a profile that
few players know."""
_WIDE_CRF = Scale(63, 1, 20)
_H264 = Codec("libx264", _CRF, {"threads": "2", "x264-params": "mbtree=0"})
"""x264's output depends on the number of threads; two keep the smallest machine busy. With macroblock-tree rate
control, it encodes some small clips differently from run to run."""
_HEVC = Codec("libx265", _CRF._replace(default=16), {"x265-params": "pools=none:frame-threads=1:log-level=error"})
_AV1 = Codec("libsvtav1", _WIDE_CRF, {"preset": "8", "svtav1-params": "lp=1"})
_VP9 = Codec("libvpx-vp9", _WIDE_CRF, {"b": "0", "threads": "1", "deadline": "good", "cpu-used": "4"})
_ALL = frozenset({STILL, MOVING, SOUND, DATA})

FORMATS: Mapping[str, Format] = {
    "mp4": Format("video/mp4", frozenset({MOVING}), None, {"h264": _H264, "hevc": _HEVC, "av1": _AV1}, "aac"),
    "webm": Format("video/webm", frozenset({MOVING}), None, {"vp9": _VP9, "av1": _AV1}, "libopus"),
    "gif": Format("image/gif", frozenset({MOVING})),
    "png": Format("image/png", frozenset({STILL, MOVING})),
    "jpeg": Format("image/jpeg", frozenset({STILL}), Scale(1, 100, 95)),
    "webp": Format("image/webp", frozenset({STILL}), Scale(1, 100, 92)),
    "avif": Format("image/avif", frozenset({STILL}), Scale(1, 100, 85)),
    "zip": Format("application/zip", frozenset({MOVING})),
    "wav": Format("audio/wav", frozenset({SOUND}), sound_encoder="pcm_s16le"),
    "flac": Format("audio/flac", frozenset({SOUND}), sound_encoder="flac"),
    "mp3": Format("audio/mpeg", frozenset({SOUND}), Scale(9, 0, 0), sound_encoder="libmp3lame"),
    "npy": Format("application/x-npy", _ALL, has_metadata=False),
    "safetensors": Format("application/x-safetensors", _ALL),
}
"""`png` is animated for videos, `zip` has each frame as a PNG, `npy` and `safetensors` the pipeline's own numbers."""
ALIASES: Mapping[str, str] = {"jpg": "jpeg"}
"""Other suffixes that a file's name may have."""
EXACT = tuple(name for name, one in FORMATS.items() if DATA in one.holds)
SOUND_FORMATS = tuple(name for name, one in FORMATS.items() if SOUND in one.holds)
THUMBNAILS = ("jpeg", "webp")
"""What a small picture beside the result may be."""
CODECS = tuple(dict.fromkeys(codec for one in FORMATS.values() for codec in one.codecs))


def kind_of(output: str) -> str:
    """The kind of a pipeline's output, by its name."""
    return next((kind for kind, names in OUTPUT_NAMES.items() if output in names), DATA)


def kinds_of(outputs: Iterable[str]) -> list[str]:
    """The kinds of a pipeline's outputs, without data."""
    found = {kind_of(output) for output in outputs}
    return [kind for kind in OUTPUT_NAMES if kind in found]


def formats_for(kinds: Iterable[str]) -> list[str]:
    """Names of the formats that can hold outputs of any of these kinds, or data."""
    wanted = {*kinds, DATA}
    return [name for name, one in FORMATS.items() if wanted & one.holds]


def default_format(kinds: Iterable[str]) -> str:
    """The format of a request that names none."""
    defaults = {MOVING: "mp4", STILL: "png", SOUND: "wav"}
    return next((defaults[kind] for kind in defaults if kind in set(kinds)), "npy")
