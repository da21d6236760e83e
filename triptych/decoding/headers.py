"""What a file says of itself: size, frames, scans. Read from its headers only, so nothing is decoded or allocated.

A file may lie. What it says is checked first, because that gives a good sentence for little work; what it does is
bounded where it is decoded. Formats: PNG (RFC 2083), JPEG (ITU-T T.81), WebP (RFC 9649), GIF89a and MP4 (ISO/IEC
14496-12).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from triptych.decoding import bounds
from triptych.errors import InvalidRequest

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
IMAGE_ACCEPTED = "the bytes of a whole picture: " + ", ".join(IMAGE_FORMATS)
VIDEO_ACCEPTED = "the bytes of a whole video: MP4 or GIF"
_JPEG_MARKER = re.compile(rb"\xff+[\x01-\xcf\xd8-\xfe]")
"""The next marker behind a scan's data: not a stuffed zero, and not a restart."""
_JPEG_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_BARE = frozenset((0x01, *range(0xD0, 0xD9)))
"""Markers without a length."""
_MP4_FOLDERS = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"moof", b"traf")


class File(NamedTuple):
    """A file of a request, under the name of the input that takes it."""

    name: str
    is_video: bool
    data: bytes
    frame_pixels: int = 0
    """What the pipeline makes of each picture or frame: the size that the request asks for. It counts where it is more
    than the file's own, or thousands of tiny frames would become as many large ones."""


class Said(NamedTuple):
    """What a file's headers promise. Where a size or count isn't said, it is 0 here."""

    width: int
    height: int
    frames: int = 1
    scans: int = 1


class _Broken(Exception):
    """The headers can't be read; whoever decodes the file says so."""


def check(files: Sequence[File]) -> None:
    """Raises InvalidRequest for the first file that says it takes more than it may, alone or with those before it."""
    frames = pixels = scan_pixels = 0
    for file in files:
        said = read(file)
        size = said.width * said.height
        if size > bounds.IMAGE_PIXELS_MAX:
            shown = f"{said.width} × {said.height}"
            raise InvalidRequest(f"media.{file.name}", shown, f"at most {bounds.IMAGE_PIXELS_MAX} pixels a picture")
        if said.frames > bounds.VIDEO_FRAMES_MAX:
            raise InvalidRequest(f"media.{file.name}", f"{said.frames} frames", f"at most {bounds.VIDEO_FRAMES_MAX}")
        frames += said.frames
        pixels += max(size, file.frame_pixels) * said.frames
        scan_pixels += size * said.scans
        check_sums(file.name, frames, pixels)
        if scan_pixels > bounds.SCAN_PIXELS_MAX:
            shown = f"{said.width} × {said.height} pixels in {said.scans} scans or more"
            accepted = f"at most {bounds.SCAN_PIXELS_MAX} pixels times scans, all files together"
            raise InvalidRequest(f"media.{file.name}", shown, accepted)


def check_sums(name: str, frames: int, pixels: int) -> None:
    """Raises InvalidRequest where all files up to this one have more frames or pixels than a request may bring."""
    if frames > bounds.MEDIA_FRAMES_MAX or pixels > bounds.MEDIA_PIXELS_MAX:
        accepted = (
            f"at most {bounds.MEDIA_FRAMES_MAX} frames and {bounds.MEDIA_PIXELS_MAX} pixels, all files together, each "
            "frame as large as it is or as the request asks for"
        )
        raise InvalidRequest(f"media.{name}", f"{frames} frames and {pixels} pixels with the files before it", accepted)


class Budget:
    """Counts what files turn out to be, which may be more than they said."""

    def __init__(self) -> None:
        self._frames = self._pixels = 0

    def take(self, file: File, width: int, height: int) -> None:
        """One more picture or frame. Raises InvalidRequest when it is too large, or one too many."""
        if width * height > bounds.IMAGE_PIXELS_MAX:
            accepted = f"at most {bounds.IMAGE_PIXELS_MAX} pixels a picture"
            raise InvalidRequest(f"media.{file.name}", f"{width} × {height}", accepted)
        self._frames += 1
        self._pixels += max(width * height, file.frame_pixels)
        check_sums(file.name, self._frames, self._pixels)


def read(file: File) -> Said:
    """What a file says. Raises InvalidRequest for a format that isn't taken, or headers that can't be read."""
    for matches, reader in _VIDEO_READERS if file.is_video else _IMAGE_READERS:
        if matches(file.data):
            try:
                said = reader(file)
            except (_Broken, struct.error, IndexError) as error:
                raise refusal(file) from error
            return said if file.is_video else said._replace(frames=1)  # a picture's other frames aren't looked at
    raise refusal(file)


def refusal(file: File) -> InvalidRequest:
    """What to say of a file that can't be read."""
    shown = f"{len(file.data)} bytes that begin with {file.data[:8].hex(' ')}"
    return InvalidRequest(f"media.{file.name}", shown, VIDEO_ACCEPTED if file.is_video else IMAGE_ACCEPTED)


