"""Reads and checks a file's size, frames and scans from its headers only, so nothing is decoded or allocated.

Headers may lie. They are checked first, because that gives a good message for little work; decoding has bounds of its
own. Formats: PNG (RFC 2083), JPEG (ITU-T T.81), WebP (RFC 9649), GIF89a and MP4 (ISO/IEC 14496-12).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from triptych.errors import InvalidRequest
from triptych.media.decoding import bounds

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
IMAGE_ACCEPTED = "the bytes of a whole picture: " + ", ".join(IMAGE_FORMATS)
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
MASK = "mask"
"""Part of diffusers' names of inputs that are masks."""
VIDEO_ACCEPTED = "the bytes of a whole video: MP4 or GIF"
_JPEG_MARKER = re.compile(rb"\xff+[\x01-\xcf\xd8-\xfe]")
"""The next marker after a scan's data: not a stuffed zero, and not a restart."""
_JPEG_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_BARE = frozenset((0x01, *range(0xD0, 0xD9)))
"""Markers without a length."""
_MP4_FOLDERS = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"moof", b"traf")


IMAGE, VIDEO, AUDIO = "image", "video", "audio"
"""What an input wants of a file: a picture, frames, sound."""


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


class Said(NamedTuple):
    """The promises of a file's headers. A size or count that they don't tell is 0."""

    width: int
    height: int
    frames: int = 1
    scans: int = 1


def check(files: Sequence[File]) -> None:
    """Raise InvalidRequest for the first file whose headers exceed a bound, alone or with the files before it."""
    budget = Budget()
    scan_pixels = 0
    for file in files:
        said = _read(file)
        budget.take(file, said.width, said.height, said.frames)
        scan_pixels += said.width * said.height * said.scans
        if scan_pixels > bounds.SCAN_PIXELS_MAX:
            shown = f"{said.width} × {said.height} pixels in {said.scans} scans or more"
            accepted = f"at most {bounds.SCAN_PIXELS_MAX} pixels times scans, all files together"
            raise InvalidRequest(file.place, shown, accepted)


class Budget:
    """Counts the frames and pixels of a request's files: those that headers promise, or those that are decoded."""

    def __init__(self) -> None:
        self._frames = 0
        self._pixels = 0

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


def _read(file: File) -> Said:
    """Read a file's headers. Raises InvalidRequest for an unknown format, or headers that can't be read."""
    data = file.data
    try:
        if data.startswith(b"GIF8"):
            return _gif(data, file.is_video)
        if file.is_video and data[4:8] == b"ftyp":
            return _mp4(file)
        if not file.is_video and data.startswith(PNG_SIGNATURE):
            return _png(data)
        if not file.is_video and data.startswith(b"\xff\xd8\xff"):
            return _jpeg(data)
        if not file.is_video and data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _webp(data)
    except (struct.error, IndexError) as error:
        raise refusal(file) from error
    raise refusal(file)


def refusal(file: File) -> InvalidRequest:
    """The error for a file that can't be read."""
    shown = f"{len(file.data)} bytes that begin with {file.data[:8].hex(' ')}"
    return InvalidRequest(file.place, shown, VIDEO_ACCEPTED if file.is_video else IMAGE_ACCEPTED)


def _png(data: bytes) -> Said:
    if data[12:16] != b"IHDR":
        raise struct.error("a PNG that doesn't begin with its header")
    return Said(*struct.unpack_from(">II", data, 16))


