"""What a caller writes is in the controller and in encoders, and nowhere else: looked for in the processes' memory."""

from __future__ import annotations

import contextlib
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fleet.processes import Fleet, wait_until
from triptych.v1.job_pb2 import JOB_STATE_DENOISED, JOB_STATE_SUCCEEDED

CANARY = "qzv7canary"
PROMPTS = ("prompt_2", "prompt_3", "negative_prompt_2", "negative_prompt_3")
CHUNK_BYTES = 1 << 24
_REGION = re.compile(r"([0-9a-f]+)-([0-9a-f]+) rw")


def found_in(chunks: Iterator[bytes]) -> set[str]:
    """The canaries in a memory, a piece after the other; each piece overlaps the one before by a canary's length."""
    return {hit.decode() for chunk in chunks for hit in re.findall(rf"{CANARY}\w*".encode(), chunk)}


def memory_of(pid: int) -> Iterator[bytes]:
    """All that a process may write to: heap, stacks, shared memory. Pages that are gone meanwhile are passed over."""
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for start, end in re.findall(_REGION, maps.read()):
            position, stop = int(start, 16), int(end, 16)
            while position < stop:
                with contextlib.suppress(OSError, ValueError, OverflowError):
                    memory.seek(position)
                    yield memory.read(min(CHUNK_BYTES + 64, stop - position))
                position += CHUNK_BYTES


def room_bytes(pid: int) -> bytes:
    (arena,) = Path("/dev/shm").glob(f"triptych-arena-{pid}-*")
    return arena.read_bytes()


@pytest.fixture
def sd3(tmp_path: Path, model_folder: Callable[[str], str]) -> Iterator[Fleet]:
    flags = ("--trace-file", str(tmp_path / "trace.jsonl"))
    patient = (*flags, "--worker-timeout-s", "60")  # a decoder stands still on purpose
    with Fleet(tmp_path / "fleet", model_folder("sd3"), worker_flags=flags, controller_flags=patient) as fleet:
        yield fleet


def test_prompts_of_any_name_go_to_encoders_only(sd3: Fleet, tmp_path: Path) -> None:
    pids = {name: process.pid for name, process in sd3.processes.items()}
    parameters = {name: f"{CANARY}_{name}" for name in PROMPTS}
    fields: dict[str, Any] = {"height": 32, "width": 64, "num_inference_steps": 2, "parameters": parameters}
    written = {CANARY, f"{CANARY}_negative", *parameters.values()}
    sd3.processes["decoder-0"].send_signal(signal.SIGSTOP)
    with sd3.client() as client:
        job_id = client.create_job(CANARY, negative_prompt=f"{CANARY}_negative", guidance_scale=5.0, **fields).job_id
        wait_until(lambda: client.get_job(job_id).state == JOB_STATE_DENOISED, 60, "both rooms are there")
        for owner in ("encoder-0", "transformer-0"):
            room = room_bytes(pids[owner])
            assert b"triptych.settings" in room, "this is where rooms are"
            assert found_in(iter([room])) == set(), owner
        sd3.processes["decoder-0"].send_signal(signal.SIGCONT)
        for update in client.watch_job(job_id, timeout_s=60):
            job = update.job
        assert job.state == JOB_STATE_SUCCEEDED, job.error
        found = {name: found_in(memory_of(pid)) for name, pid in pids.items()}
        assert found["encoder-0"] >= written, "prompts are found where they are"
        assert (found["transformer-0"], found["decoder-0"]) == (set(), set())
    for file in (tmp_path / "trace.jsonl", *(tmp_path / "fleet").glob("*.log")):
        assert found_in(iter([file.read_bytes()])) == set(), file
