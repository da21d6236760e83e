"""Videos in every container, made by other tools (`media/README.md`): each frame as FFmpeg decodes it; broken ones."""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.media.decoding.files import chunk, png, webp
from triptych.errors import InvalidRequest
from triptych.media.decoding import decode
from triptych.media.decoding.headers import VIDEO, File
from triptych.media.decoding.pool import Decoders
from triptych.media.decoding.values import Frames

MEDIA = Path(__file__).parent / "media"
EXACT = {
    "vp9.webm": "vp9",
    "vp8.webm": "vp8",
    "av1.webm": "av1",
    "h264.mkv": "h264",
    "lossless.mkv": "lossless",
    "animated.png": "animated-png",
}
"""The file, and FFmpeg's sums of its frames as RGB."""


def read(name: str) -> bytes:
    return (MEDIA / name).read_bytes()


def frames_of(data: bytes, name: str = "video", **asked: object) -> Frames:
    (frames,) = decode.decode_all([File(name, VIDEO, data, **asked)])  # type: ignore[arg-type]
    assert isinstance(frames, Frames)
    return frames


def sums_of(frames: Frames) -> list[str]:
    return [hashlib.md5(np.asarray(frame).tobytes()).hexdigest() for frame in frames]


def ffmpegs(name: str) -> list[str]:
    """The sums that FFmpeg's own program printed (`-f framemd5`)."""
    lines = (MEDIA / f"{name}.framemd5").read_text().splitlines()
    return [line.split(",")[-1].strip() for line in lines if not line.startswith("#")]


@pytest.mark.parametrize("name", EXACT)
def test_each_frame_has_the_bits_that_ffmpeg_makes_of_it(name: str) -> None:
    frames = frames_of(read(name))
    assert sums_of(frames) == ffmpegs(EXACT[name])
    assert frames.frames_per_second == 5
    with Decoders() as decoders:
        (found,) = decoders.decode([File("video", VIDEO, read(name))])
    assert sums_of(found) == sums_of(frames)  # type: ignore[arg-type]
    assert found.frames_per_second == 5  # type: ignore[union-attr]


def test_what_ffv1_holds_comes_out_as_it_went_in() -> None:
    """FFmpeg's test picture has pure colours at known places, and FFV1 of RGB loses nothing."""
    first = np.asarray(frames_of(read("lossless.mkv"))[0])
    assert first.shape == (16, 32, 3)
    assert len(np.unique(first.reshape(-1, 3), axis=0)) > 8


@pytest.mark.parametrize("name", ["prores.mov", "turned.mov"])
def test_quicktime_files_are_taken(name: str) -> None:
    assert len(frames_of(read(name))) == 5


def test_a_quicktime_file_without_a_brand_is_taken() -> None:
    """Old cameras wrote no `ftyp`."""
    data = read("prores.mov")
    (size,) = struct.unpack_from(">I", data)
    bare = bytearray(data)
    bare[4:8] = b"free"  # its place stays, or the tables would point elsewhere
    assert data[4:8] == b"ftyp"
    assert size < 64
    assert sums_of(frames_of(bytes(bare))) == sums_of(frames_of(data))


def test_a_turned_quicktime_film_is_upright() -> None:
    with Image.open(MEDIA / "turned-mov-first.png") as upright:
        np.testing.assert_array_equal(np.asarray(frames_of(read("turned.mov"))[0]), np.asarray(upright.convert("RGB")))


def test_a_turned_matroska_film_is_upright() -> None:
    """A projection that rolls by 90 degrees, put behind the height of `h264.mkv`'s only video track."""
    plain, turned = frames_of(read("h264.mkv")), frames_of(rolled(read("h264.mkv"), 90.0))
    assert {frame.size for frame in turned} == {(16, 32)}
    ways = (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_270)
    assert any(
        [np.array_equal(a.transpose(way), b) for a, b in zip(plain, turned, strict=True)] == [True] * 5 for way in ways
    )


def rolled(data: bytes, degrees: float) -> bytes:
    """A Matroska file with a projection in its video track. FFmpeg wrote the sizes of its folders with eight bytes."""
    roll = element(b"\x76\x75", struct.pack(">d", degrees))
    projection = element(b"\x76\x70", element(b"\x76\x71", b"\0") + roll)
    at = data.index(b"\xba\x81\x10") + 3  # after the height
    grown = bytearray(data[:at] + projection + data[at:])
    for folder in (b"\x18\x53\x80\x67", b"\x16\x54\xae\x6b", b"\xae", b"\xe0"):
        start = data.rindex(folder, 0, at) + len(folder)
        length = 9 - data[start].bit_length()
        size = int.from_bytes(data[start : start + length]) + len(projection)
        grown[start : start + length] = size.to_bytes(length)
    start = data.rindex(b"\x16\x54\xae\x6b", 0, at) + 4
    length = 9 - grown[start].bit_length()
    end = start + length + (int.from_bytes(grown[start : start + length]) & (1 << 7 * length) - 1)
    checksum = grown.index(b"\xbf\x84", start) + 2
    grown[checksum : checksum + 4] = zlib.crc32(grown[checksum + 4 : end]).to_bytes(4, "little")
    return bytes(grown)


def element(kind: bytes, content: bytes) -> bytes:
    return kind + bytes([0x80 | len(content)]) + content


