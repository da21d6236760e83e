"""`triptych backup`: one moment of a journal that is being written, and the results that it names."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from services.controller.journal import Journal
from tests.clients.test_cli import triptych
from triptych.media import results
from triptych.v1.job_pb2 import GenerationRequest, Job
from triptych.v1.journal_pb2 import JournalEntry


async def add(journal: Journal, url: str, number: int) -> None:
    """A finished job with a result; done when it is on disk."""
    job = Job(job_id=f"job-{number}", request_id=str(number))
    job.artifacts.append(results.store(url, job.job_id, results.new_token(), "0.npy", "", str(number).encode()))
    await journal.add(JournalEntry(job=job), GenerationRequest(prompt="p" * 2000))


async def test_a_copy_of_one_moment_while_jobs_come(tmp_path: Path) -> None:
    state, copy = tmp_path / "state", tmp_path / "copy"
    url = results.check_url("result_url", str(state / "results"))
    async with Journal(state) as journal:
        for number in range(50):
            await add(journal, url, number)
        backing_up = asyncio.create_task(asyncio.to_thread(triptych, "backup", copy, "--state", state))
        count = 50
        while not backing_up.done():
            await add(journal, url, count)
            count += 1
        done = await backing_up
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{copy}: journal ")
    async with Journal(copy) as journal:
        found = [entry for _, entry in (await journal.page([], 2**62, 100_000))[0]]
    numbers = sorted(int(entry.job.request_id) for entry in found)
    assert numbers == list(range(len(numbers)))
    assert 50 <= len(numbers) <= count
    for entry in found:
        url = f"file://{copy}/results"
        assert b"".join(results.read(url, entry.job.artifacts[0], entry.job.job_id)) == entry.job.request_id.encode()
    assert [name for name in os.listdir(tmp_path) if name.startswith(".")] == []


async def test_what_cannot_be_copied_is_said_and_nothing_is_left(tmp_path: Path) -> None:
    state = tmp_path / "state"
    refused = triptych("backup", tmp_path / "copy", "--state", state)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "state is" in refused.stderr
    async with Journal(state) as journal:
        await add(journal, results.check_url("result_url", str(state / "results")), 1)
    for target in (state, tmp_path / "no folder" / "copy"):
        refused = triptych("backup", target, "--state", state)
        assert refused.returncode == 2
        assert "a name that is free" in refused.stderr
    (state / "journal.db").write_bytes(b"no database, and long enough to be taken for one" * 99)
    broken = triptych("backup", tmp_path / "copy", "--state", state)
    assert broken.returncode == 1
    assert "can't be copied" in broken.stderr
    assert os.listdir(tmp_path) == ["state"]
