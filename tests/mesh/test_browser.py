"""A real browser: gRPC-Web, fetch and server-sent events from a page of another origin, through Envoy."""

from __future__ import annotations

import http.server
import json
import os
import queue
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests import needs
from tests.fleet.processes import STOP_TIMEOUT_S, Fleet
from tests.mesh.proxy import Proxy

ROOT = Path(__file__).parents[2]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-headless-shell"))), "")
BUILD_TIMEOUT_S = 200.0
REPORT_TIMEOUT_S = 120.0


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the test's page, bundled with `clients/web` as its README says."""
    if not shutil.which("npm") or not CHROMIUM:
        needs.skip("npm or Chromium is missing")
    folder = tmp_path_factory.mktemp("web")
    left_out = shutil.ignore_patterns("node_modules", "gen", "dist")
    shutil.copytree(ROOT / "clients/web", folder, ignore=left_out, dirs_exist_ok=True)
    for shared in ("protos", "third_party", "buf.yaml"):
        (folder / shared).symlink_to(ROOT / shared)
    shutil.copy(ROOT / "tests/mesh/web/page.js", folder)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    bundle = ("npx", "esbuild", "page.js", "main.js", "--bundle", "--format=esm", "--outdir=dist")
    for command in (("npm", "ci", "--no-audit", "--no-fund"), ("buf", "generate", str(ROOT)), bundle):
        done = subprocess.run(
            command, cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True,
            timeout=BUILD_TIMEOUT_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{command}: {done.stderr}{done.stdout}"
    (folder / "test.html").write_text('<!doctype html><script type="module" src="dist/page.js"></script>')
    return folder


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves the site, and takes the page's report."""

    reports: queue.Queue[dict[str, Any]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.send_response(204)
        self.end_headers()
        self.server.reports.put(json.loads(body))  # type: ignore[attr-defined]

    def log_message(self, *_: object) -> None:
        """Nothing: the test's output is its own."""


@pytest.fixture(scope="module")
def report(site: Path, proxy: Proxy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What the page saw."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(site))) as server:
        reports: queue.Queue[dict[str, Any]] = queue.Queue()
        server.reports = reports  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        profile = tmp_path_factory.mktemp("profile")
        url = f"http://localhost:{server.server_port}/test.html?edge=http://{proxy.address}"
        flags = ("--headless", "--no-sandbox", "--disable-gpu", "--no-proxy-server", "--remote-debugging-port=0")
        command = [CHROMIUM, *flags, f"--user-data-dir={profile}", url]
        log = profile / "log"
        with log.open("w") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
            try:
                yield reports.get(timeout=REPORT_TIMEOUT_S)
            except queue.Empty:
                pytest.fail(f"the page said nothing: {log.read_text()}")
            finally:
                process.terminate()
                try:
                    process.wait(STOP_TIMEOUT_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                server.shutdown()


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
