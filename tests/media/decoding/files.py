"""Makes small files that are expensive to decode. Each comment says what the file does to software without bounds."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

from triptych.media.decoding.headers import AUDIO, IMAGE, VIDEO, File
from triptych.media.encoding import encode_outputs


def png(width: int, height: int, *chunks: bytes) -> bytes:
    """A grey picture of this size that compresses to nearly nothing, with further chunks before its pixels."""
    pixels = zlib.compressobj(9)
    rows = b"".join(pixels.compress(bytes(width + 1)) for _ in range(height)) + pixels.flush()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def chunk(kind: bytes, data: bytes) -> bytes:
    """A PNG's chunk."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_with_bombs() -> bytes:
    """Texts and a colour profile that unpack to gigabytes."""
    bomb = zlib.compress(bytes(256 * 2**20), 9)
    text = chunk(b"zTXt", b"Comment\0\0" + bomb)
    profile = chunk(b"iCCP", b"profile\0\0" + bomb)
    international = chunk(b"iTXt", b"Comment\0\1\0\0\0" + bomb)
    return png(8, 8, profile, *[text] * 6, *[international] * 6)


def apng_of_many_frames() -> bytes:
    """An animation that says it has two billion frames, as a picture."""
    return png(64, 64, chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0)))


def gif(width: int, height: int, frames: int) -> bytes:
    """An animation of this size; a frame has one pixel, so it takes 20 bytes."""
    head = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(6)
    frame = b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\2\2\x44\1\0"
    return head + frame * frames + b";"


def gif_of_a_frame_beyond_its_canvas() -> bytes:
    """The canvas is small; its frame isn't."""
    head = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + bytes(6)
    return head + b"," + struct.pack("<HHHHB", 0, 0, 60_000, 60_000, 0) + b"\2\2\x44\1\0;"


def jpeg_of_many_scans(side: int, scans: int) -> bytes:
    """A progressive picture with a scan of nothing again and again: each goes over all blocks."""
    file = io.BytesIO()
    Image.new("L", (side, side), 90).save(file, "JPEG", progressive=True, quality=20)
    data = file.getvalue()
    last = data.rindex(b"\xff\xda")
    tables = data.rindex(b"\xff\xc4", 0, last)
    return data[:-2] + data[tables:-2] * scans + b"\xff\xd9"


def jpeg_turned(side: int, *, progressive: bool = False) -> bytes:
    """A picture to be turned: a copy of it is made."""
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = 5
    Image.new("RGB", (side, side)).save(file, "JPEG", exif=exif, progressive=progressive)
    return file.getvalue()


def webp(width: int, height: int, frames: int = 0) -> bytes:
    """A canvas of this size; where it is an animation, its frames are tiny."""
    one, body = io.BytesIO(), b""
    Image.new("RGB", (1, 1)).save(one, "WEBP", lossless=True)
    bits = one.getvalue()[12:]
    canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    if frames:
        body += b"ANIM" + struct.pack("<IIH", 6, 0, 0)
    frame = bytes(6) + bytes(6) + bytes(3) + b"\0" + bits
    body += (b"ANMF" + struct.pack("<I", len(frame)) + frame) * frames or bits
    body = b"VP8X" + struct.pack("<I", 10) + bytes([0x02 if frames else 0, 0, 0, 0]) + canvas + body
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def mp4(frames: int = 2, side: int = 16) -> bytes:
    """A small video."""
    noise = np.random.default_rng(0).random((1, frames, side, side, 3), np.float32)
    return encode_outputs({"videos": noise}, "mp4", 16)[0].data


def bent(data: bytes, kind: bytes, offset: int, value: bytes) -> bytes:
    """A video with bytes of a box's contents replaced."""
    start = data.index(kind) + 4 + offset
    return data[:start] + value + data[start + len(value) :]


def mp4_of_many_samples(count: int = 60_000_000) -> bytes:
    """Samples of one size need no table, so their number is free: FFmpeg makes an index of them."""
    return bent(bent(mp4(), b"stsz", 4, struct.pack(">I", 1)), b"stsz", 8, struct.pack(">I", count))


def mp4_of_many_edits(count: int = 2_000_000) -> bytes:
    """An edit list that says it is long."""
    return bent(mp4(), b"elst", 4, struct.pack(">I", count))


def mp4_of_a_large_picture() -> bytes:
    """Its description says how large it is, and its stream something else."""
    return bent(mp4(), b"stsd", 40, struct.pack(">HH", 65_535, 65_535))


def mp4_of_a_long_fragment() -> bytes:
    """A fragment with a thousand million samples, none of which has a field of its own."""
    header = box(b"tfhd", struct.pack(">II", 0x020000, 1))
    run = box(b"trun", struct.pack(">II", 0, 10**9))
    return mp4() + box(b"moof", box(b"mfhd", struct.pack(">II", 0, 1)) + box(b"traf", header + run))


