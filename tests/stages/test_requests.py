"""`resolve` is pure: each bad field alone is refused by name, value and what is accepted; good ones pass."""

from __future__ import annotations

import io
import math
import subprocess
import sys
from typing import Any

import pytest
from google.protobuf import json_format

from tests.stages.conftest import picture
from triptych.errors import InvalidRequest
from triptych.ids import RANK_MAX
from triptych.model import fields, parameters, trees
from triptych.model.costs import PROMPT_BYTES_MAX
from triptych.model.description import Description
from triptych.model.inputs import resolve
from triptych.v1.job_pb2 import GenerationRequest

GOOD: dict[str, Any] = {"prompt": "a", "height": 32, "width": 64, "num_inference_steps": 2}


def request_of(**fields: Any) -> GenerationRequest:
    return json_format.ParseDict({**GOOD, **fields}, GenerationRequest())


def png() -> bytes:
    file = io.BytesIO()
    picture().save(file, format="PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": ""}, r"prompt is ''; accepted: text that is not empty"),
        ({"prompt": " \n"}, r"prompt is .*not empty"),
        ({"prompt": "x" * (PROMPT_BYTES_MAX + 1)}, r"prompt is '65537 bytes'; accepted: at most 65536 bytes"),
        ({"prompt": "红" * 30000}, r"prompt is '90000 bytes'"),
        ({"negative_prompt": "x" * (PROMPT_BYTES_MAX + 1)}, r"negative_prompt is '65537 bytes'"),
        ({"height": 33}, r"height is 33; accepted: 8 to 8192 pixels in multiples of 8"),
        ({"height": 0}, r"height is 0"),
        ({"width": -8}, r"width is -8"),
        ({"width": 80000}, r"width is 80000; accepted: 8 to 8192"),
        ({"num_frames": 4}, r"num_frames is 4; accepted: 1 to 4096, one more than a multiple of 2"),
        ({"num_frames": 0}, r"num_frames is 0"),
        ({"num_frames": 100001}, r"num_frames is 100001"),
        ({"num_inference_steps": 0}, r"num_inference_steps is 0; accepted: a whole number, 1 to 333"),
        ({"num_inference_steps": 10**9}, r"num_inference_steps is 1000000000"),
        ({"guidance_scale": "NaN"}, r"guidance_scale is nan; accepted: a finite number"),
        ({"guidance_scale": "Infinity"}, r"guidance_scale is inf"),
        ({"num_outputs": 17}, r"num_outputs is 17; accepted: 1 to 16"),
        ({"num_outputs": -1}, r"num_outputs is -1"),
        ({"output_format": "avi"}, r"output_format is 'avi'; accepted: mp4, webm, gif, png"),
        ({"frames_per_second": -1}, r"frames_per_second is -1"),
        ({"frames_per_second": "NaN"}, r"frames_per_second is nan"),
        ({"transformer_rank": RANK_MAX + 1}, r"transformer_rank is 268435456"),
        ({"decoder_rank": RANK_MAX + 1}, r"decoder_rank is 268435456"),
        ({"media": [{"name": "image", "data": "AAAA"}]}, r"media.name is 'image'; accepted: nothing; this pipeline"),
        (
            {"parameters": {"max_sequence_lenght": 3}},
            r"lenght is 3.*; accepted: max_sequence_length \(close",
        ),
        (
            {"parameters": {"max_sequence_length": 3.5}},
            r"max_sequence_length is 3.5; accepted: a whole number",
        ),
        ({"parameters": {"max_sequence_length": True}}, r"max_sequence_length is True; accepted: a whole number"),
        ({"parameters": {"max_sequence_length": "3"}}, r"max_sequence_length is '3'"),
        ({"parameters": {"output_type": 3}}, r"parameters.output_type is 3; accepted: text"),
        ({"parameters": {"sigmas": 1}}, r"parameters.sigmas is 1.*a list"),
        ({"parameters": {"attention_kwargs": [1]}}, r"attention_kwargs is \[1\]; accepted: a mapping"),
        ({"parameters": {"guider.enabled": 1}}, r"guider.enabled is 1; accepted: true or false"),
        ({"parameters": {"latents": [1]}}, r"parameters.latents is \[1.*a tensor, as safetensors in inputs"),
        ({"parameters": {"generator": 5}}, r"parameters.generator is 5.*seeds, make the generators"),
        ({"parameters": {"height": 32}}, r"parameters.height is 32.*; accepted: nothing here.*own field height"),
        ({"parameters": {"num_videos_per_prompt": 2}}, r"own field num_outputs"),
        ({"parameters": {"triptych.settings": {}}}, r"parameters.triptych.settings is"),
    ],
)
def test_each_bad_field_alone(fields: dict[str, Any], message: str, model: Any) -> None:
    with pytest.raises(InvalidRequest, match=message):
        resolve(request_of(**fields), model("wan_t2v").description)


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_number_in_parameters_that_is_not_finite(number: float, model: Any) -> None:
    request = request_of()
    request.parameters.update({"guider.guidance_rescale": number})
    with pytest.raises(InvalidRequest, match=r"guider.guidance_rescale is (nan|inf); accepted: finite"):
        resolve(request, model("wan_t2v").description)
    request.parameters.update({"guider.guidance_rescale": 0.5, "sigmas": [1.0, number]})
    with pytest.raises(InvalidRequest, match=r"parameters\.sigmas\[1\] is (nan|inf)"):
        resolve(request, model("wan_t2v").description)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_frames": 5}, r"num_frames is 5; accepted: nothing; this pipeline has no such input"),
        (
            {"output_format": "mp4"},
            r"'mp4'; accepted: png, jpeg, webp, avif, npy, safetensors; this pipeline makes im",
        ),
        ({"parameters": {"image": "x"}}, r"parameters.image is 'x'.*go in media"),
        ({"media": [{"name": "imag", "data": "AAAA"}]}, r"media.name is 'imag'; accepted: image \(close to it\)"),
        ({"media": [{"name": "image", "data": ""}]}, r"media.image is b''"),
    ],
)
def test_each_bad_field_alone_for_pictures(fields: dict[str, Any], message: str, model: Any) -> None:
    with pytest.raises(InvalidRequest, match=message):
        resolve(request_of(**fields), model("sd3").description)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"prompt": "红色的圆 🟥 " * 100},
        {"prompt": "x" * PROMPT_BYTES_MAX},
        {"num_frames": 5, "guidance_scale": 0.0, "seed": "-1", "num_outputs": 2},
        {"num_inference_steps": 333, "output_format": "gif", "frames_per_second": 8},
        {"transformer_rank": RANK_MAX, "decoder_rank": 1, "preview_every_steps": 3},
        {"parameters": {"max_sequence_length": 64, "sigmas": [1, 0.5], "guider.stop": 1}},
    ],
)
def test_good_requests_pass(fields: dict[str, Any], model: Any) -> None:
    resolve(request_of(**fields), model("wan_t2v").description)


