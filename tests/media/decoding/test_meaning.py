"""Files mean more than their samples: depth, transparency and turns, in files that other tools made.

FFmpeg 5.1 made `turned.m4v` of `-f lavfi -i testsrc=size=32x16:rate=5:duration=1 -pix_fmt yuv420p`, copied once more
with `-c copy -metadata:s:v rotate=90`, and `turned-first.png` of it with `-frames:v 1`, which turns by itself.
"""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from triptych.errors import InvalidRequest
from triptych.media.decoding import decode
from triptych.media.decoding.headers import IMAGE, VIDEO, File

TURNED = Path(__file__).parent / "media" / "turned.m4v"
UPRIGHT = TURNED.with_name("turned-first.png")


def picture_of(image: Image.Image, name: str = "image") -> np.ndarray:
    file = io.BytesIO()
    image.save(file, "PNG")
    (picture,) = decode.decode_all([File(name, IMAGE, file.getvalue())])
    return np.asarray(picture)


def test_grey_of_16_bits_keeps_its_ramp():
    ramp = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    assert (picture_of(Image.fromarray(ramp)) == (ramp >> 8)[..., None]).all()


def test_grey_of_16_bits_is_transparent_where_all_of_them_say_so():
    grey, file = Image.fromarray(np.array([[0x00FF, 0xFFFF, 0x0100]], np.uint16)), io.BytesIO()
    grey.save(file, "PNG", transparency=0x00FF)
    (picture,) = decode.decode_all([File("image", IMAGE, file.getvalue(), takes_alpha=True)])
    shown = np.asarray(picture)
    assert shown[0, :, 3].tolist() == [0, 255, 255]
    assert shown[0, :, 0].tolist() == [0, 255, 1]


def test_transparency_is_laid_over_white():
    picture = Image.new("RGBA", (4, 2), (200, 0, 0, 0))
    picture.putpixel((1, 0), (200, 0, 0, 255))
    shown = picture_of(picture)
    assert (shown[0, 1] == (200, 0, 0)).all()
    assert (shown[1] == 255).all()


def test_a_transparent_mask_is_refused_and_an_opaque_one_is_not():
    with pytest.raises(InvalidRequest, match=r"^media.mask_image is .*transparent"):
        picture_of(Image.new("RGBA", (4, 2), (0, 0, 0, 9)), "mask_image")
    assert not picture_of(Image.new("RGBA", (4, 2), (0, 0, 0, 255)), "mask_image").any()


def test_a_turned_video_is_upright():
    data = TURNED.read_bytes()
    (frames,) = decode.decode_all([File("video", VIDEO, data)])
    assert {frame.size for frame in frames} == {(16, 32)}
    with Image.open(UPRIGHT) as upright:
        difference = np.abs(np.asarray(frames[0]).astype(int) - np.asarray(upright.convert("RGB")))
    assert difference.max() <= 8


def test_a_mirrored_video_is_refused():
    start = (data := bytearray(TURNED.read_bytes())).index(b"tkhd") + 44
    data[start : start + 20] = struct.pack(">5i", -(2**16), 0, 0, 0, 2**16)
    with pytest.raises(InvalidRequest, match=r"^media.video is .*mirrored"):
        decode.decode_all([File("video", VIDEO, bytes(data))])