def matroska_of_many_parts(count: int = 500_000) -> bytes:
    """A segment full of elements of nothing."""
    return b"\x1a\x45\xdf\xa3\x80" + b"\x18\x53\x80\x67\xff" + b"\xec\x80" * count


def ogg_of_many_pages(count: int = 200_000) -> bytes:
    """Pages without a packet."""
    return struct.pack("<4sBBqIIIB", b"OggS", 0, 0, 0, 1, 0, 0, 0) * count


def aac_of_many_frames(count: int = 500_000) -> bytes:
    """Frames of a head only."""
    return b"\xff\xf1\x4c\x80\x00\xff\xfc" * count


def box(kind: bytes, data: bytes) -> bytes:
    """An MP4's box."""
    return struct.pack(">I", len(data) + 8) + kind + data


def picture(data: bytes) -> list[File]:
    """One file, as an input `image` takes it."""
    return [File("image", IMAGE, data)]


def clip(data: bytes) -> list[File]:
    """One file, as an input `video` takes it."""
    return [File("video", VIDEO, data)]


REFUSED: dict[str, Callable[[], list[File]]] = {
    "GIFs of a large canvas each": lambda: picture(gif(8192, 8192, 1)) * 8,
    "a GIF of 16,000 a side, as a video": lambda: clip(gif(16_000, 16_000, 2)),
    "a GIF of 16,000 a side, as a picture": lambda: picture(gif(16_000, 16_000, 2)),
    "a GIF of many frames": lambda: clip(gif(1, 1, 100_000)),
    "a GIF of large frames": lambda: clip(gif(4096, 4096, 4000)),
    "a GIF whose frame is larger than it": lambda: picture(gif_of_a_frame_beyond_its_canvas()),
    "videos of many frames together": lambda: clip(gif(1, 1, 4096)) * 3,
    "tiny frames that are to become large": lambda: [File("video", VIDEO, gif(1, 1, 4096), 512 * 512)],
    "a JPEG of many scans": lambda: picture(jpeg_of_many_scans(4096, 2000)),
    "a small JPEG of very many scans": lambda: picture(jpeg_of_many_scans(1024, 200_000)),
    "a PNG of 16,000 a side": lambda: picture(png(16_000, 16_000)),
    "PNGs that are large together": lambda: picture(png(8192, 8192)) * 5,
    "a WebP of the largest canvas": lambda: picture(webp(2**24, 2**24)),
    "a WebP of a large canvas": lambda: picture(webp(16_383, 16_383, 3)),
    "an MP4 of many samples": lambda: clip(mp4_of_many_samples()),
    "an MP4 of as many samples as may be": lambda: clip(mp4_of_many_samples(4000)),
    "an MP4 of a long fragment": lambda: clip(mp4_of_a_long_fragment()),
    "an MP4 of many edits": lambda: clip(mp4_of_many_edits()),
    "an MP4 of a codec that there isn't": lambda: clip(mp4().replace(b"avc1", b"zzzz")),
    "an animated PNG of many frames": lambda: clip(apng_of_many_frames()),
    "an animated WebP of a large canvas": lambda: clip(webp(16_383, 16_383, 3)),
    "an animated WebP of many frames": lambda: clip(webp(8, 8, 100_000)),
    "animated WebPs that are large together": lambda: clip(webp(2048, 2048, 33)) * 2,
    "a Matroska file of many parts": lambda: clip(matroska_of_many_parts()),
    "an Ogg of many pages": lambda: [File("video", AUDIO, ogg_of_many_pages())],
    "AAC of many frames": lambda: [File("video", AUDIO, aac_of_many_frames())],
    "an MP4 that says it is large": lambda: clip(mp4_of_a_large_picture()),
}
"""Files that must be refused, by headers or by decoding."""

TAKEN: dict[str, Callable[[], list[File]]] = {
    "a PNG of the largest size": lambda: picture(png(8192, 8192)),
    "a PNG with bombs in its texts": lambda: picture(png_with_bombs()),
    "an APNG that says it is long": lambda: picture(apng_of_many_frames()),
    "a turned JPEG of the largest size": lambda: picture(jpeg_turned(8192)),
    "a JPEG of a few scans": lambda: picture(jpeg_of_many_scans(2048, 20)),
    "a picture with another file behind it": lambda: picture(png(8, 8) + mp4() + bytes(2**20)),
    "a GIF of many large frames, as a picture": lambda: picture(gif(4096, 4096, 4000)),
    "a WebP animation of a large canvas, as a picture": lambda: picture(webp(4096, 4096, 1000)),
}
"""What may be taken or refused, as long as it costs no more than it may."""
