"""Reads the headers of Matroska and WebM (RFC 9559), which are a tree of elements (EBML, RFC 8794)."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from triptych.errors import InvalidRequest
from triptych.media.decoding import bounds
from triptych.media.decoding.said import Said

SIGNATURE = b"\x1a\x45\xdf\xa3"
_SEGMENT, _TRACKS, _TRACK, _VIDEO = 0x18538067, 0x1654AE6B, 0xAE, 0xE0
_CLUSTER, _BLOCK_GROUP = 0x1F43B675, 0xA0
_FOLDERS = (_SEGMENT, _TRACKS, _TRACK, _VIDEO, _CLUSTER, _BLOCK_GROUP)
_MAY_BE_OPEN = (_SEGMENT, _CLUSTER)
"""Programs that write while they record don't know how long these become."""
_NUMBER, _TYPE, _WIDTH, _HEIGHT = 0xD7, 0x83, 0xB0, 0xBA
_BLOCKS = (0xA3, 0xA1)
"""SimpleBlock and Block: a frame each."""
_IS_VIDEO = 1
_CHECKSUM = 0xBF
"""CRC-32: the first element of a folder, about the rest of it. Some programs write none."""


def matroska(data: bytes, place: str) -> Said:
    """The largest frame of all video tracks, and the sum of their frames.

    Raises struct.error for a file that was cut, and InvalidRequest, which names the request's field `place`, for one
    of too many parts.
    """
    tracks: list[dict[int, int]] = []
    blocks: dict[int, int] = {}
    for kind, start, end in _elements(data, place):
        if kind == _TRACK:
            tracks.append({})
        elif kind in (_NUMBER, _TYPE, _WIDTH, _HEIGHT) and tracks:
            tracks[-1][kind] = int.from_bytes(data[start:end])
        elif kind in _BLOCKS:
            number, _ = _number(data, start, keeps_marker=False)
            blocks[number] = blocks.get(number, 0) + 1
    videos = [track for track in tracks if track.get(_TYPE) == _IS_VIDEO]
    return Said(
        max((track.get(_WIDTH, 0) for track in videos), default=0),
        max((track.get(_HEIGHT, 0) for track in videos), default=0),
        sum(blocks.get(track.get(_NUMBER, 0), 0) for track in videos),
    )


def _elements(data: bytes, place: str) -> Iterator[tuple[int, int, int]]:
    """Yield each element's id and the start and end of its content, those of a folder after it. Raises struct.error."""
    position, limit = 0, len(data)
    opened_end = 0
    for _ in range(bounds.BOXES_MAX):
        if position >= limit:
            return
        kind, position = _number(data, position, keeps_marker=True)
        size_at = position
        size_bytes, position = _number(data, position, keeps_marker=False)
        is_open = size_bytes == (1 << 7 * (position - size_at)) - 1
        end = limit if is_open else position + size_bytes
        if end > limit or (is_open and kind not in _MAY_BE_OPEN):
            raise struct.error("an element that was cut")
        if kind == _SEGMENT:
            limit = end
        if (
            kind == _CHECKSUM
            and opened_end
            and data[position:end] != zlib.crc32(data[end:opened_end]).to_bytes(4, "little")
        ):
            raise struct.error("a folder whose checksum is another's")
        yield kind, position, end
        opened_end = end if kind in _FOLDERS and not is_open else 0
        if kind not in _FOLDERS:
            position = end
    raise InvalidRequest(place, f"more than {bounds.BOXES_MAX} elements", f"at most {bounds.BOXES_MAX}")


def _number(data: bytes, position: int, *, keeps_marker: bool) -> tuple[int, int]:
    """A number of variable length, and where it ends. The zeros before its first bit say how many bytes follow."""
    if position >= len(data) or not data[position]:
        raise struct.error("no number")
    length = 9 - data[position].bit_length()
    if position + length > len(data):
        raise struct.error("a number that was cut")
    value = int.from_bytes(data[position : position + length])
    return value if keeps_marker else value & (1 << 7 * length) - 1, position + length
