"""A worker whose process may have less memory than another's: it really runs out of it, and what follows.

Its address space is capped from outside, a gibibyte below what the larger jobs of these tests allocate.
"""

from __future__ import annotations

import re
import resource
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.e2e.conftest import ended, result
from tests.fleet.held import WAIT_S, HeldFleet, create
from tests.fleet.processes import wait_until
from triptych.v1.job_pb2 import ATTEMPT_KIND_OUT_OF_MEMORY, JOB_STATE_FAILED, JOB_STATE_SUCCEEDED
from triptych.v1.worker_pb2 import Worker
from triptych_client import Client

SMALL, OTHER = "transformer-0", "transformer-1"
LARGE = {"num_frames": 9, "num_inference_steps": 9}
"""A job that allocates `ASKED_BYTES`; others don't."""
ASKED_BYTES, LEFT_BYTES = 2**31, 2**30


def worker(fleet: HeldFleet, client: Client, name: str) -> Worker:
    """As the controller knows it."""
    return next(one for one in client.get_fleet().workers if one.info.process_id == fleet.pid(name))


@pytest.fixture
def capped(fleet: HeldFleet) -> Iterator[HeldFleet]:
    """The shared fleet, one of whose transformers can't do large jobs. It ends with the test."""
    pages = int(Path(f"/proc/{fleet.pid(SMALL)}/statm").read_text().split()[0])
    cap = pages * resource.getpagesize() + LEFT_BYTES
    resource.prlimit(fleet.pid(SMALL), resource.RLIMIT_AS, (cap, cap))
    starving = fleet.holds / f"starve-{LARGE['num_inference_steps']}"
    starving.write_text(str(ASKED_BYTES))
    yield fleet
    starving.unlink()
    fleet.kill(SMALL)


def test_a_job_that_ran_out_of_memory_is_done_where_there_is_more(
    capped: HeldFleet, client: Client, tmp_path: Path
) -> None:
    """The first attempt is really made where it is too large: the other one is busy until then."""
    with capped.held(OTHER):
        busy = create(client, transformer_rank=worker(capped, client, OTHER).rank)
        capped.wait_held(OTHER)
        job_id = create(client, **LARGE)
        wait_until(lambda: client.get_job(job_id).attempts, WAIT_S, "it has failed where it is too large")
    array = result(client, job_id, tmp_path)
    job = client.get_job(job_id)
    (attempt,) = job.attempts
    assert (attempt.rank, attempt.kind) == (worker(capped, client, SMALL).rank, ATTEMPT_KIND_OUT_OF_MEMORY)
    assert attempt.needed_bytes == ASKED_BYTES
    assert 0 < attempt.available_bytes < ASKED_BYTES
    assert job.transformer_rank == worker(capped, client, OTHER).rank
    assert np.array_equal(array, capped.expected(**LARGE))
    assert ended(client, busy).state == JOB_STATE_SUCCEEDED


def test_a_worker_says_what_it_can_not_do_and_is_not_given_it(
    capped: HeldFleet, client: Client, tmp_path: Path
) -> None:
    small_rank, other_rank = (worker(capped, client, name).rank for name in (SMALL, OTHER))
    small_id = create(client, transformer_rank=small_rank)
    assert np.array_equal(result(client, small_id, tmp_path), capped.expected())

    large = ended(client, create(client, **LARGE, transformer_rank=small_rank))
    assert (large.state, [attempt.rank for attempt in large.attempts]) == (JOB_STATE_FAILED, [small_rank] * 2)
    said = (
        r"transformers ran out of memory in 2 attempts; the last: out of memory on cpu: 2 GiB more were asked for; "
        r"\S+ [KMG]iB of the \S+ GiB that this process may have were free"
    )
    assert re.fullmatch(said, large.error), large.error

    wait_until(lambda: worker(capped, client, SMALL).status.pixels_failed_min, WAIT_S, "it has told of its bound")
    status = worker(capped, client, SMALL).status
    assert 0 < status.pixels_done_max < status.pixels_failed_min
    assert status.pixels_failed_min / status.pixels_done_max == 9 / 5, "by frames, the only difference"

    with capped.held(OTHER):  # so that it would be the other one's turn each time
        job_ids = [create(client, **LARGE) for _ in range(3)]
        capped.wait_held(OTHER)
        again = create(client, transformer_rank=small_rank)
        assert np.array_equal(result(client, again, tmp_path), capped.expected()), "what it can do, it does"
        assert not any(client.get_job(job_id).attempts for job_id in job_ids)
    for job_id in job_ids:
        job = ended(client, job_id)
        assert (job.state, job.transformer_rank, len(job.attempts)) == (JOB_STATE_SUCCEEDED, other_rank, 0)
    assert capped.processes[SMALL].poll() is None
