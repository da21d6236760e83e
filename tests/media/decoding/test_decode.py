"""Whole files of known formats are decoded as RGB; all others are refused by name."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.media.test_media import FRAMES, HEIGHT, WIDTH, A, as_bytes, as_pil
from triptych.errors import InvalidRequest
from triptych.media.decoding import bounds, decode
from triptych.media.decoding.headers import IMAGE, VIDEO, File
from triptych.media.encoding import encode_outputs


def image_of(data: bytes) -> Image.Image:
    (picture,) = decode.decode_all([File("image", IMAGE, data)])
    return picture


def video_of(data: bytes) -> list[Image.Image]:
    (frames,) = decode.decode_all([File("video", VIDEO, data)])
    return frames


def encoded_image(image_format: str, image: Image.Image | None = None) -> bytes:
    file = io.BytesIO()
    (image or as_pil(A)[0]).save(file, image_format, lossless=True)
    return file.getvalue()


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP", "GIF"])
def test_image_formats(image_format):
    image = image_of(encoded_image(image_format))
    assert (image.mode, image.size) == ("RGB", (WIDTH, HEIGHT))
    np.testing.assert_allclose(np.asarray(image)[2, 2].astype(int), as_bytes(A)[0, 2, 2], atol=8)


def test_image_is_turned_upright():
    image, exif = Image.new("RGB", (4, 2)), Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    image.save(file, "JPEG", exif=exif)
    assert image_of(file.getvalue()).size == (2, 4)


@pytest.mark.parametrize(
    "data",
    [b"", b"text", encoded_image("PNG")[:-60], encoded_image("JPEG")[:200], encoded_image("BMP"), b"GIF89a"],
    ids=["empty", "text", "cut png", "cut jpeg", "bmp", "cut gif"],
)
def test_broken_images_are_named(data):
    with pytest.raises(InvalidRequest, match=r"^media.image is .*accepted.*PNG"):
        image_of(data)


def test_huge_image_is_refused_before_it_is_decoded():
    side = int(bounds.IMAGE_PIXELS_MAX**0.5) + 1
    with pytest.raises(InvalidRequest, match="pixels"):
        image_of(encoded_image("PNG", Image.new("1", (side, side))))


VIDEO_FILES = {suffix: encode_outputs({"videos": A[None]}, suffix, 10)[0].data for suffix in ("mp4", "gif")}


@pytest.mark.parametrize("suffix", VIDEO_FILES)
def test_video_formats(suffix):
    frames = video_of(VIDEO_FILES[suffix])
    assert [frame.size for frame in frames] == [(WIDTH, HEIGHT)] * FRAMES
    np.testing.assert_allclose(np.asarray(frames[2])[2, 2].astype(int), as_bytes(A)[2, 2, 2], atol=6)


@pytest.mark.parametrize(
    "data",
    [b"", b"#EXTM3U\nfile:///etc/passwd", VIDEO_FILES["mp4"][:300], VIDEO_FILES["mp4"][:-600], encoded_image("PNG")],
    ids=["empty", "playlist", "cut", "without index", "png"],
)
def test_broken_videos_are_named(data):
    with pytest.raises(InvalidRequest, match=r"^media.video is .*MP4, MOV"):
        video_of(data)


def test_the_first_broken_file_is_named():
    good = [File("image", IMAGE, encoded_image("PNG")), File("video", VIDEO, VIDEO_FILES["mp4"])]
    assert len(decode.decode_all(good)) == 2
    bad = [File("video", VIDEO, VIDEO_FILES["mp4"][:-600]), File("image", IMAGE, b"broken")]
    with pytest.raises(InvalidRequest, match=r"^media.video is .*MP4, MOV"):
        decode.decode_all([*good, bad[0]])
    with pytest.raises(InvalidRequest, match=r"^media.image is .*PNG"):
        decode.decode_all([*good, *bad])  # its headers are looked at before any file is decoded


FILES = [encoded_image("PNG"), encoded_image("JPEG"), encoded_image("WEBP"), *VIDEO_FILES.values()]


@given(st.sampled_from(FILES), st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), min_size=1, max_size=6))
@settings(max_examples=150, deadline=None)
def test_mutated_files_decode_or_are_refused(file, mutations):
    data = bytearray(file)
    for position, byte in mutations:
        data[position % len(data)] = byte
    for decoded in (image_of, video_of):
        try:
            decoded(bytes(data))
        except InvalidRequest:
            continue
