"""A text-encoder process that is gone costs no job, by either of the two ways."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest

from tests.e2e import reference
from tests.e2e.conftest import SMALL, ended, generate, result, worker_of
from tests.engines.fleets import TEXT_ENCODER, EngineFleet
from tests.fleet.processes import wait_until
from triptych.v1.job_pb2 import JOB_STATE_FAILED
from triptych_client.request import build_request

WAN = {"num_frames": 5, "guidance_scale": 3.5}
OVER_S = 100.0
pytestmark = pytest.mark.timeout(600)
"""Each test starts five or six processes."""


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, model_folder) -> np.ndarray:
    return reference.modular(model_folder("wan_t2v"), "videos", 3.5, num_frames=5)


def submit(client, prompt: str = "a big red circle", **fields) -> str:
    """A job of small size; its id."""
    request = build_request(prompt, output_format="npy", **{**SMALL, **WAN, **fields})
    return client.submit(request).job_id


def test_a_killed_process_is_waited_for(tmp_path: Path, model_folder, expected) -> None:
    """Killed while it computes, with the job in its hands: the same job goes on in the next process."""
    with EngineFleet(tmp_path / "fleet", model_folder("wan_t2v")) as fleet, fleet.client() as client:
        fleet.processes[TEXT_ENCODER].send_signal(signal.SIGSTOP)  # the call is under way, and isn't answered
        job_id = submit(client)
        wait_until(lambda: client.get_job(job_id).encoder_rank, OVER_S, "an encoder has the job")
        fleet.kill(TEXT_ENCODER)
        wait_until(lambda: "is absent" in fleet.log("encoder-0"), OVER_S, "the encoder misses it")
        wait_until(lambda: "is absent" in worker_of(fleet, "encoder-0").status.waiting_for, OVER_S, "it says so")
        fleet.start(TEXT_ENCODER)
        assert np.array_equal(result(client, job_id, tmp_path), expected)
        assert not client.get_job(job_id).attempts
        assert "is back" in fleet.log("encoder-0")
        assert not worker_of(fleet, "encoder-0").status.waiting_for


def test_a_wait_has_an_end_that_the_job_is_told(tmp_path: Path, model_folder, expected) -> None:
    flags = ("--text-encoder-wait-s", "1")
    with (
        EngineFleet(
            tmp_path / "fleet", model_folder("wan_t2v"), encoder_flags=flags, controller_flags=("--attempts-max", "1")
        ) as fleet,
        fleet.client() as client,
    ):
        fleet.kill(TEXT_ENCODER)
        failed = ended(client, submit(client))
        assert failed.state == JOB_STATE_FAILED
        assert "is absent" in failed.error
        waits = submit(client)  # nobody claims it meanwhile
        fleet.start(TEXT_ENCODER)
        assert np.array_equal(result(client, waits, tmp_path), expected)


def test_an_absent_process_is_replaced_locally(tmp_path: Path, model_folder, expected) -> None:
    """From the start of the encoder, and from the middle of its life."""
    flags = ("--text-encoder-absent", "local")
    made = EngineFleet(tmp_path / "fleet", model_folder("wan_t2v"), encoder_flags=flags)
    with made as fleet, fleet.client() as client:
        assert np.array_equal(generate(client, tmp_path, **WAN), expected)
        assert "text_encoder" not in dict(worker_of(fleet, "encoder-0").info.component_bytes)
        fleet.kill(TEXT_ENCODER)
        assert np.array_equal(generate(client, tmp_path, **WAN), expected)
        assert "text_encoder is loaded in this process" in fleet.log("encoder-0")
