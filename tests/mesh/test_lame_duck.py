"""A controller that is told to stop leaves first: no caller behind a proxy notices."""

from __future__ import annotations

from pathlib import Path

from tests.mesh.lame_duck import measure
from triptych.config import ControllerConfig


def test_no_call_fails_when_a_server_is_told_to_stop(tmp_path: Path) -> None:
    seen = measure(tmp_path, ControllerConfig.lame_duck_s)
    assert seen.calls > 100
    assert seen.failures == {}
    assert seen.exit_code == 0
    assert seen.looked_away_s < ControllerConfig.lame_duck_s <= seen.ended_s
