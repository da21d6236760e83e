"""Every process in turn is restarted under a steady load: no job fails, none is lost, none is tried twice."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

from tests.failures.loads import check, fake_fleet, request, wait_over
from tests.fleet.processes import STOP_TIMEOUT_S, Fleet, wait_until
from triptych_client import Client

JOB_SECONDS = 0.2
INTERVAL_S = 0.12
"""Between two jobs: more than one transformer can do, less than two."""
JOBS_BETWEEN = 5
"""Jobs that come between two restarts, at least."""


class Load(threading.Thread):
    """Creates a job every so often until it is told to stop."""

    def __init__(self, fleet: Fleet) -> None:
        super().__init__()
        self._fleet, self._stop_it = fleet, threading.Event()
        self.ids: list[str] = []
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            with self._fleet.client() as client:
                while not self._stop_it.wait(INTERVAL_S):
                    self.ids.append(client.submit(request(len(self.ids))).job_id)
        except Exception as error:  # noqa: BLE001  (raised by `stop`)
            self.error = error

    def stop(self) -> list[str]:
        """The jobs, in the order of their seeds. Raises what ended it before."""
        self._stop_it.set()
        self.join()
        if self.error is not None:
            raise self.error
        return self.ids


def test_a_rolling_restart_of_every_process(tmp_path: Path) -> None:
    counts = {"encoder": 2, "transformer": 2, "decoder": 2}
    with fake_fleet(tmp_path / "fleet", JOB_SECONDS, counts=counts) as fleet, fleet.client() as client:
        load = Load(fleet)
        load.start()
        for name in list(fleet.processes):
            begun = len(load.ids)
            fleet.processes[name].send_signal(signal.SIGTERM)
            assert fleet.processes[name].wait(STOP_TIMEOUT_S) == 0, fleet.log(name)
            fleet.start(name)
            wait_until(lambda n=begun: len(load.ids) >= n + JOBS_BETWEEN, 60, "jobs go on coming")
            print(f"{name}: {len(load.ids) - begun} jobs came while it was restarted")
        ids = load.stop()
        jobs = wait_over(client, ids, 120)
        assert len(ids) >= JOBS_BETWEEN * len(fleet.processes)
        for seed, job_id in enumerate(ids):
            check(client, jobs[job_id], seed, tmp_path)
        assert [job.attempts for job in jobs.values() if job.attempts] == []
        assert {job.generation for job in jobs.values()} == {0}
        assert_whole(client, ids)


def assert_whole(client: Client, ids: list[str]) -> None:
    """The journal has exactly these jobs, and soon no ring holds anything of them any more."""
    assert sorted(job.job_id for job in client.list_jobs()) == sorted(ids)
    wait_until(
        lambda: not any(ring.ready_count + ring.leased_count for ring in client.get_fleet().rings),
        60,
        "no ring holds anything",
    )
