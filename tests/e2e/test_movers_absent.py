"""A machine without Mooncake: the other movers do, unless Mooncake was asked for by name."""

from __future__ import annotations

import os
import selectors
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import SMALL
from tests.e2e.fleet import READY_TIMEOUT_S, STOP_TIMEOUT_S, Fleet
from tests.e2e.test_parity import fetches
from triptych.v1.job_pb2 import JOB_STATE_SUCCEEDED

ABSENT = "raise ModuleNotFoundError(\"No module named 'mooncake'\", name='mooncake')\n"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """An environment in which `import mooncake` fails as where it isn't installed."""
    (tmp_path / "without" / "mooncake").mkdir(parents=True)
    (tmp_path / "without" / "mooncake" / "__init__.py").write_text(ABSENT)
    path = os.pathsep.join(filter(None, [str(tmp_path / "without"), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def command(fleet: Fleet, *more: str) -> list[str]:
    flags = ["--model", fleet.model, "--controller", fleet.endpoint, "--threads", "1", "--arena-bytes", str(2**26)]
    return [sys.executable, "-m", "services.decoder", *flags, *more]


@pytest.fixture
def decoder(wan_fleet: Fleet, environment: dict[str, str], tmp_path: Path) -> Iterator[str]:
    """The address of one more decoder, without Mooncake."""
    with (tmp_path / "decoder.log").open("w") as log:
        process = subprocess.Popen(command(wan_fleet), stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
    try:
        with selectors.DefaultSelector() as selector:
            assert process.stdout is not None
            selector.register(process.stdout, selectors.EVENT_READ)
            assert selector.select(READY_TIMEOUT_S), (tmp_path / "decoder.log").read_text()
        line = process.stdout.readline()
        assert line.startswith("READY "), (tmp_path / "decoder.log").read_text()
        yield line.split()[1]
    finally:
        process.terminate()
        assert process.wait(STOP_TIMEOUT_S) == 0
        assert process.stdout is not None
        process.stdout.close()


def test_a_worker_without_mooncake_says_so_and_works(decoder: str, wan_fleet: Fleet, tmp_path: Path) -> None:
    warnings = [line for line in (tmp_path / "decoder.log").read_text().splitlines() if '"WARNING"' in line]
    assert len(warnings) == 1
    assert "rooms go by the movers local and rpc only" in warnings[0]
    assert "triptych[serve]" in warnings[0]
    with wan_fleet.client() as client:
        (rank,) = [worker.rank for worker in client.get_fleet().workers if worker.address == decoder]
        job = client.create_job("a big red circle", **SMALL, num_frames=5, decoder_rank=rank)
        for update in client.watch_job(job.job_id, timeout_s=120):
            job = update.job
    assert (job.state, job.decoder_rank, job.error) == (JOB_STATE_SUCCEEDED, rank, "")
    assert fetches(decoder) == {"local": 1}


def test_asking_for_mooncake_by_name_needs_it(wan_fleet: Fleet, environment: dict[str, str]) -> None:
    done = subprocess.run(
        command(wan_fleet, "--mover", "mooncake"),
        capture_output=True,
        text=True,
        env=environment,
        timeout=READY_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    (sentence,) = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    assert sentence == (
        "error: the mover mooncake needs the package 'mooncake-transfer-engine-non-cuda': pip install 'triptych[serve]'"
    )
