"""Animated GIF and PNG files that keep every frame, even one that equals the frame before it.

Pillow merges equal frames into one that lasts longer, which changes the number of frames. So Pillow encodes each frame
as a file of its own, and their frames are joined here (GIF89a; APNG of PNG's third edition).
"""

from __future__ import annotations

import io
import itertools
import struct
import zlib
from collections.abc import Sequence
from fractions import Fraction

from PIL import Image

from triptych.media.decoding.picture_headers import PNG_SIGNATURE, gif_blocks_end, gif_table_bytes, png_chunks

_GIF_HEADER_BYTES = 13
_GIF_FOREVER = b"\x21\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00"
_GIF_STAYS = 1 << 2
"""Disposal: the frame stays until the next one is drawn over all of it."""
_HAS_TABLE = 0x80
_TABLE_SIZE = 0x07
DELAY_MAX = 65535
"""Longest time of a frame: both formats count it in 16 bits."""


def gif(images: Sequence[Image.Image], ticks: int, comment: str = "") -> bytes:
    """A looping GIF of frames of one size. Each lasts `ticks` hundredths of a second and has its own colours."""
    width, height = images[0].size
    parts = [b"GIF89a", struct.pack("<HHBBB", width, height, 0x70, 0, 0), _GIF_FOREVER, _gif_comment(comment)]
    control = b"\x21\xf9\x04" + struct.pack("<BHBB", _GIF_STAYS, min(ticks, DELAY_MAX), 0, 0)
    for image in images:
        size_code, table, data = _gif_frame(encoded(image, "GIF", interlace=False))
        place = b"\x2c" + struct.pack("<HHHHB", 0, 0, width, height, _HAS_TABLE | size_code)
        parts += [control, place, table, data]
    return b"".join([*parts, b"\x3b"])


def apng(images: Sequence[Image.Image], seconds: float, comment: str = "") -> bytes:
    """A looping APNG of frames of one size and mode, each for `seconds`."""
    width, height = images[0].size
    delay = Fraction(seconds).limit_denominator(DELAY_MAX)
    place = struct.pack(">IIIIHHBB", width, height, 0, 0, delay.numerator, delay.denominator, 0, 0)
    parts = [PNG_SIGNATURE]
    numbers = itertools.count()
    for index, image in enumerate(images):
        (_, header), *chunks = png_chunks(encoded(image, "PNG"))
        if index == 0:
            parts += [_chunk(b"IHDR", header), _chunk(b"acTL", struct.pack(">II", len(images), 0))]
            parts += [_chunk(b"iTXt", b"Comment\0\0\0\0\0" + comment.encode())] if comment else []
        parts.append(_chunk(b"fcTL", struct.pack(">I", next(numbers)) + place))
        pixels = [data for kind, data in chunks if kind == b"IDAT"]
        if index == 0:
            parts += [_chunk(b"IDAT", data) for data in pixels]
        else:
            parts += [_chunk(b"fdAT", struct.pack(">I", next(numbers)) + data) for data in pixels]
    return b"".join([*parts, _chunk(b"IEND", b"")])


def encoded(image: Image.Image, file_format: str, **options: object) -> bytes:
    """The file that Pillow writes of one image."""
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def _gif_comment(text: str) -> bytes:
    """A comment extension, in blocks of at most 255 bytes; nothing without text."""
    data = text.encode()
    blocks = [data[start : start + 255] for start in range(0, len(data), 255)]
    return b"".join([b"\x21\xfe", *(bytes([len(block)]) + block for block in blocks), b"\0"]) if data else b""


def _gif_frame(data: bytes) -> tuple[int, bytes, bytes]:
    """The size code of the colour table, the colour table and the picture, of Pillow's GIF of one frame."""
    flags = data[10]
    position = _GIF_HEADER_BYTES + gif_table_bytes(flags)
    size_code = flags & _TABLE_SIZE
    table = data[_GIF_HEADER_BYTES:position]
    while data[position] == 0x21:
        position = gif_blocks_end(data, position + 2)
    flags = data[position + 9]
    position += 10
    if flags & _HAS_TABLE:
        size_code = flags & _TABLE_SIZE
        table = data[position : position + gif_table_bytes(flags)]
        position += len(table)
    return size_code, table, data[position : gif_blocks_end(data, position + 1)]


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
