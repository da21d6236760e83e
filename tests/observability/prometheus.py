"""A real Prometheus with the configuration that ships, in a hurry."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

from tests.fleet.processes import STOP_TIMEOUT_S, free_port, wait_until

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "deploy" / "observability"
READY_TIMEOUT_S = 60.0
INTERVAL_S = 1


def rules() -> list[dict[str, Any]]:
    """The alerts that ship."""
    return [rule for group in yaml.safe_load((SHIPPED / "alerts.yml").read_text())["groups"] for rule in group["rules"]]


class Prometheus:
    """Reads pages every second, not four times a minute, and takes seconds for the minutes of an alert's `for`."""

    def __init__(self, folder: Path, pages: Iterable[int]) -> None:
        self._folder = folder
        self._pages = list(pages)
        self._port = free_port()

    def __enter__(self) -> Prometheus:
        for name in ("prometheus.yml", "alerts.yml"):
            text = (SHIPPED / name).read_text()
            text = re.sub(r"(\w+_interval): \d+s", rf"\1: {INTERVAL_S}s", text)
            (self._folder / name).write_text(re.sub(r"for: (\d+)m", r"for: \1s", text))
        targets = [{"targets": [f"127.0.0.1:{page}" for page in self._pages]}]
        (self._folder / "targets.yml").write_text(yaml.safe_dump(targets))
        self._log = (self._folder / "prometheus.log").open("w")
        command = [
            *("prometheus", f"--config.file={self._folder / 'prometheus.yml'}"),
            *(f"--storage.tsdb.path={self._folder / 'data'}", f"--web.listen-address=127.0.0.1:{self._port}"),
            "--enable-feature=exemplar-storage",
        ]
        assert shutil.which("prometheus"), "Debian's package prometheus isn't installed: make setup-mesh"
        self._process = subprocess.Popen(command, stdout=self._log, stderr=self._log)
        try:
            wait_until(self._is_ready, READY_TIMEOUT_S, f"a Prometheus that is ready; {self._log.name}")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._process.terminate()
        self._process.wait(STOP_TIMEOUT_S)
        self._log.close()

    def get(self, path: str, **parameters: str) -> Any:
        """The data of an answer of its API. Raises AssertionError with what Prometheus says, where it refuses."""
        query = urllib.parse.urlencode(parameters)
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/api/v1/{path}?{query}", timeout=30) as answer:
                body = json.load(answer)
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{path} {parameters}: {error.read().decode()}") from error
        assert body["status"] == "success", body
        return body["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The samples of an expression, now."""
        return self.get("query", query=expression)["result"]

    def names(self) -> set[str]:
        """Every metric that it has."""
        return set(self.get("label/__name__/values"))

    def states(self) -> dict[str, str]:
        """Alerts that are pending or firing, by name."""
        return {alert["labels"]["alertname"]: alert["state"] for alert in self.get("alerts")["alerts"]}

    def _is_ready(self) -> bool:
        assert self._process.poll() is None, Path(self._log.name).read_text()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/-/ready", timeout=5):
                return True
        except OSError:
            return False
