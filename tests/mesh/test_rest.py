"""REST through the real Envoy of `deploy/envoy`."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from tests.fleet.processes import Fleet
from tests.mesh.proxy import Proxy
from tests.mesh.rest import ask, opened

REQUEST = {"prompt": "a circle", "height": 32, "width": 48, "seed": 3, "preview_every_steps": 1}


def created(proxy: Proxy, **fields: Any) -> dict[str, Any]:
    answer = ask(proxy.address, "POST", "/v1/jobs", {"request": {**REQUEST, **fields}})
    assert answer.status == 200, answer.body
    job: dict[str, Any] = answer.json["job"]
    return job


def watched(proxy: Proxy, job_id: str, accept: str) -> tuple[str, list[dict[str, Any]]]:
    """The stream's content type and its messages, to the end."""
    with opened(proxy.address, "GET", f"/v1/jobs/{job_id}:watch", headers={"accept": accept}) as response:
        assert response.status == 200
        kind = response.headers["content-type"]
        lines = [line.decode().strip() for line in response]
    sent = [line.removeprefix("data:") for line in lines if line]
    assert all(line.startswith("data:") for line in lines if line) == (kind == "text/event-stream")
    return kind, [json.loads(line) for line in sent]


@pytest.mark.parametrize(
    ("accept", "kind"),
    [("text/event-stream", "text/event-stream"), ("application/json", "application/json"), ("*/*", "application/json")],
)
def test_a_job_from_its_creation_to_its_file(
    proxy: Proxy, mesh_fleet: Fleet, tmp_path: Path, accept: str, kind: str
) -> None:
    job = created(proxy)
    assert job["state"] == "JOB_STATE_QUEUED"
    answered, updates = watched(proxy, job["job_id"], accept)
    assert answered == kind
    states = [update["job"]["state"] for update in updates]
    assert states[-1] == "JOB_STATE_SUCCEEDED"
    assert len(set(states)) > 1, "changes come one by one"
    found = ask(proxy.address, "GET", f"/v1/jobs/{job['job_id']}").json["job"]
    assert found == updates[-1]["job"]
    file = ask(proxy.address, "GET", f"/v1/jobs/{job['job_id']}/artifacts/0")
    assert (file.status, file.headers["content-type"]) == (200, "image/png")
    with mesh_fleet.client() as client:
        path = client.download_result(job["job_id"], tmp_path / "same.png")
        sha256 = client.get_job(job["job_id"]).artifacts[0].sha256
    assert hashlib.sha256(file.body).digest() == hashlib.sha256(path.read_bytes()).digest() == sha256


def test_jobs_are_listed_by_page_and_state(proxy: Proxy) -> None:
    ids = [created(proxy)["job_id"] for _ in range(3)]
    page = ask(proxy.address, "GET", "/v1/jobs?page_size=2").json
    assert [job["job_id"] for job in page["jobs"]] == [ids[2], ids[1]]
    after = ask(proxy.address, "GET", f"/v1/jobs?page_size=2&page_token={page['next_page_token']}").json
    assert after["jobs"][0]["job_id"] == ids[0]
    for job_id in ids:
        watched(proxy, job_id, "*/*")
    states = "states=JOB_STATE_FAILED&states=JOB_STATE_CANCELLED"
    assert not set(ids) & {job["job_id"] for job in ask(proxy.address, "GET", f"/v1/jobs?{states}").json["jobs"]}


def test_a_job_is_cancelled(proxy: Proxy) -> None:
    job_id = created(proxy)["job_id"]
    answer = ask(proxy.address, "POST", f"/v1/jobs/{job_id}:cancel", {})
    assert answer.status == 200
    assert watched(proxy, job_id, "*/*")[1][-1]["job"]["state"] == "JOB_STATE_CANCELLED"


def test_the_same_request_id_is_the_same_job(proxy: Proxy) -> None:
    body = {"request_id": "mine", "request": REQUEST}
    first, second = (ask(proxy.address, "POST", "/v1/jobs", body).json["job"]["job_id"] for _ in range(2))
    assert first == second
    other = ask(proxy.address, "POST", "/v1/jobs", {"request_id": "mine", "request": {**REQUEST, "seed": 4}})
    assert (other.status, other.json["code"]) == (409, 6)


def test_model_and_fleet(proxy: Proxy) -> None:
    assert ask(proxy.address, "GET", "/v1/model").json["model"]["model"] == "fake"
    roles = [worker["info"]["role"] for worker in ask(proxy.address, "GET", "/v1/fleet").json["workers"]]
    assert sorted(roles) == ["ROLE_DECODER", "ROLE_ENCODER", "ROLE_TRANSFORMER"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code", "words"),
    [
        ("GET", "/v1/jobs/nobody", None, 404, 5, "nobody"),
        ("GET", "/v1/jobs/nobody:watch", None, 404, 5, "nobody"),
        ("GET", "/v1/jobs/nobody/artifacts/0", None, 404, 5, "nobody"),
        ("POST", "/v1/jobs/nobody:cancel", {}, 404, 5, "nobody"),
        ("POST", "/v1/jobs/nobody:retry", {}, 404, 5, "nobody"),
        ("POST", "/v1/jobs", {}, 400, 3, "request"),
        ("POST", "/v1/jobs", {"request": {**REQUEST, "num_outputs": -1}}, 400, 3, "num_outputs"),
        ("GET", "/v1/jobs?page_size=-1", None, 400, 3, "page_size"),
    ],
)
def test_an_error_is_a_status_in_json(
    proxy: Proxy, method: str, path: str, body: object, status: int, code: int, words: str
) -> None:
    answer = ask(proxy.address, method, path, body)
    assert answer.status == status, answer.body
    assert answer.headers["content-type"] == "application/json"
    assert answer.json["code"] == code
    assert words in answer.json["message"]


@pytest.mark.parametrize("method", ["POST /v1/nothing", "GET /v1/jobs?page_sise=3", "GET /v1/jobs/x:whach"])
def test_what_does_not_exist_is_refused(proxy: Proxy, method: str) -> None:
    verb, path = method.split()
    assert ask(proxy.address, verb, path, {} if verb == "POST" else None).status in (400, 404)


def test_pages_of_this_machine_may_call(proxy: Proxy) -> None:
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}
    answer = ask(proxy.address, "OPTIONS", "/v1/jobs", headers={"origin": "http://localhost:3000", **asked})
    assert answer.headers["access-control-allow-origin"] == "http://localhost:3000"
    assert "POST" in answer.headers["access-control-allow-methods"]
    stranger = ask(proxy.address, "OPTIONS", "/v1/jobs", headers={"origin": "https://elsewhere.example", **asked})
    assert stranger.headers["access-control-allow-origin"] is None
