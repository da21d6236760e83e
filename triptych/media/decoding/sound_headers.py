"""Reads the headers of sound: WAV, FLAC (RFC 9639), Ogg (RFC 3533), MP3 and AAC (ISO/IEC 11172-3, 13818-7).

Each reader raises struct.error for a file that can't be read, or that was cut where its headers can tell.
"""

from __future__ import annotations

import re
import struct

from triptych.errors import InvalidRequest
from triptych.media.decoding import bounds
from triptych.media.decoding.said import Said

_OGG_PAGE = struct.Struct("<4sBBqIIIB")
_OGG_IS_LAST = 0x04
_ID3_HEAD_BYTES = 10
_OPEN_BYTES = 0xFFFFFFFF
"""What a program writes as the size of a WAV when it can't go back to its beginning."""
_XING = re.compile(rb"Xing|Info")
_XING_AT_MAX = 64
"""The latest place of the counts in the first frame of an MP3: after its head, a checksum and 32 bytes."""
_HAS_FRAMES, _HAS_BYTES = 1, 2


def wav(data: bytes) -> Said:
    """Whether the samples are all there; their number is the file's size."""
    position = 12
    while position + 8 <= len(data):
        kind, size_bytes = struct.unpack_from("<4sI", data, position)
        if kind == b"data":
            if size_bytes != _OPEN_BYTES and position + 8 + size_bytes > len(data):
                raise struct.error("samples that were cut")
            return Said(frames=0)
        position += 8 + size_bytes + size_bytes % 2
    raise struct.error("no samples")


def flac(data: bytes) -> Said:
    """The number of samples."""
    if len(data) < 26:
        raise struct.error("a FLAC without its first block")
    bits = int.from_bytes(data[18:26])  # 20 bits of rate, 3 of channels, 5 of depth, 36 of samples
    return Said(frames=0, samples=((bits >> 41 & 0x7) + 1) * (bits & (1 << 36) - 1))


def ogg(data: bytes, place: str) -> Said:
    """Whether the last page is there. Raises InvalidRequest, which names the request's field `place`, for too many."""
    position = flags = 0
    for _ in range(bounds.BOXES_MAX):
        if position >= len(data):
            if not flags & _OGG_IS_LAST:
                raise struct.error("an Ogg without its last page")
            return Said(frames=0)
        sign, _version, flags, *_, segments = _OGG_PAGE.unpack_from(data, position)
        sizes = data[position + _OGG_PAGE.size : position + _OGG_PAGE.size + segments]
        position += _OGG_PAGE.size + segments + sum(sizes)
        if sign != b"OggS" or position > len(data):
            raise struct.error("a page that was cut")
    raise InvalidRequest(place, f"more than {bounds.BOXES_MAX} pages", f"at most {bounds.BOXES_MAX}")


def after_id3(data: bytes) -> int:
    """Where the sound of an MP3 or AAC begins, after its tags."""
    if not data.startswith(b"ID3") or len(data) < _ID3_HEAD_BYTES:
        return 0
    size_bytes = 0
    for byte in data[6:10]:
        size_bytes = size_bytes << 7 | byte & 0x7F
    return _ID3_HEAD_BYTES + size_bytes + (_ID3_HEAD_BYTES if data[5] & 0x10 else 0)


def mp3(data: bytes) -> Said:
    """Whether the bytes that the first frame counts are all there. Files without that count can't be told."""
    start = after_id3(data)
    found = _XING.search(data, start, start + _XING_AT_MAX)
    if found:
        (flags,) = struct.unpack_from(">I", data, found.end())
        if flags & _HAS_BYTES:
            (size_bytes,) = struct.unpack_from(">I", data, found.end() + (8 if flags & _HAS_FRAMES else 4))
            if start + size_bytes > len(data):
                raise struct.error("an MP3 that was cut")
    return Said(frames=0)


def aac(data: bytes, place: str) -> Said:
    """Whether the last frame is whole. Raises InvalidRequest, which names the request's field, for too many frames."""
    position = after_id3(data)
    for _ in range(bounds.BOXES_MAX):
        if position + 7 > len(data) or not is_aac(data, position):
            break  # what comes after the frames, such as tags, isn't sound
        length = (data[position + 3] & 0x3) << 11 | data[position + 4] << 3 | data[position + 5] >> 5
        if length < 7 or position + length > len(data):
            raise struct.error("a frame that was cut")
        position += length
    else:
        raise InvalidRequest(place, f"more than {bounds.BOXES_MAX} frames", f"at most {bounds.BOXES_MAX}")
    return Said(frames=0)


def is_aac(data: bytes, position: int) -> bool:
    """Whether a frame of AAC (ADTS) begins here: 12 bits, and a layer of 0."""
    return data[position : position + 2] in (b"\xff\xf0", b"\xff\xf1", b"\xff\xf8", b"\xff\xf9")


def is_mp3(data: bytes, position: int) -> bool:
    """Whether a frame of MP3 begins here: 11 bits, a known version, and the third layer."""
    second = data[position + 1] if position + 1 < len(data) else 0
    return data[position : position + 1] == b"\xff" and second & 0xE6 == 0xE2 and second & 0x18 != 0x08
