"""All of it at once: two controllers and workers of each role behind Envoy, called by HTTP, from a browser, by the
Python client and by grpcurl, while the active controller is killed."""

from __future__ import annotations

import hashlib
import http.client
import json
import subprocess
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.test_grpcurl import GRPCURL
from tests.fleet.processes import wait_until
from tests.mesh.browser import REPORT_TIMEOUT_S, visit
from tests.mesh.proxy import Proxy, envoy
from tests.mesh.rest import Answer, ask
from tests.mesh.test_rest import REQUEST
from tests.standby.pair import Pair
from triptych_client import Client, RetryPolicy

WAIT_S = 100.0
EACH = 4
"""Jobs of each caller, one after the other."""
CALLERS = 3
"""By HTTP, and as many with the Python client."""
JOBS = EACH * (2 * CALLERS + 1)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    with Pair(tmp_path / "pair", (), has_workers=True) as started:
        yield started


def insist(address: str, method: str, path: str, body: object = None) -> Answer:
    """A call as docs/rest.md asks for it: repeated while it ends with 503 or breaks."""
    answers: list[Answer] = []

    def is_answered() -> bool:
        try:
            answer = ask(address, method, path, body)
        except (OSError, http.client.HTTPException):
            return False
        answers.append(answer)
        return answer.status != 503

    wait_until(is_answered, WAIT_S, f"{method} {path} is answered: {answers[-1:]}")
    assert answers[-1].status == 200, answers[-1].body
    return answers[-1]


def ended(address: str, job_id: str) -> dict[str, Any]:
    """A job once it is over; the watch is asked for again where it breaks."""
    jobs: list[dict[str, Any]] = []

    def is_over() -> bool:
        try:
            answer = ask(address, "GET", f"/v1/jobs/{job_id}:watch")
        except (OSError, http.client.HTTPException):
            return False
        lines = answer.body.splitlines() if answer.status == 200 else []
        jobs.extend(json.loads(line)["job"] for line in lines if line.startswith(b'{"job"'))
        return bool(jobs) and "end_time" in jobs[-1]

    wait_until(is_over, WAIT_S, f"{job_id} is over")
    return jobs[-1]


def by_http(proxy: Proxy, caller: int) -> list[str]:
    made = []
    for number in range(EACH):
        body = {"request_id": uuid.uuid4().hex, "request": {**REQUEST, "seed": caller * 100 + number}}
        job_id = insist(proxy.address, "POST", "/v1/jobs", body).json["job"]["job_id"]
        assert ended(proxy.address, job_id)["state"] == "JOB_STATE_SUCCEEDED"
        assert insist(proxy.address, "GET", f"/v1/jobs/{job_id}/artifacts/0").body
        made.append(job_id)
    return made


def by_client(proxy: Proxy, caller: int, folder: Path) -> list[str]:
    made = []
    with Client(proxy.address, RetryPolicy(total_s_max=WAIT_S)) as client:
        for number in range(EACH):
            done = client.generate("by the client", folder / f"{caller}-{number}.png", seed=number, height=32, width=48)
            assert hashlib.sha256(done.paths[0].read_bytes()).digest() == done.job.artifacts[0].sha256
            made.append(done.job.job_id)
    return made


def grpcurl(proxy: Proxy, method: str) -> dict[str, Any]:
    command = [str(GRPCURL), "-plaintext", "-d", "{}", proxy.address, method]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_nobody_fails_when_the_active_controller_is_killed(pair: Pair, site: Path, tmp_path: Path) -> None:
    profile = tmp_path / "profile"
    profile.mkdir()
    addresses = [pair.addresses[name] for name in ("controller", "controller-1")]
    with envoy(tmp_path / "envoy", addresses) as proxy, ThreadPoolExecutor(2 * CALLERS) as threads:
        killed = pair.active()
        with visit(site, f"edge=http://{proxy.address}&jobs={EACH}", profile) as reports:
            calls = [threads.submit(by_http, proxy, caller) for caller in range(CALLERS)]
            calls += [threads.submit(by_client, proxy, caller, tmp_path) for caller in range(CALLERS)]

            def done_count() -> int:
                jobs = insist(proxy.address, "GET", "/v1/jobs?states=JOB_STATE_SUCCEEDED").json["jobs"]
                return len(jobs)

            wait_until(lambda: done_count() >= JOBS // 4, WAIT_S, "a part is done")
            pair.kill(killed)
            made = [job_id for call in calls for job_id in call.result(WAIT_S)]
            page = reports.get(timeout=REPORT_TIMEOUT_S)["many"]
        assert "error" not in page, page
        assert pair.active() == pair.other(killed)
        assert proxy.healthy() == {pair.addresses[pair.active()]}
        listed = grpcurl(proxy, "triptych.v1.GenerationService/ListJobs")["jobs"]
        assert Counter(job["job_id"] for job in listed) == Counter([*made, *page["jobIds"]]), "none is lost or doubled"
        assert {job["state"] for job in listed} == {"JOB_STATE_SUCCEEDED"}
        assert len(listed) == JOBS
        assert len(grpcurl(proxy, "triptych.v1.FleetService/GetFleet")["workers"]) == 3
