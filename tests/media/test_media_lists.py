"""One file or several for an input of the pipeline."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from triptych.errors import InvalidRequest
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
