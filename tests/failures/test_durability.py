"""What a controller keeps: a backup is a state folder, and finished jobs don't pile up."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.clients.test_cli import triptych
from tests.e2e import reference
from tests.e2e.conftest import result
from tests.failures.test_survival import FIELDS, LONG, half_done, plain
from tests.fleet.held import HeldFleet
from tests.fleet.processes import DEATH_TIMEOUT_S, wait_until
from triptych.errors import NotFound


def test_a_backup_in_the_place_of_a_lost_state_folder(tmp_path: Path, model_folder: Callable[[str], str]) -> None:
    """What was finished is there, what was running is done again, and what came later is gone."""
    model, copy = model_folder("wan_t2v"), tmp_path / "copy"
    fleet = HeldFleet(tmp_path / "held", model, worker_timeout_s=DEATH_TIMEOUT_S)
    state = fleet.folder / "state"
    with fleet, fleet.client() as client:
        finished = client.create_job("a big red circle", **FIELDS).job_id
        before = result(client, finished, tmp_path)
        running = half_done(fleet, client).job_id
        assert triptych("backup", copy, "--state", state).returncode == 0
        late = client.create_job("a big red circle", **FIELDS).job_id
        for name in fleet.processes:
            fleet.kill(name)
    shutil.rmtree(state)
    copy.rename(state)
    with fleet, fleet.client() as client:
        assert np.array_equal(result(client, finished, tmp_path), before)
        assert np.array_equal(result(client, running, tmp_path), reference.fused(model, **plain(LONG)))
        assert late not in [job.job_id for job in client.list_jobs()]
        fleet.kill("controller")
        fleet.controller_flags = ("--keep-jobs", "1")  # not before: the job may have ended while it was copied
        fleet.start("controller")  # it looks for what there is too much of when it starts

        def is_gone() -> bool:
            try:
                client.get_job(finished)
            except NotFound:
                return True
            return False

        wait_until(is_gone, 60, "the older of two finished jobs is removed")
        assert [job.job_id for job in client.list_jobs()] == [running]
        assert [path.name for path in (state / "results").iterdir()] == [running]
