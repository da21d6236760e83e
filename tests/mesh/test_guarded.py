"""Through Envoy to a fleet that asks for tokens and exports its spans."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.e2e.test_grpcurl import GRPCURL, messages
from tests.fleet.processes import ROLES, Fleet
from tests.mesh.proxy import Proxy, envoy
from tests.mesh.rest import Answer, ask
from tests.telemetry.receiver import Received, Receiver, of_job, the_root
from triptych.security import tokens

REQUEST = {"prompt": "a circle", "seed": 3}
TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SPANS_TIMEOUT_S = 60.0
CALL_TIMEOUT_S = 120.0
PARTS = {"triptych-edge", "triptych-controller", *(f"triptych-{role}" for role in ROLES)}


@dataclass(frozen=True)
class Guarded:
    """The proxy, who may call, and where spans arrive."""

    proxy: Proxy
    tokens: dict[str, str]
    receiver: Receiver

    def ask(self, client: str, method: str, path: str, body: object = None, **headers: str) -> Answer:
        """A call with a client's token; `headers` has others."""
        authorization = {"authorization": f"Bearer {self.tokens[client]}"} if client else {}
        return ask(self.proxy.address, method, path, body, {**authorization, **headers})

    def create(self, client: str, **headers: str) -> str:
        answer = self.ask(client, "POST", "/v1/jobs", {"request": REQUEST}, **headers)
        assert answer.status == 200, answer.body
        return str(answer.json["job"]["job_id"])

    def last(self, client: str, job_id: str) -> dict[str, Any]:
        """The job once it is over."""
        lines = self.ask(client, "GET", f"/v1/jobs/{job_id}:watch").body.splitlines()
        job: dict[str, Any] = json.loads(lines[-1])["job"]
        return job


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("guarded")
    file = folder / "tokens.toml"
    clients = {name: ["submit", "read"] for name in ("alice", "bob")} | {"reader": ["read"]}
    given = {name: tokens.add(file, name, scopes) for name, scopes in (clients | {r: [r] for r in ROLES}).items()}
    flags = {"controller": ("--tokens", str(file), "--attempts-max", "1")}
    for role in ROLES:
        (folder / f"{role}.token").write_text(given[role])
        (folder / f"{role}.token").chmod(0o600)
        own = ("--tokens", str(file), "--token-file", str(folder / f"{role}.token"))
        flags[f"{role}-0"] = (*own, "--fake-stage-seconds", "0.3", "--mover", "rpc")
    with Receiver() as receiver:
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "100"}
        with (
            Fleet(folder / "fleet", "", flags_by_name=flags, env=env) as fleet,
            envoy(folder / "envoy", [fleet.endpoint], receiver.endpoint) as proxy,
        ):
            yield Guarded(proxy, given, receiver)


def test_who_calls_is_the_token_s_owner(guarded: Guarded) -> None:
    job_id = guarded.create("alice")
    assert guarded.ask("alice", "GET", f"/v1/jobs/{job_id}").json["job"]["client"] == "token:alice"
    assert guarded.last("alice", job_id)["state"] == "JOB_STATE_SUCCEEDED"
    assert guarded.ask("alice", "GET", f"/v1/jobs/{job_id}/artifacts/0").status == 200
    for path in (f"/v1/jobs/{job_id}", f"/v1/jobs/{job_id}:watch", f"/v1/jobs/{job_id}/artifacts/0"):
        assert guarded.ask("bob", "GET", path).status == 404
        assert guarded.ask("", "GET", path).status == 401
    refused = guarded.ask("reader", "POST", "/v1/jobs", {"request": REQUEST})
    assert (refused.status, refused.json["code"]) == (403, 7)


def test_an_error_has_its_details(guarded: Guarded) -> None:
    answer = guarded.ask("alice", "POST", "/v1/jobs", {"request": {**REQUEST, "num_outputs": -1}})
    details = {detail["@type"].rpartition(".")[2]: detail for detail in answer.json["details"]}
    assert details["ErrorInfo"]["reason"] == "INVALID_REQUEST"
    assert [one["field"] for one in details["BadRequest"]["field_violations"]] == ["num_outputs"]


def test_a_dead_letter_is_retried(guarded: Guarded) -> None:
    failing = {"request": {**REQUEST, "parameters": {"fail": True}}}
    job_id = guarded.ask("alice", "POST", "/v1/jobs", failing).json["job"]["job_id"]
    dead = guarded.last("alice", job_id)
    assert (dead["state"], dead["dead_letter"]) == ("JOB_STATE_FAILED", True)
    again = guarded.ask("alice", "POST", f"/v1/jobs/{job_id}:retry", {}).json["job"]
    assert again["retry_of"] == job_id
    listed = guarded.ask("alice", "GET", "/v1/jobs?dead_letters_only=true").json["jobs"]
    assert job_id in {job["job_id"] for job in listed}


def test_grpcurl_goes_through(guarded: Guarded) -> None:
    def grpcurl(method: str, data: object) -> str:
        header = ("-H", f"authorization: Bearer {guarded.tokens['alice']}")
        command = [str(GRPCURL), "-plaintext", *header, "-d", json.dumps(data), guarded.proxy.address, method]
        done = subprocess.run(command, capture_output=True, text=True, timeout=CALL_TIMEOUT_S, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    service = "triptych.v1.GenerationService"
    job = json.loads(grpcurl(f"{service}/CreateJob", {"request": REQUEST}))["job"]
    updates = messages(grpcurl(f"{service}/WatchJob", {"job_id": job["job_id"]}))
    assert updates[-1]["job"]["state"] == "JOB_STATE_SUCCEEDED"
    assert "artifact" in messages(grpcurl(f"{service}/DownloadResult", {"job_id": job["job_id"]}))[0]


def whole_trace(guarded: Guarded, job_id: str, above: set[str]) -> list[Received]:
    """The job's spans once none lacks its parent, save those of spans `above` the proxy."""

    def is_whole(spans: list[Received]) -> bool:
        mine = of_job(spans, job_id)
        known = {span.span_id for span in mine} | above
        attempts = [span for span in mine if span.name.startswith("attempt ")]
        whole = {span.service for span in mine} >= PARTS and len(attempts) == len(ROLES)
        return whole and all(not span.parent_id or span.parent_id in known for span in mine)

    return of_job(guarded.receiver.wait_for(is_whole, timeout_s=SPANS_TIMEOUT_S), job_id)


def test_one_trace_a_job(guarded: Guarded) -> None:
    job_id = guarded.create("alice", traceparent=f"00-{TRACE_ID}-{PARENT_ID}-01")
    assert guarded.last("alice", job_id)["trace_id"] == TRACE_ID
    spans = whole_trace(guarded, job_id, {PARENT_ID})
    assert {span.trace_id for span in spans} == {TRACE_ID}
    (first,) = [span for span in spans if span.parent_id == PARENT_ID]
    assert first.service == "triptych-edge"
    (accepted,) = [span for span in spans if span.service == "triptych-controller" and "CreateJob" in span.name]
    parents = {span.span_id: span for span in spans}
    assert parents[accepted.parent_id].service == "triptych-edge"


def test_a_client_that_knows_of_no_traces_gets_one_a_job(guarded: Guarded) -> None:
    jobs = [guarded.create("alice") for _ in range(2)]
    roots = []
    for job_id in jobs:
        trace_id = guarded.last("alice", job_id)["trace_id"]
        root = the_root(whole_trace(guarded, job_id, set()))
        assert (root.service, root.trace_id) == ("triptych-edge", trace_id)
        roots.append(root.trace_id)
    assert len(set(roots)) == len(jobs)
