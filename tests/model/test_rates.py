"""One frame rate for the model and the file, and the ranges of other numbers by their names."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import json_format

from triptych.errors import InvalidRequest, ModelInvalid
from triptych.model import rates
from triptych.model.description import Description
from triptych.model.inputs import resolve
from triptych.v1 import model_pb2
from triptych.v1.job_pb2 import GenerationRequest

INTEGER, NUMBER = model_pb2.INPUT_KIND_INTEGER, model_pb2.INPUT_KIND_NUMBER


def model(recommended: str = "", **inputs: tuple[Any, str]) -> model_pb2.ModelDescription:
    description = model_pb2.ModelDescription(model="m", outputs=["videos"], defaults_json=recommended)
    description.inputs.add(name="prompt", kind=model_pb2.INPUT_KIND_TEXT)
    for name, (kind, default) in inputs.items():
        hint = "float" if kind == NUMBER else "int"
        description.inputs.add(name=name, kind=kind, default_json=default, type_hint=hint)
    return description


def request(**fields: Any) -> GenerationRequest:
    return json_format.ParseDict({"prompt": "a", **fields}, GenerationRequest())


def pictures() -> model_pb2.ModelDescription:
    description = model()
    description.outputs[:] = ["images"]
    return description


LTX = {"frame_rate": (INTEGER, "25")}
COSMOS = {"fps": (NUMBER, "24.0")}


@pytest.mark.parametrize(
    ("description", "fields", "file_rate", "model_rate"),
    [
        (model(), {}, 16, {}),
        (model(), {"frames_per_second": 8}, 8, {}),
        (model('{"frames_per_second": 8}'), {}, 8, {}),
        (model(**LTX), {}, 25, {}),
        (model(**LTX), {"parameters": {"frame_rate": 10}}, 10, {"frame_rate": 10}),
        (model(**LTX), {"frames_per_second": 10}, 10, {"frame_rate": 10}),
        (model(**LTX), {"frames_per_second": 10, "parameters": {"frame_rate": 10}}, 10, {"frame_rate": 10}),
        (model('{"frames_per_second": 8}', **LTX), {}, 8, {"frame_rate": 8}),
        (model('{"frame_rate": 8}', **LTX), {}, 8, {"frame_rate": 8}),
        (model('{"frames_per_second": 8}', **LTX), {"parameters": {"frame_rate": 10}}, 10, {"frame_rate": 10}),
        (model(**COSMOS), {"frames_per_second": 12.5}, 12.5, {"fps": 12.5}),
        (model(driving_video_fps=(NUMBER, "")), {"parameters": {"driving_video_fps": 30}}, 16, {}),
    ],
)
def test_one_rate_is_the_models_and_the_files(
    description: model_pb2.ModelDescription, fields: dict[str, Any], file_rate: float, model_rate: dict[str, float]
) -> None:
    asked = request(**fields)
    assert rates.frames_per_second(asked, description) == file_rate
    values = resolve(asked, description).for_encoder()
    assert {name: values[name] for name in rates.RATE_INPUTS if name in values} == model_rate


@pytest.mark.parametrize(
    ("description", "fields", "message"),
    [
        (model(**LTX), {"parameters": {"frame_rate": 0}}, r"^parameters.frame_rate is 0.*; accepted: 0.1 to 240$"),
        (model(**LTX), {"parameters": {"frame_rate": -5}}, r"^parameters.frame_rate is -5.*; accepted: 0.1 to 240$"),
        (model(**LTX), {"parameters": {"frame_rate": 1e6}}, r"^parameters.frame_rate is 1000000.*; accepted: 0.1 to"),
        (
            model(**LTX),
            {"frames_per_second": 24, "parameters": {"frame_rate": 10}},
            r"^parameters.frame_rate is 10.*; accepted: 24, the request's frames_per_second",
        ),
        (model(**LTX), {"frames_per_second": 12.5}, r"^frames_per_second is 12.5; accepted: a whole number; it is the"),
        (model(**LTX), {"frames_per_second": 241}, r"^frames_per_second is 241.*; accepted: 0.1 to 240, or 0 for"),
        (
            pictures(),
            {"frames_per_second": 8},
            r"^frames_per_second is 8.*; accepted: 0; this pipeline makes no video$",
        ),
        (model(fps=(NUMBER, "24.0")), {"parameters": {"fps": 0}}, r"^parameters.fps is 0"),
        (model(fps=(NUMBER, "24.0")), {"inputs": {"fps": {"int_value": "0"}}}, r"^inputs.fps is 0"),
        (model(**LTX), {"inputs": {"frame_rate": {"number_value": 1e6}}}, r"^inputs.frame_rate is 1000000"),
    ],
)
def test_rates_that_cannot_be_and_two_rates_are_refused(
    description: model_pb2.ModelDescription, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        resolve(request(**fields), description)


@pytest.mark.parametrize(
    ("description", "message"),
    [
        (
            model('{"frames_per_second": 8, "frame_rate": 10}', **LTX),
            "frames_per_second 8 and frame_rate 10; accepted: one",
        ),
        (model('{"frames_per_second": 0}'), "frames_per_second 0; accepted: 0.1 to 240"),
        (model('{"frames_per_second": "8"}'), "frames_per_second '8'; accepted: 0.1 to 240"),
        (model('{"frames_per_second": 12.5}', **LTX), r"frames_per_second 12.5; accepted: a whole number"),
    ],
)
def test_folders_are_held_to_the_same(description: model_pb2.ModelDescription, message: str) -> None:
    with pytest.raises(ModelInvalid, match=message):
        rates.check_recommended(Description(description))


@pytest.mark.parametrize(
    ("name", "kind", "default", "bad", "good", "accepted"),
    [
        ("max_new_tokens", INTEGER, "512", 0, 1, "1 to 9007199254740992"),
        ("layers", INTEGER, "4", -1, 1, "1 to"),
        ("resolution", INTEGER, "640", 0, 640, "1 to"),
        ("num_latent_frames_per_chunk", INTEGER, "9", 0, 1, "1 to"),
        ("num_first_chunk_conditional_frames", INTEGER, "0", -1, 0, "0 to"),
        ("chunk_id", INTEGER, "0", -1, 0, "0 to"),
        ("eta", NUMBER, "0.0", 1.5, 1, "0 to 1"),
        ("decode_timestep", NUMBER, "0.0", -0.1, 0.05, "0 to 1"),
        ("control_guidance_end", NUMBER, "1.0", 2, 0.5, "0 to 1"),
        ("pe_top_p", NUMBER, "0.95", -1, 0.5, "0 to 1"),
        ("audio_duration", NUMBER, "60.0", 0, 2.5, "0.001 or more"),
        ("driving_video_fps", NUMBER, "", -1, 30, "0.001 or more"),
        ("conditioning_scale", NUMBER, "", None, -2, ""),
    ],
)
def test_numbers_are_held_to_what_their_names_say(
    name: str, kind: Any, default: str, bad: float | None, good: float, accepted: str
) -> None:
    description = model(**{name: (kind, default)})
    resolve(request(parameters={name: good}), description)
    if bad is not None:
        with pytest.raises(InvalidRequest, match=f"^parameters.{name} is '{bad:g}'; accepted: {accepted}"):
            resolve(request(parameters={name: bad}), description)
