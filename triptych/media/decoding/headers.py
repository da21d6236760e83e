"""Reads and checks a file's size, frames and scans from its headers only, so nothing is decoded or allocated.

Headers may lie. They are checked first, because that gives a good message for little work; decoding has bounds of its
own. Each family of formats has a module that reads it; here are the bounds, and which file is read by which.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from triptych.errors import InvalidRequest
from triptych.media.decoding import bounds, matroska_headers, mp4_headers, picture_headers, sound_headers
from triptych.media.decoding.said import Said

MASK = "mask"
"""Part of diffusers' names of inputs that are masks."""
IMAGE, VIDEO, AUDIO = "image", "video", "audio"
"""What an input wants of a file: a picture, frames, sound."""
WANTED_FORMATS: Mapping[str, tuple[str, ...]] = {
    IMAGE: ("png", "jpeg", "webp", "gif"),
    VIDEO: ("mp4", "matroska", "gif", "png", "webp"),
    AUDIO: ("wav", "flac", "mp3", "ogg", "aac", "mp4", "matroska"),
}
"""The formats of each. `mp4` stands for MOV and M4A, too, and `matroska` for WebM; `png` and `webp` are animated where
a video is wanted. Names are FFmpeg's, for those that it reads."""
WANTED_FILES: Mapping[str, str] = {
    IMAGE: "the bytes of a whole picture: PNG, JPEG, WEBP, GIF",
    VIDEO: "the bytes of a whole video: MP4, MOV, WebM, MKV, GIF, animated PNG or animated WebP",
    AUDIO: "the bytes of whole sound: WAV, FLAC, MP3, Ogg (Opus, Vorbis), M4A, AAC, or a video's",
}
_SIGNATURES: Mapping[bytes, str] = {
    picture_headers.PNG_SIGNATURE: "png",
    b"\xff\xd8\xff": "jpeg",
    b"GIF8": "gif",
    matroska_headers.SIGNATURE: "matroska",
    b"fLaC": "flac",
    b"OggS": "ogg",
}
"""What files begin with; some formats have no such beginning."""


class File(NamedTuple):
    """A file of a request, under the name of the input that takes it, or its path within it: `conditions[0].image`."""

    name: str
    kind: str
    """What is wanted of it: `IMAGE`, `VIDEO` or `AUDIO`."""
    data: bytes
    frame_pixels: int = 0
    """Size that the request asks for, to which the pipeline scales each picture or frame. It counts if it is larger
    than the file's own, or thousands of tiny frames could become as many large ones."""
    takes_alpha: bool = False
    """Whether the pipeline gets the picture's transparency, too."""
    is_crop_mask: bool = False
    """Whether the pipeline crops to this mask, so that it mustn't be empty."""
    field: str = ""
    """The request's field that holds it, for errors. Empty means `media.` and its name."""
    frames_per_second: float = 0
    """The pipeline's rate, which a video of uneven times is brought to. 0 where it has none."""
    sample_rate: int = 0
    """The pipeline's rate, which sound is brought to, in Hz. 0 keeps the file's own."""
    is_frame: bool = False
    """Whether it is one of the pictures that make a video, so that all of them must have one size."""

    @property
    def place(self) -> str:
        """The request's field that holds it."""
        return self.field or f"media.{self.name}"

    @property
    def is_video(self) -> bool:
        """Whether its frames are wanted."""
        return self.kind == VIDEO

    @property
    def is_mask(self) -> bool:
        """Whether it is a mask, which has no colours."""
        return MASK in self.name

    @property
    def mode(self) -> str:
        """How its pictures are given, in Pillow's terms: grey for masks, RGBA or RGB for others."""
        return "L" if self.is_mask else "RGBA" if self.takes_alpha else "RGB"


def check(files: Sequence[File]) -> None:
    """Raise InvalidRequest for the first file whose headers exceed a bound, alone or with the files before it."""
    budget = Budget()
    scan_pixels = 0
    sizes: dict[str, tuple[int, int]] = {}
    for file in files:
        said = _read(file)
        size = (said.width, said.height)
        first = sizes.setdefault(file.place.rpartition("[")[0], size) if file.is_frame else size
        if size != first:
            shown = "{} × {} pixels, after a frame of {} × {}".format(*size, *first)
            raise InvalidRequest(file.place, shown, "frames of one size")
        budget.take(file, said.width, said.height, said.frames)
        budget.take_sound(file, said.samples)
        scan_pixels += said.width * said.height * said.scans
        if scan_pixels > bounds.SCAN_PIXELS_MAX:
            shown = f"{said.width} × {said.height} pixels in {said.scans} scans or more"
            accepted = f"at most {bounds.SCAN_PIXELS_MAX} pixels times scans, all files together"
            raise InvalidRequest(file.place, shown, accepted)


