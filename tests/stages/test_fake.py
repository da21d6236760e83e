"""The stage without a model: its results follow from the request, it stops when told to, and it loads no torch."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from triptych.errors import InvalidRequest, JobCancelled
from triptych.media import encoding
from triptych.media.formats import RUNS
from triptych.model.inputs import SETTINGS, resolve, texts_of
from triptych.roles import ROLES
from triptych.stages import Step
from triptych.stages.fake import FAKE_MODEL, FakeStage, expected_outputs, fake_model
from triptych.transport import codec
from triptych.v1.dispatch_pb2 import ROLE_DECODER, ROLE_ENCODER, ROLE_TRANSFORMER, Role
from triptych.v1.job_pb2 import GenerationRequest


def request(**fields: Any) -> GenerationRequest:
    return GenerationRequest(**{"prompt": "a cat", "seed": 7, "height": 16, "width": 24, **fields})


def run_all(
    of: GenerationRequest, seconds: float = 0.0, on_step: Callable[[Step], None] = lambda _step: None
) -> dict[str, object]:
    """Through the codec between the roles, as in a fleet."""
    values: dict[str, object] = resolve(of, FAKE_MODEL).for_encoder()
    for role in ROLES:
        values = FakeStage(role, seconds).run(values, on_step, lambda: False)
        encoded = codec.encode(values, "job")
        room = bytearray()
        for tensor, buffer in zip(encoded.manifest.tensors, encoded.buffers, strict=True):
            tensor.offset_bytes, tensor.size_bytes = len(room), buffer.nbytes
            room += buffer
        values = codec.decode(encoded.manifest, memoryview(room))
    return values


def picture(of: GenerationRequest) -> np.ndarray[Any, Any]:
    value = expected_outputs(of)["images"]
    assert isinstance(value, np.ndarray)
    return value[0]


def test_the_result_is_a_function_of_the_request() -> None:
    crossed = run_all(request(), 0.01)["images"]
    assert isinstance(crossed, np.ndarray)
    assert np.array_equal(crossed[0], picture(request()))
    assert picture(request()).shape == (16, 24, 3)
    assert picture(request()).std() > 0, "a flat picture proves nothing"


@pytest.mark.parametrize("change", [{"seed": 8}, {"prompt": "a dog"}, {"num_inference_steps": 3}])
def test_every_part_of_the_request_shows_in_the_result(change: dict[str, Any]) -> None:
    assert not np.array_equal(picture(request()), picture(request(**change)))


@pytest.mark.parametrize(("output_format", "start"), [("npy", b"\x93NUMPY"), ("png", b"\x89PNG")])
def test_results_are_stored_like_those_of_a_model(output_format: str, start: bytes) -> None:
    (artifact,) = encoding.encode_outputs(expected_outputs(request()), output_format, 16.0)
    assert artifact.data.startswith(start)


def test_several_results_are_those_of_their_seeds() -> None:
    steps: list[Step] = []
    made = run_all(request(num_outputs=3, seed=2**63 - 2, num_inference_steps=4), on_step=steps.append)
    files = encoding.encode_outputs(made, "npy", 16.0)
    assert [file.name for file in files] == ["0.npy", "1.npy", "2.npy"]
    for file, seed in zip(files, (2**63 - 2, 2**63 - 1, 0), strict=True):
        alone = picture(request(seed=seed, num_inference_steps=4))
        np.testing.assert_array_equal(np.load(io.BytesIO(file.data)), alone)
    assert [(step.step, step.step_count) for step in steps] == [(number, 12) for number in range(1, 13)]


def test_texts_of_every_run_are_private() -> None:
    assert texts_of(resolve(request(num_outputs=2), FAKE_MODEL).for_encoder()) == ["a cat"]
    assert texts_of({RUNS: [{"prompt": "a cat"}, {"other": ["a dog"], SETTINGS: {"seed": 1}}]}) == ["a cat", "a dog"]


def test_requests_are_checked_against_its_description() -> None:
    resolve(request(), FAKE_MODEL)
    with pytest.raises(InvalidRequest, match="num_frames"):
        resolve(request(num_frames=5), FAKE_MODEL)


def test_a_job_may_ask_to_be_refused() -> None:
    refused = request()
    refused.parameters["refuse"] = True
    with pytest.raises(InvalidRequest, match="refuse"):
        expected_outputs(refused)


def test_steps_are_reported_and_cancellation_is_seen_after_each() -> None:
    inputs = FakeStage(ROLE_ENCODER, 0.0).run(
        resolve(request(), FAKE_MODEL).for_encoder(), lambda _step: None, lambda: False
    )
    seen: list[Step] = []
    with pytest.raises(JobCancelled):
        FakeStage(ROLE_TRANSFORMER, 0.01).run(inputs, seen.append, lambda: len(seen) == 3)
    assert [(step.step, step.step_count) for step in seen] == [(1, 8), (2, 8), (3, 8)]


@pytest.mark.parametrize("role", [ROLE_ENCODER, ROLE_TRANSFORMER, ROLE_DECODER])
def test_a_cancelled_job_does_not_begin(role: Role.ValueType) -> None:
    with pytest.raises(JobCancelled):
        FakeStage(role, 0.0).run({}, lambda _step: None, lambda: True)


def test_a_worker_with_a_fake_stage_loads_no_torch() -> None:
    program = (
        "import sys, services.worker.process as s, triptych.config as c, triptych.v1.dispatch_pb2 as d;"
        "s.load_stage(d.ROLE_ENCODER, c.WorkerConfig(fake_stage_seconds=1.0));"
        "print(sorted({'torch', 'diffusers', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_each_role_of_another_model_gives_other_bits() -> None:
    """So that a single phase done by the wrong fleet is seen in the result."""

    def made(*models: str) -> bytes:
        values: dict[str, object] = resolve(request(), FAKE_MODEL).for_encoder()
        for role, name in zip(ROLES, models, strict=True):
            values = FakeStage(role, 0.0, name).run(values, lambda _step: None, lambda: False)
        return values["images"].tobytes()  # type: ignore[attr-defined]

    mixed = [made(a, b, c) for a in ("fake", "x") for b in ("fake", "x") for c in ("fake", "x")]
    assert len(set(mixed)) == len(mixed)
    assert made("fake", "fake", "fake") == expected_outputs(request())["images"].tobytes()  # type: ignore[attr-defined]
    assert fake_model("x").config_digest != fake_model("fake").config_digest == FAKE_MODEL.config_digest
