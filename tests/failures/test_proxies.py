"""A fleet where the environment names a proxy for everything: no call of the fleet's goes there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fleet.processes import Fleet
from tests.http_proxy import HttpProxy
from tests.telemetry.receiver import Receiver


@pytest.mark.parametrize("mover", ["rpc", "mooncake"])
def test_no_call_inside_a_fleet_goes_through_a_proxy(mover: str, tmp_path: Path) -> None:
    """Neither between services, nor for tensors, nor to a collector on this machine."""
    if mover == "mooncake":
        pytest.importorskip("mooncake.engine", exc_type=ImportError)
    flags = ("--fake-stage-seconds", "0.05", "--mover", mover)
    with HttpProxy() as proxy, Receiver() as receiver:
        env = {
            **proxy.environment,
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint,
            "OTEL_BSP_SCHEDULE_DELAY": "100",
            "OTEL_METRIC_EXPORT_INTERVAL": "200",
        }
        with Fleet(tmp_path, "fake", worker_flags=flags, env=env) as fleet, fleet.client() as client:
            assert client.generate("a cat", tmp_path / "out.npy").paths[0].exists()
            services = {f"triptych-{name}" for name in ("controller", "encoder", "transformer", "decoder")}
            receiver.wait_for(lambda spans: {span.service for span in spans} >= services, timeout_s=60)
        assert proxy.asked == []
