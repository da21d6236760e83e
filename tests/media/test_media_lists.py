"""One file or several for an input of the pipeline."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from triptych.errors import InvalidRequest
from triptych.media.decoding import headers
from triptych.model.inputs import resolve
from triptych.v1 import job_pb2, model_pb2


def test_only_an_input_that_takes_a_list_gets_several_files():
    picture, request = io.BytesIO(), job_pb2.GenerationRequest(prompt="x")
    Image.new("RGB", (4, 4)).save(picture, "PNG")
    described = model_pb2.ModelDescription()
    described.inputs.add(name="prompt", kind=model_pb2.INPUT_KIND_TEXT)
    hint = "PIL.Image.Image | list[PIL.Image.Image]"
    for name, several in (("image", False), ("reference_images", True)):
        described.inputs.add(name=name, kind=model_pb2.INPUT_KIND_IMAGE, type_hint=hint, takes_several=several)
        request.media.add(name=name, data=picture.getvalue())
    values = resolve(request, described).for_encoder()
    assert isinstance(values["image"], Image.Image)
    assert isinstance(values["reference_images"], list)
    request.media.add(name="reference_images", data=picture.getvalue())
    resolve(request, described)
    request.media.add(name="image", data=picture.getvalue())
    with pytest.raises(InvalidRequest, match=r"^media.image is .*2 files"):
        resolve(request, described)


FRAMES = Path(__file__).parent / "decoding" / "media"


def of_a_video(*names: str) -> tuple[job_pb2.GenerationRequest, model_pb2.ModelDescription]:
    """A request with these files for a video, and the model that takes one."""
    request, described = job_pb2.GenerationRequest(prompt="x"), model_pb2.ModelDescription()
    described.inputs.add(name="prompt", kind=model_pb2.INPUT_KIND_TEXT)
    described.inputs.add(name="video", kind=model_pb2.INPUT_KIND_VIDEO)
    for name in names:
        request.media.add(name="video", data=(FRAMES / name).read_bytes())
    return request, described


def test_numbered_pictures_are_the_frames_of_a_video_in_the_order_in_which_they_come():
    """ImageMagick made them red, lime and blue; the third is a JPEG."""
    values = resolve(*of_a_video("frame-1.png", "frame-2.png", "frame-10.jpg")).for_encoder()
    assert [frame.size for frame in values["video"]] == [(12, 8)] * 3
    colours = [np.asarray(frame)[4, 6].astype(int) for frame in values["video"]]
    np.testing.assert_allclose(colours, [(255, 0, 0), (0, 255, 0), (0, 0, 255)], atol=2)


def test_frames_are_refused_by_their_own_place():
    with pytest.raises(InvalidRequest, match=r"^media.video\[1\] is '32 × 32 pixels, after a frame of 12 × 8'"):
        headers.check(resolve(*of_a_video("frame-1.png", "srgb.png")).files)
    with pytest.raises(InvalidRequest, match=r"^media.video\[1\] is .*the bytes of a whole picture"):
        headers.check(resolve(*of_a_video("frame-1.png", "vp9.webm")).files)
    with pytest.raises(InvalidRequest, match=r"^media.video is .*the bytes of a whole video"):
        headers.check(resolve(*of_a_video("frame-1.png")).files)


def test_one_process_fetches_no_url():
    request, described = of_a_video()
    request.media.add(name="video", url="https://example.org/clip.mp4")
    with pytest.raises(InvalidRequest, match=r"^media.video.url is .*a file: only a controller fetches URLs"):
        resolve(request, described).for_encoder()
