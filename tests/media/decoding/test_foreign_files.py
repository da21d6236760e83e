"""Files of other tools: colours, trimmed videos, animations. `media/README.md` says how each was made."""

from __future__ import annotations

import io
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.media.decoding.files import gif
from triptych.errors import InvalidRequest
from triptych.media.decoding import decode
from triptych.media.decoding.headers import IMAGE, VIDEO, File
from triptych.media.decoding.pool import Decoders

MEDIA = Path(__file__).parent / "media"


def read(name: str) -> bytes:
    return (MEDIA / name).read_bytes()


def frames_of(data: bytes) -> list[np.ndarray]:
    (frames,) = decode.decode_all([File("video", VIDEO, data)])
    return [np.asarray(frame) for frame in frames]


def pixels_of(data: bytes, name: str = "image", *, takes_alpha: bool = False) -> np.ndarray:
    (picture,) = decode.decode_all([File(name, IMAGE, data, takes_alpha=takes_alpha)])
    return np.asarray(picture)


def png(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


def with_edit(data: bytes, duration: int) -> bytes:
    """A file of FFmpeg's whose edit list shows so many milliseconds: as phones trim, without leaving a frame out."""
    edited = bytearray(data)
    struct.pack_into(">I", edited, edited.index(b"elst") + 12, duration)
    return bytes(edited)


@pytest.mark.parametrize(("name", "count"), [("bt709", 10), ("full-range", 10), ("untagged", 10), ("trimmed", 4)])
def test_a_video_has_the_pixels_that_ffmpeg_makes_of_it(name: str, count: int) -> None:
    """Of its own matrix and range, and from where its edit list begins."""
    frames = frames_of(read(f"{name}.mp4"))
    assert len(frames) == count
    with Image.open(MEDIA / f"{name}-first.png") as first:
        np.testing.assert_array_equal(frames[0], np.asarray(first.convert("RGB")))


def test_what_an_edit_list_leaves_out_is_not_missed_and_what_was_cut_off_is() -> None:
    whole = read("untagged.mp4")
    shown = frames_of(with_edit(whole, 1000))
    assert len(shown) == 5
    np.testing.assert_array_equal(shown, frames_of(whole)[:5])
    for data in (whole, with_edit(whole, 1000)):
        start = data.index(b"mdat")
        without_half = data[: start + 4] + data[start + 4 :].replace(data[start + 900 :], b"")
        with pytest.raises(InvalidRequest, match=r"^media.video is "):
            frames_of(without_half)


def test_a_gif_of_which_not_all_can_be_read_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"^media.video is '1 readable of 9 frames'"):
        frames_of(gif(1, 1, 9))


@pytest.mark.parametrize("name", ["ten-bits.mp4", "fragmented.mp4"])
def test_videos_of_ten_bits_and_in_fragments_are_taken(name: str) -> None:
    assert [frame.shape for frame in frames_of(read(name))] == [(48, 64, 3)] * 10


def test_fragments_that_were_cut_short_are_refused_wherever_that_is() -> None:
    """All but at the few bytes where one fragment has ended and the next has no name yet."""
    data = read("four-fragments.mp4")
    assert len(frames_of(data)) == 20
    starts = [match.start() - 4 for match in re.finditer(b"moof", data)]
    last_byte = data.index(b"mfra") - 5
    for end in range(starts[0] + 8, last_byte, 13):
        if all(not 0 <= end - start < 8 for start in starts):
            with pytest.raises(InvalidRequest, match=r"^media.video is .*MP4, MOV"):
                frames_of(data[:end])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("pq.mp4", "HDR.*accepted: a video of standard range"),
        ("hlg.mp4", "HDR.*accepted: a video of standard range"),
        ("bt2020-matrix.mp4", "wide gamut.*accepted: a video of standard range"),
        ("interlaced.mp4", "interlaced.*accepted: a progressive video"),
        ("wide-pixels.mp4", "of pixels 2:1.*accepted: a video of square pixels"),
    ],
)
def test_a_video_that_would_look_wrong_is_refused(name: str, said: str) -> None:
    file = File("video", VIDEO, read(name))
    with Decoders() as decoders, pytest.raises(InvalidRequest, match=f"^media.video is .*{said}"):
        decoders.check([file])
    with pytest.raises(InvalidRequest, match=f"^media.video is .*{said}"):
        decode.decode_all([file])


@pytest.mark.parametrize("name", ["animated.gif", "animated.webp"])
def test_an_animation_is_no_picture(name: str) -> None:
    with pytest.raises(InvalidRequest, match=r"^media.image is 'animated'; accepted: a picture of one frame"):
        pixels_of(read(name))


def test_a_camera_s_second_picture_is_no_animation() -> None:
    file = io.BytesIO()
    first, second = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    first.save(file, "MPO", save_all=True, append_images=[second], quality=100)
    assert pixels_of(file.getvalue())[0, 0, 0] > 250


