"""docs/rest.md can be followed, line by line, as it stands."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import numpy as np
import PIL.Image

from tests.documents.extract import ROOT, commands
from tests.mesh.proxy import Proxy

TIMEOUT_S = 120.0


def test_rest_can_be_followed(proxy: Proxy, tmp_path: Path) -> None:
    noise = np.random.default_rng(3).integers(0, 256, (200, 200, 3), np.uint8)
    PIL.Image.fromarray(noise).save(tmp_path / "cat.png")
    environment = {**os.environ, "EDGE": f"http://{proxy.address}", "TOKEN": "anything"}
    for command in commands((ROOT / "docs/rest.md").read_text()):
        if variable := re.match(r"([A-Z]+)=", command.text):
            command = command._replace(text=f"{command.text}; echo {variable[1]}=${variable[1]}")
        typed = ["bash", "-euo", "pipefail", "-c", command.text]
        done = subprocess.run(typed, cwd=tmp_path, env=environment, capture_output=True, timeout=TIMEOUT_S, check=False)
        shown = done.stdout.decode(errors="replace")
        assert done.returncode == 0, f"{command}: {done.stderr.decode()}{shown}"
        assert '"code":' not in shown, f"{command}: {shown}"
        if variable:
            environment[variable[1]] = shown.strip().partition("=")[2]
        if found := re.search(r'"job_id":"(job-\w+)"', shown):
            environment["JOB"] = found[1]
    assert PIL.Image.open(tmp_path / "result.png").size
