"""`deploy/envoy/envoy.yaml` as it stands, by Envoy's own check."""

from __future__ import annotations

import subprocess

from tests.mesh.proxy import DEPLOYED, ENVOY


def test_envoy_takes_it() -> None:
    command = [str(ENVOY), "--mode", "validate", "-c", "envoy.yaml"]
    done = subprocess.run(command, cwd=DEPLOYED, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "OK" in done.stdout
