"""A decoder that ends while its completion is under way leaves what may have been accepted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.worker.delivery import Delivery
from services.worker.running import Running
from triptych.errors import LeaseLost, NotAllowed
from triptych.media import results
from triptych.rings.ring import Claimed
from triptych.v1.dispatch_pb2 import Dispatch
from triptych.v1.fleet_service_pb2 import StartPhaseResponse
from triptych.v1.job_pb2 import Artifact, GenerationRequest
from triptych.v1.model_pb2 import ModelDescription
from triptych.v1.ring_service_pb2 import Lease

OUTPUTS = {"images": np.zeros((1, 4, 4, 3), np.uint8)}


class Place:
    """All that a delivery asks of its link."""

    def __init__(self, url: str) -> None:
        self.result_url = url


STARTED = StartPhaseResponse(request=GenerationRequest())


class Reporter:
    """Stands for a controller that takes the completion; what its answer is, or that there is none, a test says."""

    def __init__(self, answer: Exception | None) -> None:
        self.taken: list[Artifact] = []
        self.asked = asyncio.Event()
        self._answer = answer

    async def complete(self, *, artifacts: Sequence[Artifact], result_url: str) -> None:
        self.taken.extend(artifacts)
        self.asked.set()
        if self._answer is None:
            await asyncio.Event().wait()
        else:
            raise self._answer


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


async def in_thread(work: Callable[[], Any]) -> Any:
    return await asyncio.to_thread(work)


async def deliver(url: str, reporter: Reporter) -> None:
    delivery = Delivery(Place(url), ModelDescription(), in_thread)  # type: ignore[arg-type]
    running = Running(Claimed(Lease(), Dispatch(job_id="job-1")), 1)
    delivering = asyncio.create_task(delivery.run(running, STARTED, OUTPUTS, reporter))  # type: ignore[arg-type]
    await asyncio.wait_for(reporter.asked.wait(), 60)
    delivering.cancel()  # as the end of the process does; one that was answered ends by that
    await asyncio.wait([delivering], timeout=60)


@pytest.mark.parametrize("answer", [None, NotAllowed("the token is another by now")], ids=["none", "refused"])
async def test_what_may_have_been_accepted_stays(tmp_path: Path, answer: Exception | None) -> None:
    url, reporter = results.check_url("result_url", str(tmp_path)), Reporter(answer)
    await deliver(url, reporter)
    assert b"".join(results.read(url, reporter.taken[0], "job-1"))


async def test_what_was_refused_is_removed(tmp_path: Path) -> None:
    url = results.check_url("result_url", str(tmp_path))
    reporter = Reporter(LeaseLost("it came too late"))
    delivery = Delivery(Place(url), ModelDescription(), in_thread)  # type: ignore[arg-type]
    running = Running(Claimed(Lease(), Dispatch(job_id="job-1")), 1)
    with pytest.raises(LeaseLost):
        await delivery.run(running, STARTED, OUTPUTS, reporter)  # type: ignore[arg-type]
    assert files(tmp_path) == []
