"""`triptych up --text-encoders 1`: a job's bits, and no job lost where the process ends in the middle of one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.e2e import reference
from tests.e2e.conftest import SMALL, result
from tests.fleet.processes import free_port, wait_until
from triptych_client import Client
from triptych_client.request import build_request
from triptych_client.retry import RetryPolicy

OVER_S = 120.0
WAN = {"num_frames": 5, "guidance_scale": 3.5, "output_format": "npy"}
pytestmark = pytest.mark.timeout(600)
"""It starts seven processes, the text encoder twice."""


@contextmanager
def up(model: str, state: Path) -> Iterator[tuple[psutil.Process, str]]:
    """The launcher of a fleet that is ready, and the controller's address."""
    endpoint, log = f"127.0.0.1:{free_port()}", state.parent / "up.log"
    command = [sys.executable, "-m", "triptych_client.cli", "up", "--model", model, "--text-encoders", "1"]
    command += ["--threads", "1", "--state", str(state), "--endpoint", endpoint]
    with log.open("w") as stderr, subprocess.Popen(command, stderr=stderr, env=dict(os.environ)) as process:
        try:
            wait_until(lambda: "the fleet is ready" in log.read_text(), OVER_S, "the fleet is ready")
            yield psutil.Process(process.pid), endpoint
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(OVER_S) == 0, log.read_text()


def text_encoders(launcher: psutil.Process) -> list[psutil.Process]:
    return [child for child in launcher.children() if "services.text_encoder" in child.cmdline()]


def test_a_text_encoder_that_is_killed_in_the_middle_costs_no_job(tmp_path: Path, model_folder) -> None:
    model = model_folder("wan_t2v")
    request = build_request("a big red circle", **{**SMALL, **WAN})
    expected = reference.modular(model, "videos", 3.5, num_frames=5)
    with up(model, tmp_path / "state") as (launcher, endpoint), Client(endpoint, RetryPolicy(total_s_max=60)) as client:
        assert np.array_equal(result(client, client.submit(request).job_id, tmp_path), expected)
        assert not any("text_encoder" in worker.info.component_bytes for worker in client.get_fleet().workers)
        (first,) = text_encoders(launcher)
        other = build_request("a tiny red circle", **{**SMALL, **WAN})  # whose answers nobody has kept
        first.suspend()  # the call is under way, and isn't answered
        job_id = client.submit(other).job_id
        wait_until(lambda: client.get_job(job_id).encoder_rank, OVER_S, "an encoder has the job")
        first.kill()
        made = result(client, job_id, tmp_path)
        assert not client.get_job(job_id).attempts, "it went on where it was"
        (second,) = text_encoders(launcher)
        assert second.pid != first.pid
        assert np.array_equal(result(client, client.submit(other).job_id, tmp_path), made)
        assert np.array_equal(result(client, client.submit(request).job_id, tmp_path), expected)
