"""A fleet of fake stages: the whole way of a job, without a model."""

from __future__ import annotations

from pathlib import Path

import grpc
import numpy as np
import PIL.Image
import pytest

from tests.fleet.processes import Fleet
from triptych.errors import JobFailed
from triptych.stages.fake import expected_outputs
from triptych.v1.file_service_pb2 import GetArtifactRequest
from triptych.v1.file_service_pb2_grpc import FileServiceStub
from triptych_client.request import build_request


def test_results_are_those_of_the_pure_functions(tmp_path: Path) -> None:
    fields = {"height": 32, "width": 48, "seed": 3}
    with (
        Fleet(tmp_path / "fleet", "", worker_flags=("--fake-stage-seconds", "0.2", "--mover", "rpc")) as fleet,
        fleet.client() as client,
    ):
        done = client.generate("a cat", tmp_path / "out.npy", **fields)
        with pytest.raises(JobFailed, match="refuse"):
            client.generate("a cat", tmp_path / "no.npy", parameters={"refuse": True})
        assert client.describe_model().model == "fake"
        assert done.job.step_count == 8
        with grpc.insecure_channel(fleet.endpoint) as channel:
            asked = GetArtifactRequest(job_id=done.job.job_id)
            bodies = list(FileServiceStub(channel).GetArtifact(asked, timeout=30))
    assert b"".join(body.data for body in bodies) == done.paths[0].read_bytes()
    assert {body.content_type for body in bodies} == {done.job.artifacts[0].media_type}
    expected = expected_outputs(build_request("a cat", **fields))["images"]
    assert np.array_equal(np.load(done.paths[0]), expected[0])  # type: ignore[index]


def test_a_large_picture_goes_ahead_and_counts(tmp_path: Path) -> None:
    noise = np.random.default_rng(3).integers(0, 256, (1300, 1300, 3), np.uint8)
    PIL.Image.fromarray(noise).save(tmp_path / "big.png")
    fields = {"height": 32, "width": 48, "seed": 3, "media": {"image": tmp_path / "big.png"}}
    with (
        Fleet(tmp_path / "fleet", "", worker_flags=("--fake-stage-seconds", "0.2", "--mover", "rpc")) as fleet,
        fleet.client() as client,
    ):
        done = client.generate("a cat", tmp_path / "out.npy", request_id="mine", **fields)
        uploads = tmp_path / "fleet/state/results/uploads"
        assert uploads.exists()
        assert not list(uploads.glob("*/*/whole-*")), "the job has its bytes"
        assert client.create_job("a cat", request_id="mine", output_format="npy", **fields).job_id == done.job.job_id
    expected = expected_outputs(build_request("a cat", **fields))["images"]
    assert np.array_equal(np.load(done.paths[0]), expected[0])  # type: ignore[index]