def _png(file: File) -> Said:
    if file.data[12:16] != b"IHDR":
        raise _Broken
    return Said(*struct.unpack_from(">II", file.data, 16))


def _jpeg(file: File) -> Said:
    data, position, scans, width, height = file.data, 2, 0, 0, 0
    while scans * width * height <= bounds.SCAN_PIXELS_MAX:
        found = _JPEG_MARKER.search(data, position)
        if found is None or data[found.end() - 1] == 0xD9:
            break
        marker, position = data[found.end() - 1], found.end()
        if marker in _JPEG_BARE:
            continue
        (length,) = struct.unpack_from(">H", data, position)
        if marker in _JPEG_SOF and not width:
            height, width = struct.unpack_from(">HH", data, position + 3)
        scans += marker == 0xDA
        position += max(length, 2)
    return Said(width, height, scans=max(scans, 1))


def _webp(file: File) -> Said:
    data, kind = file.data, file.data[12:16]
    if kind == b"VP8X":
        return Said(int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1)
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return Said((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return Said(width & 0x3FFF, height & 0x3FFF)
    raise _Broken


def _gif(file: File) -> Said:
    data, frames = file.data, 0
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    position = 13 + _gif_table_bytes(flags)
    while position < len(data) and data[position] != 0x3B:
        if data[position] == 0x2C:
            left, top, own_width, own_height, flags = struct.unpack_from("<HHHHB", data, position + 1)
            width, height, frames = max(width, left + own_width), max(height, top + own_height), frames + 1
            if not file.is_video or frames > bounds.VIDEO_FRAMES_MAX:
                break
            position += 11 + _gif_table_bytes(flags)
        elif data[position] == 0x21:
            position += 2
        else:
            break  # decoders stop here as well
        while position < len(data) and data[position]:
            position += 1 + data[position]
        position += 1
    return Said(width, height, frames)


def _gif_table_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _mp4(file: File) -> Said:
    """The largest frame of all video tracks, and their frames together: FFmpeg looks into each."""
    data, is_video = file.data, False
    width = height = frames = samples = 0
    for kind, start, end in _boxes(data):
        if kind == b"trak":
            is_video = False
        elif kind == b"hdlr":
            is_video = data[start + 8 : start + 12] == b"vide"
        elif kind == b"stsd" and is_video and end - start >= 44:
            own_width, own_height = struct.unpack_from(">HH", data, start + 40)
            width, height = max(width, own_width), max(height, own_height)
        elif kind in (b"stsz", b"stz2", b"trun"):
            (count,) = struct.unpack_from(">I", data, start + (4 if kind == b"trun" else 8))
            samples += count
            frames += count if is_video and kind != b"trun" else 0  # a fragment doesn't say here whose it is
        elif kind == b"elst" and (count := struct.unpack_from(">I", data, start + 4)[0]) > bounds.EDITS_MAX:
            raise InvalidRequest(f"media.{file.name}", f"{count} edits", f"at most {bounds.EDITS_MAX} in an edit list")
        if samples > bounds.SAMPLES_MAX:
            accepted = f"at most {bounds.SAMPLES_MAX}, all tracks together"
            raise InvalidRequest(f"media.{file.name}", f"{samples} samples or more", accepted)
    return Said(width, height, frames)


def _boxes(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Every box's kind, and where its contents start and end, in the order in which they stand."""
    rest = [(0, len(data))]
    for _ in range(bounds.BOXES_MAX):
        while rest and rest[-1][0] + 8 > rest[-1][1]:
            rest.pop()
        if not rest:
            return
        start, limit = rest.pop()
        (size,), kind, head = struct.unpack_from(">I", data, start), data[start + 4 : start + 8], 8
        if size == 1:
            (size,), head = struct.unpack_from(">Q", data, start + 8), 16
        end = limit if size == 0 else min(start + size, limit)
        if end < start + head:
            raise _Broken
        rest.append((end, limit))
        yield kind, start + head, end
        if kind in _MP4_FOLDERS:
            rest.append((start + head, end))
    raise _Broken


_Reader = tuple[Callable[[bytes], bool], Callable[[File], Said]]
_GIF: _Reader = (lambda data: data[:4] == b"GIF8", _gif)
_IMAGE_READERS: Sequence[_Reader] = (
    (lambda data: data[:8] == b"\x89PNG\r\n\x1a\n", _png),
    (lambda data: data[:3] == b"\xff\xd8\xff", _jpeg),
    (lambda data: data[:4] == b"RIFF" and data[8:12] == b"WEBP", _webp),
    _GIF,
)
_VIDEO_READERS: Sequence[_Reader] = ((lambda data: data[4:8] == b"ftyp", _mp4), _GIF)