def png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the kind and content of each chunk of a PNG. Raises struct.error."""
    position = len(PNG_SIGNATURE)
    while position < len(data):
        size_bytes, kind = struct.unpack_from(">I4s", data, position)
        yield kind, data[position + 8 : position + 8 + size_bytes]
        position += 12 + size_bytes


def _jpeg(data: bytes) -> Said:
    position = 2
    scans = width = height = 0
    while scans * width * height <= bounds.SCAN_PIXELS_MAX:
        found = _JPEG_MARKER.search(data, position)
        if found is None or data[found.end() - 1] == 0xD9:
            break
        position = found.end()
        marker = data[position - 1]
        if marker in _JPEG_BARE:
            continue
        (length,) = struct.unpack_from(">H", data, position)
        if marker in _JPEG_SOF and not width:
            height, width = struct.unpack_from(">HH", data, position + 3)
        scans += marker == 0xDA
        position += max(length, 2)
    return Said(width, height, scans=max(scans, 1))


def _webp(data: bytes) -> Said:
    kind = data[12:16]
    if kind == b"VP8X":
        return Said(int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1)
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return Said((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return Said(width & 0x3FFF, height & 0x3FFF)
    raise struct.error("a WebP of an unknown kind")


def _gif(data: bytes, is_video: bool) -> Said:
    """The size and the number of frames. A picture's frames after the first are ignored."""
    frames = 0
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    position = 13 + gif_table_bytes(flags)
    while position < len(data) and data[position] != 0x3B:
        if data[position] == 0x2C:
            left, top, own_width, own_height, flags = struct.unpack_from("<HHHHB", data, position + 1)
            width = max(width, left + own_width)
            height = max(height, top + own_height)
            frames += 1
            if not is_video or frames > bounds.VIDEO_FRAMES_MAX:
                break
            position += 11 + gif_table_bytes(flags)
        elif data[position] == 0x21:
            position += 2
        else:
            break  # decoders stop here as well
        position = gif_blocks_end(data, position)
    return Said(width, height, frames if is_video else 1)


def gif_blocks_end(data: bytes, position: int) -> int:
    """Where a GIF's sequence of sub-blocks ends, after its block of length 0."""
    while position < len(data) and data[position]:
        position += 1 + data[position]
    return position + 1


def gif_table_bytes(flags: int) -> int:
    """The length of a GIF's colour table, by the flags before it."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _mp4(file: File) -> Said:
    """The largest frame of all video tracks, and the sum of their frames: FFmpeg reads each track."""
    data = file.data
    is_video = False
    width = height = frames = samples = 0
    for kind, start, end in _boxes(data):
        if kind == b"trak":
            is_video = False
        elif kind == b"hdlr":
            is_video = data[start + 8 : start + 12] == b"vide"
        elif kind == b"stsd" and is_video and end - start >= 44:
            own_width, own_height = struct.unpack_from(">HH", data, start + 40)
            width = max(width, own_width)
            height = max(height, own_height)
        elif kind in (b"stsz", b"stz2", b"trun"):
            (count,) = struct.unpack_from(">I", data, start + (4 if kind == b"trun" else 8))
            samples += count
            frames += count if is_video and kind != b"trun" else 0  # `trun` doesn't name its track
        elif kind == b"elst" and (count := struct.unpack_from(">I", data, start + 4)[0]) > bounds.EDITS_MAX:
            raise InvalidRequest(file.place, f"{count} edits", f"at most {bounds.EDITS_MAX} in an edit list")
        if samples > bounds.SAMPLES_MAX:
            accepted = f"at most {bounds.SAMPLES_MAX}, all tracks together"
            raise InvalidRequest(file.place, f"{samples} samples or more", accepted)
    return Said(width, height, frames)


def _boxes(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield each box's kind and the start and end of its content, in the file's order. Raises struct.error."""
    rest = [(0, len(data))]
    for _ in range(bounds.BOXES_MAX):
        while rest and rest[-1][0] + 8 > rest[-1][1]:
            rest.pop()
        if not rest:
            return
        start, limit = rest.pop()
        size, kind = struct.unpack_from(">I4s", data, start)
        head = 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, start + 8)
            head = 16
        if kind == b"moof" and start + size > limit:
            raise struct.error("a fragment that was cut")  # the file would look whole, up to the fragment before
        end = limit if size == 0 else min(start + size, limit)
        if end < start + head:
            raise struct.error("a box that ends before its content")
        rest.append((end, limit))
        yield kind, start + head, end
        if kind in _MP4_FOLDERS:
            rest.append((start + head, end))
    raise struct.error("too many boxes")
