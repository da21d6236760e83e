"""A fleet whose workers can be held still where they work, and looked into from outside."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from tests.e2e import reference
from tests.e2e.conftest import SMALL
from tests.fleet.processes import Fleet, wait_until
from triptych.v1.dispatch_pb2 import Dispatch, Ring, Role
from triptych.v1.job_pb2 import Job, JobState
from triptych.v1.ring_service_pb2 import SLOT_STATE_LEASED, SLOT_STATE_READY, ListSlotsRequest
from triptych.v1.ring_service_pb2_grpc import RingServiceStub
from triptych.v1.worker_pb2 import Worker
from triptych_client import Client

FIELDS: dict[str, Any] = {**SMALL, "num_frames": 5, "guidance_scale": 3.5, "num_inference_steps": 4}
PROMPT = "a big red circle"
WORKER = (sys.executable, "-m", "tests.failures.worker")
WAIT_S = 120.0
"""Longest wait for anything: a machine under load."""


def held_model(plain: str, folder: Path) -> str:
    """A tiny Wan of `tests.models`, with the components of `tests.failures.held` in the place of their own parents."""
    index = json.loads((Path(plain) / "model_index.json").read_text())
    for name, cls in (("scheduler", "HeldScheduler"), ("text_encoder", "HeldEncoder"), ("vae", "HeldVae")):
        index[name] = ["tests.failures.held", cls]
    folder.mkdir(parents=True)
    for entry in Path(plain).iterdir():
        (folder / entry.name).symlink_to(entry)
    (folder / "model_index.json").unlink()
    (folder / "model_index.json").write_text(json.dumps(index))
    return str(folder)


class HeldFleet(Fleet):
    """See the module's docstring. The plain model, in this process, gives the bits that jobs must have."""

    def __init__(self, folder: Path, plain_model: str, **settings: Any) -> None:
        self.plain_model, self.holds = plain_model, folder / "holds"
        self.holds.mkdir(parents=True)
        self._expected: dict[str, np.ndarray[Any, Any]] = {}
        model = held_model(plain_model, folder / "model")
        super().__init__(
            folder / "fleet", model, env={"HOLD": str(self.holds)}, prefix=lambda _name: WORKER, **settings
        )

    # -- holding ----------------------------------------------------------------------------------------------------

    def hold(self, name: str, steps: int = 0) -> None:
        """Have a worker's stage wait where it works, from now on; a transformer's after so many more steps."""
        (self.holds / f"held-{self.pid(name)}").unlink(missing_ok=True)  # one that was released as it came there
        hold = self.holds / f"hold-{self.pid(name)}.new"
        hold.write_text(str(self.steps_made(name) + steps) if steps else "")
        hold.rename(hold.with_suffix(""))

    def wait_held(self, name: str) -> None:
        """Return when a stage waits there."""
        wait_until(lambda: self.is_held(name), WAIT_S, f"{name} is held")

    def is_held(self, name: str) -> bool:
        """Whether a stage waits there."""
        return (self.holds / f"held-{self.pid(name)}").exists()

    def release(self, name: str) -> None:
        """Let it go on."""
        pid = self.pid(name)
        for kind in ("hold", "held"):
            (self.holds / f"{kind}-{pid}").unlink(missing_ok=True)

    @contextmanager
    def held(self, *names: str) -> Iterator[None]:
        """Hold workers for the length of a block."""
        for name in names:
            self.hold(name)
        try:
            yield
        finally:
            for name in names:
                self.release(name)

    @contextmanager
    def poisoned(self, steps: int) -> Iterator[None]:
        """For the length of a block, a job of so many steps kills the transformer that begins it."""
        poison = self.holds / f"kill-{steps}"
        poison.touch()
        try:
            yield
        finally:
            poison.unlink()

    def steps_made(self, name: str) -> int:
        """How often a transformer's scheduler has stepped, in all its life."""
        path = self.holds / f"steps-{self.pid(name)}"
        return path.stat().st_size if path.exists() else 0

    # -- looking ----------------------------------------------------------------------------------------------------

    def expected(self, **fields: Any) -> np.ndarray[Any, Any]:
        """The bits that a job of these fields must give."""
        key = repr(sorted(fields.items()))
        if key not in self._expected:
            self._expected[key] = reference.fused(self.plain_model, **{**FIELDS, **fields})
        return self._expected[key]


def restore(fleet: Fleet, client: Client) -> None:
    """Bring a fleet back to where every test may start: all processes there, known, idle, without rooms or jobs."""
    for name, process in fleet.processes.items():
        if process.poll() is not None:
            fleet.start(name)
        else:
            process.send_signal(signal.SIGCONT)
    pids = {process.pid for name, process in fleet.processes.items() if name != "controller"}
    wait_until(
        lambda: {w.info.process_id for w in client.get_fleet().workers} == pids,
        WAIT_S,
        "exactly these workers are known",
    )
    wait_until(
        lambda: not any(w.status.progress.job_id or w.status.room_count for w in client.get_fleet().workers),
        WAIT_S,
        "all are idle",
    )


def create(client: Client, **fields: Any) -> str:
    """Have a job accepted; its id."""
    return client.create_job(PROMPT, **{**FIELDS, "output_format": "npy", **fields}).job_id


def wait_state(client: Client, job_id: str, state: JobState.ValueType, step: int = 0) -> Job:
    """A job as soon as it is in a state, and has made so many steps."""
    wait_until(
        lambda: (job := client.get_job(job_id)).state == state and job.step >= step,
        WAIT_S,
        f"{job_id} is {JobState.Name(state)}",
    )
    return client.get_job(job_id)


def name_of(fleet: Fleet, client: Client, rank: int) -> str:
    """The process that has a rank."""
    (worker,) = (w for w in client.get_fleet().workers if w.rank == rank)
    return fleet.name_of(worker.info.process_id)


def worker_named(fleet: Fleet, client: Client, name: str) -> Worker | None:
    """What the controller knows of a process; None when it isn't (or no longer) registered."""
    return next((w for w in client.get_fleet().workers if w.info.process_id == fleet.pid(name)), None)


def dispatched(fleet: Fleet, ring: Ring.ValueType, job_id: str) -> Dispatch:
    """What a ring has of a job, as soon as it is there: a job's state changes a moment before."""
    wait_until(lambda: job_id in dispatches(fleet, ring), WAIT_S, f"{job_id} is in the ring")
    return dispatches(fleet, ring)[job_id]


def dispatches(fleet: Fleet, ring: Ring.ValueType) -> dict[str, Dispatch]:
    """What is in a ring, by job."""
    with grpc.insecure_channel(fleet.addresses["controller"]) as channel:
        slots = RingServiceStub(channel).ListSlots(ListSlotsRequest(ring=ring), timeout=30).slots
    return {s.dispatch.job_id: s.dispatch for s in slots if s.state in (SLOT_STATE_READY, SLOT_STATE_LEASED)}


def reasons(job: Job) -> list[tuple[str, int, str]]:
    """What went wrong, attempt by attempt: role, rank, reason."""
    return [(Role.Name(a.role).removeprefix("ROLE_").lower(), a.rank, a.reason) for a in job.attempts]
