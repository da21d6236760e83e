"""gRPC-Web, fetch and server-sent events from a page of another origin, in a real browser, through Envoy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.fleet.processes import Fleet
from tests.mesh.browser import REPORT_TIMEOUT_S, visit
from tests.mesh.proxy import Proxy


@pytest.fixture(scope="module")
def report(site: Path, proxy: Proxy, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the page saw."""
    with visit(site, f"edge=http://{proxy.address}", tmp_path_factory.mktemp("profile")) as reports:
        return reports.get(timeout=REPORT_TIMEOUT_S)


def test_grpc_web_makes_follows_and_fetches(report: dict[str, Any], mesh_fleet: Fleet) -> None:
    seen = report["byGrpcWeb"]
    assert "error" not in seen, seen
    assert seen["states"][-1] == "SUCCEEDED"
    assert len(seen["states"]) > 2
    assert seen["spread"] > 50, "changes come while the job runs, not all at its end"
    with mesh_fleet.client() as client:
        (artifact,) = client.get_job(seen["jobId"]).artifacts
    assert (seen["type"], seen["digest"]) == (artifact.media_type, artifact.sha256.hex())


def test_an_error_has_its_reason(report: dict[str, Any]) -> None:
    assert report["anError"] == {"code": 5, "reasons": ["NOT_FOUND"]}


def test_fetch_and_event_source_work_across_origins(report: dict[str, Any]) -> None:
    seen = report["byRest"]
    assert "error" not in seen, seen
    assert seen["states"][-1] == "JOB_STATE_SUCCEEDED"
    assert len(set(seen["states"])) > 1
