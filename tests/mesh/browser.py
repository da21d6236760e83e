"""A real browser, Chromium, on a page that calls the fleet and reports what it saw."""

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
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from tests import needs
from tests.fleet.processes import STOP_TIMEOUT_S

ROOT = Path(__file__).parents[2]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-headless-shell"))), "")
BUILD_TIMEOUT_S = 200.0
REPORT_TIMEOUT_S = 120.0


def build(folder: Path) -> None:
    """Make the site in a folder: `clients/web` as its README says, and the tests' page."""
    if not shutil.which("npm") or not CHROMIUM:
        needs.skip("npm or Chromium is missing")
    left_out = shutil.ignore_patterns("node_modules", "gen", "dist")
    shutil.copytree(ROOT / "clients/web", folder, ignore=left_out, dirs_exist_ok=True)
    shutil.copy(ROOT / "tests/mesh/web/page.js", folder)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    bundle = ("npx", "esbuild", "page.js", "main.js", "--bundle", "--format=esm", "--outdir=dist")
    for command in (("npm", "ci", "--no-audit", "--no-fund"), ("buf", "generate", str(ROOT)), bundle):
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stderr}{done.stdout}"
    (folder / "test.html").write_text('<!doctype html><script type="module" src="dist/page.js"></script>')


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves the site, and takes the page's report."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.send_response(204)
        self.end_headers()
        self.server.reports.put(json.loads(body))  # type: ignore[attr-defined]

    def log_message(self, *_: object) -> None:
        """Nothing: the test's output is its own."""


@contextmanager
def visit(site: Path, query: str, profile: Path) -> Iterator[queue.Queue[dict[str, Any]]]:
    """Open the tests' page, and close the browser with the block. What the page saw comes into the queue."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(site))) as server:
        reports: queue.Queue[dict[str, Any]] = queue.Queue()
        server.reports = reports  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://localhost:{server.server_port}/test.html?{query}"
        flags = ("--headless", "--no-sandbox", "--disable-gpu", "--no-proxy-server", "--remote-debugging-port=0")
        command = [CHROMIUM, *flags, f"--user-data-dir={profile}", url]
        with (
            (profile / "log").open("w") as output,
            subprocess.Popen(command, stdout=output, stderr=output) as process,
        ):
            try:
                yield reports
            finally:
                process.terminate()
                try:
                    process.wait(STOP_TIMEOUT_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                server.shutdown()
