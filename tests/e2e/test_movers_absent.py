"""A machine without Mooncake: the other movers do, unless Mooncake was asked for by name."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import SMALL
from tests.e2e.test_parity import fetches
from tests.fleet.processes import READY_TIMEOUT_S, Fleet
from triptych.v1.job_pb2 import JOB_STATE_SUCCEEDED

ABSENT = "raise ModuleNotFoundError(\"No module named 'mooncake'\", name='mooncake')\n"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The part of an environment in which `import mooncake` fails as where it isn't installed."""
    (tmp_path / "without" / "mooncake").mkdir(parents=True)
    (tmp_path / "without" / "mooncake" / "__init__.py").write_text(ABSENT)
    path = os.pathsep.join(filter(None, [str(tmp_path / "without"), os.environ.get("PYTHONPATH", "")]))
    return {"PYTHONPATH": path}


@pytest.fixture
def decoder(wan_fleet: Fleet, environment: dict[str, str]) -> Iterator[str]:
    """The address of one more decoder, without Mooncake."""
    with wan_fleet.also("decoder-1", **environment):
        yield wan_fleet.addresses["decoder-1"]


def test_a_worker_without_mooncake_says_so_and_works(decoder: str, wan_fleet: Fleet) -> None:
    lines = wan_fleet.log("decoder-1").splitlines()
    warnings = [line for line in lines if '"WARNING"' in line and '"py.warnings"' not in line]
    assert len(warnings) == 1
    assert "rooms go by the movers local and rpc only" in warnings[0]
    assert "triptych[serve]" in warnings[0]
    with wan_fleet.client() as client:
        (rank,) = [worker.rank for worker in client.get_fleet().workers if worker.info.address == decoder]
        job = client.create_job("a big red circle", **SMALL, num_frames=5, decoder_rank=rank)
        for update in client.watch_job(job.job_id, timeout_s=120):
            job = update.job
    assert (job.state, job.decoder_rank, job.error) == (JOB_STATE_SUCCEEDED, rank, "")
    assert fetches(decoder) == {"local": 1}


def test_asking_for_mooncake_by_name_needs_it(wan_fleet: Fleet, environment: dict[str, str]) -> None:
    done = subprocess.run(
        [*wan_fleet.command("decoder-1"), "--mover", "mooncake"],
        capture_output=True,
        text=True,
        env={**os.environ, **environment, "OMP_NUM_THREADS": "1"},
        timeout=READY_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    (sentence,) = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    assert sentence == (
        "error: the mover mooncake needs the package 'mooncake-transfer-engine-non-cuda': pip install 'triptych[serve]'"
    )
