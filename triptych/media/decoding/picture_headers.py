"""Reads the headers of pictures and animations: PNG (W3C), JPEG (ITU-T T.81), WebP (RFC 9649), GIF89a."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

from triptych.media.decoding import bounds
from triptych.media.decoding.said import Said

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_JPEG_MARKER = re.compile(rb"\xff+[\x01-\xcf\xd8-\xfe]")
"""The next marker after a scan's data: not a stuffed zero, and not a restart."""
_JPEG_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_BARE = frozenset((0x01, *range(0xD0, 0xD9)))
"""Markers without a length."""
_WEBP_ANIMATED = 0x02


def png(data: bytes) -> Said:
    """The size, and the frames that an animation says it has."""
    if data[12:16] != b"IHDR":
        raise struct.error("a PNG that doesn't begin with its header")
    width, height = struct.unpack_from(">II", data, 16)
    return Said(width, height, max(apng_frames(data), 1))


def apng_frames(data: bytes) -> int:
    """How many frames an animated PNG says it has; 0 for a picture. Raises struct.error."""
    for kind, content in png_chunks(data):
        if kind == b"acTL":
            return int(struct.unpack_from(">I", content)[0])
        if kind == b"IDAT":  # the count comes before the samples
            break
    return 0


def png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the kind and content of each chunk of a PNG. Raises struct.error."""
    position = len(PNG_SIGNATURE)
    while position < len(data):
        size_bytes, kind = struct.unpack_from(">I4s", data, position)
        yield kind, data[position + 8 : position + 8 + size_bytes]
        position += 12 + size_bytes


def jpeg(data: bytes) -> Said:
    """The size and the number of scans."""
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


def webp(data: bytes) -> Said:
    """The size and the number of frames. Raises struct.error, also for a file that was cut."""
    if struct.unpack_from("<I", data, 4)[0] + 8 > len(data) + 1:  # some programs leave out the byte that makes it even
        raise struct.error("a WebP that was cut")
    kind = data[12:16]
    if kind == b"VP8X":
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
        return Said(width, height, frames=max(webp_frames(data), 1))
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return Said((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return Said(width & 0x3FFF, height & 0x3FFF)
    raise struct.error("a WebP of an unknown kind")


def webp_frames(data: bytes) -> int:
    """How many frames an animated WebP has; 0 for a picture. Counts no further than a video may have."""
    frames = 0
    if data[12:16] != b"VP8X" or not data[20] & _WEBP_ANIMATED:
        return frames
    position = 12
    while position + 8 <= len(data) and frames <= bounds.VIDEO_FRAMES_MAX:
        frames += data[position : position + 4] == b"ANMF"
        (size_bytes,) = struct.unpack_from("<I", data, position + 4)
        position += 8 + size_bytes + size_bytes % 2
    return frames


def gif(data: bytes, is_video: bool) -> Said:
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