def test_a_profile_is_applied_and_srgbs_changes_nothing() -> None:
    """ImageMagick rounded to Adobe RGB's eight bits, so up to two of 255 are lost on the way back; it is 79 off."""
    plain = pixels_of(read("srgb.png")).astype(int)
    adobe = read("adobe-rgb.png")
    assert np.abs(pixels_of(adobe) - plain).max() <= 2
    with Image.open(io.BytesIO(adobe)) as opened:
        assert np.abs(np.asarray(opened.convert("RGB")) - plain).max() == 79
    np.testing.assert_array_equal(pixels_of(read("with-srgb-profile.png")), plain)
    with Image.open(io.BytesIO(adobe)) as opened:
        mask = np.asarray(opened.convert("RGB").convert("L"))
    np.testing.assert_array_equal(pixels_of(adobe, "mask_image"), mask)


def test_a_profile_leaves_transparency_alone() -> None:
    with Image.open(MEDIA / "adobe-rgb.png") as opened:
        profile, picture = opened.info["icc_profile"], opened.convert("RGBA")
    picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    shown = pixels_of(png(picture, icc_profile=profile), takes_alpha=True)
    np.testing.assert_array_equal(shown[..., 3], np.asarray(picture)[..., 3])
    np.testing.assert_array_equal(shown[..., :3], pixels_of(read("adobe-rgb.png")))


def test_a_grey_picture_with_a_profile_of_three_channels_is_taken_as_what_they_show() -> None:
    """ExifTool put the profile beside the very samples of the other."""
    plain, grey = read("grey.jpg"), read("grey-with-srgb-profile.jpg")
    with Image.open(io.BytesIO(grey)) as opened:
        assert (opened.mode, opened.info["icc_profile"][16:20]) == ("L", b"RGB ")
    np.testing.assert_array_equal(pixels_of(grey), pixels_of(plain))
    with Image.open(MEDIA / "adobe-rgb.png") as opened:
        adobe = opened.info["icc_profile"]
    with Image.open(io.BytesIO(plain)) as opened:
        in_one, in_three = (pixels_of(png(opened.convert(mode), icc_profile=adobe)) for mode in ("L", "RGB"))
        bilevel = pixels_of(png(opened.convert("1"), icc_profile=adobe))
    np.testing.assert_array_equal(in_one, in_three)
    assert set(np.unique(bilevel)) == {0, 255}


@pytest.mark.parametrize(("mode", "profile"), [("RGB", b"no profile"), ("CMYK", None)])
def test_a_profile_that_cannot_be_used_is_refused(mode: str, profile: bytes | None) -> None:
    """One that is none, and one of another kind of colours."""
    if profile is None:
        with Image.open(MEDIA / "adobe-rgb.png") as opened:
            profile = opened.info["icc_profile"]
    file = io.BytesIO()
    Image.new(mode, (4, 4)).save(file, "JPEG", icc_profile=profile)
    with pytest.raises(InvalidRequest, match=r"^media.image is .*colour profile can't be used"):
        pixels_of(file.getvalue())


def test_cmyk_without_a_profile_is_pillows_formula() -> None:
    with Image.open(MEDIA / "cmyk.jpg") as opened:
        assert opened.mode == "CMYK"
        expected = np.asarray(opened.convert("RGB"))
    np.testing.assert_array_equal(pixels_of(read("cmyk.jpg")), expected)


def test_a_pngs_gamma_is_applied() -> None:
    """Half of the light is 188 in sRGB (IEC 61966-2-1)."""
    said = PngInfo()
    said.add(b"gAMA", struct.pack(">I", 100_000))
    linear = png(Image.new("RGB", (2, 2), (0, 128, 255)), pnginfo=said)
    assert pixels_of(linear)[0, 0].tolist() == [0, 188, 255]
    usual = PngInfo()
    usual.add(b"gAMA", struct.pack(">I", 45_455))
    assert pixels_of(png(Image.new("RGB", (2, 2), (0, 128, 255)), pnginfo=usual))[0, 0].tolist() == [0, 128, 255]


def test_primaries_that_only_a_profile_explains_are_refused() -> None:
    said = PngInfo()
    said.add(b"cHRM", struct.pack(">8I", 31_270, 32_900, 68_000, 32_000, 26_500, 69_000, 15_000, 6_000))
    said.add(b"gAMA", struct.pack(">I", 45_455))
    with pytest.raises(InvalidRequest, match=r"^media.image is .*primaries"):
        pixels_of(png(Image.new("RGB", (4, 4)), pnginfo=said))


def test_a_png_of_hdr_is_refused_and_one_that_says_srgb_is_not() -> None:
    plain, hdr = PngInfo(), PngInfo()
    plain.add(b"cICP", bytes((1, 13, 0, 1)))
    hdr.add(b"cICP", bytes((9, 16, 0, 1)))
    assert pixels_of(png(Image.new("RGB", (4, 4), "red"), pnginfo=plain))[0, 0].tolist() == [255, 0, 0]
    with pytest.raises(InvalidRequest, match=r"^media.image is 'HDR.*accepted: a picture in sRGB"):
        pixels_of(png(Image.new("RGB", (4, 4)), pnginfo=hdr))


def test_children_hand_out_transparency_where_the_input_takes_it() -> None:
    picture = Image.new("RGBA", (4, 2), (200, 0, 0, 9))
    file = File("image", IMAGE, png(picture), takes_alpha=True)
    with Decoders() as decoders:
        (decoded,) = decoders.decode([file])
    assert (decoded.mode, decoded.tobytes()) == ("RGBA", picture.tobytes())
    assert decode.decode_all([file])[0].tobytes() == picture.tobytes()