def test_a_deadline_in_the_future_passes() -> None:
    request = request_of(deadline_time="2020-01-01T00:00:00Z")
    moment_s = request.deadline_time.seconds
    fields.check_deadline(request, moment_s - 60)
    with pytest.raises(InvalidRequest, match=r"deadline_time is '2020.*a time in the future"):
        fields.check_deadline(request, moment_s)


def test_an_encoder_refuses_no_deadline(model: Any) -> None:
    """The controller alone decides when one has passed."""
    resolve(request_of(deadline_time="2020-01-01T00:00:00Z"), model("wan_t2v").description)


def test_whole_numbers_of_a_struct_become_int_unless_the_input_takes_floats(model: Any) -> None:
    request = request_of(parameters={"max_sequence_length": 64, "sigmas": [1, 0.5], "attention_kwargs": {"scale": 2}})
    values = parameters.parse(trees.gather(request), Description(model("wan_t2v").description))
    assert [type(value) for value in (values["max_sequence_length"], *values["sigmas"])] == [int, float, float]
    assert values["attention_kwargs"] == {"scale": 2}


def test_a_guidance_scale_sets_the_guider_and_outputs_the_batch(model: Any) -> None:
    values = resolve(request_of(guidance_scale=3.0, num_outputs=2, seed=5), model("wan_t2v").description).for_encoder()
    settings = values["triptych.settings"]
    assert settings == {"seed": 5, "preview_every_steps": 0, "overrides": {"guider": {"guidance_scale": 3.0}}}
    assert values["num_videos_per_prompt"] == 2
    assert "guidance_scale" not in values


def test_media_are_decoded_and_broken_ones_refused(model: Any) -> None:
    description = model("sd3").description
    request = request_of(prompt="")
    request.media.add(name="image", data=png())
    assert resolve(request, description).for_encoder()["image"].size == (64, 32)
    request.media.add(name="image", data=png())
    with pytest.raises(InvalidRequest, match=r"media.image is .*2 files"):
        resolve(request, description).for_encoder()
    del request.media[:]
    request.media.add(name="image", data=png()[:100])
    with pytest.raises(InvalidRequest, match="image"):
        resolve(request, description).for_encoder()


def test_validation_needs_no_torch() -> None:
    program = "import sys, triptych.model.inputs; sys.exit('torch' in sys.modules or 'diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0
