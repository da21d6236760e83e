"""Envoy before a controller with TLS, as `deploy/envoy/README.md` has it: by the port that takes tokens."""

from __future__ import annotations

import json
from pathlib import Path

from tests.mesh.proxy import envoy
from tests.mesh.rest import ask
from tests.security.conftest import make_guarded


def test_clients_are_their_tokens_owners_and_nobody_else_gets_in(tmp_path: Path) -> None:
    made = make_guarded(tmp_path)
    with (
        made.fleet as fleet,
        envoy(tmp_path / "envoy", [fleet.client_addresses["controller"]], authority=made.anybody / "ca.crt") as proxy,
    ):
        assert proxy.healthy("fleet") == proxy.healthy("jobs") != set()
        assert ask(proxy.address, "GET", "/v1/fleet").status == 401
        alice = {"authorization": f"Bearer {made.tokens['alice']}"}
        created = ask(proxy.address, "POST", "/v1/jobs", {"request": {"prompt": "a circle", "seed": 3}}, alice)
        assert created.status == 200, created.body
        job_id = created.json["job"]["job_id"]
        lines = ask(proxy.address, "GET", f"/v1/jobs/{job_id}:watch", None, alice).body.splitlines()
        last = json.loads(lines[-1])["job"]
        assert (last["state"], last["client"]) == ("JOB_STATE_SUCCEEDED", "token:alice")