class Budget:
    """Counts frames, pixels and samples of a request's files: what headers promise, or what is decoded."""

    def __init__(self) -> None:
        self._frames = 0
        self._pixels = 0
        self._samples = 0

    def take(self, file: File, width: int, height: int, frames: int = 1) -> None:
        """Count frames of a file. Raises InvalidRequest if they are too large, or too many with those before."""
        name = file.place
        if width * height > bounds.IMAGE_PIXELS_MAX:
            raise InvalidRequest(name, f"{width} × {height}", f"at most {bounds.IMAGE_PIXELS_MAX} pixels a picture")
        if frames > bounds.VIDEO_FRAMES_MAX:
            raise InvalidRequest(name, f"{frames} frames", f"at most {bounds.VIDEO_FRAMES_MAX}")
        self._frames += frames
        self._pixels += max(width * height, file.frame_pixels) * frames
        if self._frames > bounds.MEDIA_FRAMES_MAX or self._pixels > bounds.MEDIA_PIXELS_MAX:
            shown = f"{self._frames} frames and {self._pixels} pixels with the files before it"
            accepted = (
                f"at most {bounds.MEDIA_FRAMES_MAX} frames and {bounds.MEDIA_PIXELS_MAX} pixels, all files together, "
                "each frame as large as it is or as the request asks for"
            )
            raise InvalidRequest(name, shown, accepted)

    def take_sound(self, file: File, samples: int) -> None:
        """Count samples of a file's channels. Raises InvalidRequest if they are too many with those before."""
        self._samples += samples
        if self._samples > bounds.SOUND_SAMPLES_MAX:
            shown = f"{self._samples} samples of sound with the files before it"
            raise InvalidRequest(file.place, shown, f"at most {bounds.SOUND_SAMPLES_MAX}, all files together")


def format_of(data: bytes) -> str:
    """The format that a file's first bytes say: a name of `WANTED_FORMATS`, or nothing."""
    if data.startswith(b"RIFF"):
        return {b"WEBP": "webp", b"WAVE": "wav"}.get(data[8:12], "")
    for signature, name in _SIGNATURES.items():
        if data.startswith(signature):
            return name
    if data[4:8] in mp4_headers.FIRST_BOXES:
        return "mp4"
    start = sound_headers.after_id3(data)
    if sound_headers.is_aac(data, start):
        return "aac"
    return "mp3" if sound_headers.is_mp3(data, start) else ""


def _read(file: File) -> Said:
    """Read a file's headers. Raises InvalidRequest for an unknown format, or headers that can't be read."""
    name = format_of(file.data)
    if name not in WANTED_FORMATS[file.kind]:
        raise refusal(file)
    try:
        said = _READERS[name](file)
    except (struct.error, IndexError) as error:
        raise refusal(file) from error
    if file.kind == IMAGE:
        return said._replace(frames=1)  # an animation is refused when it is opened
    if file.kind == AUDIO:
        return said._replace(width=0, height=0, frames=0)
    if name in ("png", "webp") and not is_animated(file.data, name):
        raise refusal(file)
    return said


_READERS: Mapping[str, Callable[[File], Said]] = {
    "png": lambda file: picture_headers.png(file.data),
    "jpeg": lambda file: picture_headers.jpeg(file.data),
    "webp": lambda file: picture_headers.webp(file.data),
    "gif": lambda file: picture_headers.gif(file.data, file.is_video),
    "mp4": lambda file: mp4_headers.mp4(file.data, file.place),
    "matroska": lambda file: matroska_headers.matroska(file.data, file.place),
    "wav": lambda file: sound_headers.wav(file.data),
    "flac": lambda file: sound_headers.flac(file.data),
    "ogg": lambda file: sound_headers.ogg(file.data, file.place),
    "mp3": lambda file: sound_headers.mp3(file.data),
    "aac": lambda file: sound_headers.aac(file.data, file.place),
}


def is_animated(data: bytes, name: str) -> bool:
    """Whether a PNG or WebP holds an animation. Raises struct.error."""
    return bool(picture_headers.apng_frames(data) if name == "png" else picture_headers.webp_frames(data))


def refusal(file: File) -> InvalidRequest:
    """The error for a file that can't be read."""
    shown = f"{len(file.data)} bytes that begin with {file.data[:8].hex(' ')}"
    return InvalidRequest(file.place, shown, WANTED_FILES[file.kind])