def test_the_transparency_of_a_webm_is_laid_over_white_or_kept() -> None:
    over_white = np.asarray(frames_of(read("transparent.webm"))[0]).astype(int)
    kept = np.asarray(frames_of(read("transparent.webm"), takes_alpha=True)[0])
    assert kept.shape == (16, 32, 4)
    assert abs(int(kept[0, 0, 3]) - 128) <= 2
    assert np.abs(over_white[0, 0] - (254, 127, 127)).max() <= 3


def test_a_transparent_mask_film_is_refused_and_an_opaque_one_is_grey() -> None:
    with pytest.raises(InvalidRequest, match=r"^media.mask is .*transparent"):
        frames_of(read("transparent.webm"), "mask")
    grey, coloured = frames_of(read("vp9.webm"), "mask"), frames_of(read("vp9.webm"))
    assert {frame.mode for frame in grey} == {"L"}
    for mask, frame in zip(grey, coloured, strict=True):
        np.testing.assert_array_equal(np.asarray(mask), np.asarray(frame.convert("L")))


def test_frames_of_an_animated_webp_are_whole_pictures() -> None:
    """gif2webp made it of a red and a blue picture."""
    frames = frames_of(read("animated.webp"))
    assert [frame.getpixel((4, 4)) for frame in frames] == [(255, 0, 0), (0, 0, 255)]
    assert frames.frames_per_second == 10


def test_a_picture_for_programs_that_know_no_animations_is_no_frame() -> None:
    """The first picture of an animated PNG is a frame only if a control comes before it."""
    data = read("animated.png")
    start = data.index(b"fcTL") - 4
    cut = bytearray(data[:start] + data[start + 12 + 26 :])
    count = cut.index(b"acTL") + 4
    cut[count - 8 : count + 12] = chunk(b"acTL", struct.pack(">II", 4, 0))
    assert sums_of(frames_of(renumbered(bytes(cut)))) == ffmpegs("animated-png")[1:]


def renumbered(data: bytes) -> bytes:
    """An animated PNG whose parts are counted from 0 again."""
    position, number, parts = 8, 0, [data[:8]]
    while position < len(data):
        (size,), kind = struct.unpack_from(">I", data, position), data[position + 4 : position + 8]
        content = data[position + 8 : position + 8 + size]
        if kind in (b"fcTL", b"fdAT"):
            content = struct.pack(">I", number) + content[4:]
            number += 1
        parts.append(chunk(kind, content))
        position += 12 + size
    return b"".join(parts)


@pytest.mark.parametrize("name", ["png", "webp"])
def test_a_picture_is_no_video(name: str) -> None:
    data = {"png": read("srgb.png"), "webp": webp(8, 8)}[name]
    with pytest.raises(InvalidRequest, match=r"^media.video is .*animated PNG"):
        frames_of(data)


def test_frames_of_several_sizes_are_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"^media.video is 'frames of 32 × 16 and of 48 × 32 pixels'"):
        frames_of(read("two-sizes.mkv"))


BROKEN: dict[str, Callable[[bytes], bytes]] = {
    "cut in half": lambda data: data[: len(data) // 2],
    "without its end": lambda data: data[:-40],
    "only its beginning": lambda data: data[:40],
    "of other bytes": lambda data: data[:16] + bytes(len(data) - 16),
}


@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.parametrize(
    "name", ["vp9.webm", "av1.webm", "h264.mkv", "lossless.mkv", "prores.mov", "animated.png", "animated.webp"]
)
def test_a_broken_video_is_refused_by_name(name: str, how: str) -> None:
    broken = File("", VIDEO, BROKEN[how](read(name)), field="inputs.conditions[0].video")
    with pytest.raises(InvalidRequest, match=r"^inputs.conditions\[0\].video is "):
        decode.decode_all([broken])


def test_a_damaged_frame_of_a_lossless_film_is_refused() -> None:
    """FFmpeg would show the frame before instead; Matroska's checksums tell."""
    for place in range(1000, 3800, 400):
        data = bytearray(read("lossless.mkv"))
        data[place] ^= 0x55
        with pytest.raises(InvalidRequest, match=r"^media.video is "):
            frames_of(bytes(data))


def test_a_webm_that_was_written_while_it_was_recorded_is_taken() -> None:
    """Browsers' recorders don't know how long the file becomes, and leave its length open."""
    data = bytearray(read("vp9.webm"))
    for folder in (b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75"):
        start = data.index(folder) + 4
        length = 9 - data[start].bit_length()
        data[start : start + length] = ((1 << 7 * length + 1) - 1).to_bytes(length)
    assert sums_of(frames_of(bytes(data))) == ffmpegs("vp9")


def test_sizes_and_counts_in_headers_are_bounded() -> None:
    for data in (
        grown(read("vp9.webm"), b"\xb0\x81\x20", b"\xb0\x84\x00\xff\xff\xff"),
        png(8, 8, chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0))),
        webp(16_383, 16_383, 3),
        webp(8, 8, 5000),
    ):
        with pytest.raises(InvalidRequest, match=r"^media.video is .*accepted: at most"):
            frames_of(data)


def grown(data: bytes, old: bytes, new: bytes) -> bytes:
    """A Matroska file with an element of a video track replaced by a longer one."""
    at = data.index(old)
    changed = bytearray(data[:at] + new + data[at + len(old) :])
    for folder in (b"\x18\x53\x80\x67", b"\x16\x54\xae\x6b", b"\xae", b"\xe0"):
        start = data.rindex(folder, 0, at) + len(folder)
        length = 9 - data[start].bit_length()
        size = int.from_bytes(data[start : start + length]) + len(new) - len(old)
        changed[start : start + length] = size.to_bytes(length)
    return bytes(changed)
