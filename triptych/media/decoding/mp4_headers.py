"""Reads the headers of MP4 (ISO/IEC 14496-12) and MOV (QuickTime File Format), which are a tree of boxes."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from triptych.errors import InvalidRequest
from triptych.media.decoding import bounds
from triptych.media.decoding.said import Said

FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
"""Kinds that a file may begin with: MP4 with the first, QuickTime's older files with any."""
_OF_DATA = b"dhlr"
"""A track's second handler in QuickTime's files, which says where its samples lie."""
_FOLDERS = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"moof", b"traf")


def mp4(data: bytes, place: str) -> Said:
    """The largest frame of all video tracks, and the sum of their frames: FFmpeg reads each track.

    Raises struct.error, and InvalidRequest, which names the request's field `place`, for tables that are too long.
    """
    is_video = False
    width = height = frames = samples = 0
    for kind, start, end in _boxes(data):
        if kind == b"trak":
            is_video = False
        elif kind == b"hdlr" and data[start + 4 : start + 8] != _OF_DATA:
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
            raise InvalidRequest(place, f"{count} edits", f"at most {bounds.EDITS_MAX} in an edit list")
        if samples > bounds.SAMPLES_MAX:
            accepted = f"at most {bounds.SAMPLES_MAX}, all tracks together"
            raise InvalidRequest(place, f"{samples} samples or more", accepted)
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
        if kind in _FOLDERS:
            rest.append((start + head, end))
    raise struct.error("too many boxes")
