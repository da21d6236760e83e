"""`triptych doctor` says what is here, and ends well wherever it is run."""

from __future__ import annotations

import json

from tests.clients.test_cli import triptych
from triptych import rdma_devices


def test_everything_is_looked_at_and_what_is_missing_has_advice() -> None:
    done = triptych("doctor", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    findings = {finding["what"]: finding for finding in json.loads(done.stdout)}
    assert list(findings) == [
        *("torch", "GPU", "shared memory", "Mooncake", "RDMA devices", "verbs binding", "rings over RDMA"),
        "locked memory",
    ]
    assert {finding["state"] for finding in findings.values()} <= {"ok", "absent", "problem"}
    assert findings["torch"]["state"] == "ok"
    for what in ("Mooncake", "RDMA devices", "verbs binding", "rings over RDMA"):
        assert findings[what]["state"] == "ok" or findings[what]["advice"], what
    if not rdma_devices.ports():
        assert findings["RDMA devices"]["state"] == findings["rings over RDMA"]["state"] == "absent"


def test_people_get_a_table() -> None:
    done = triptych("doctor")
    assert done.returncode == 0
    assert "shared memory" in done.stdout
    assert "/dev/shm" in done.stdout
