"""Each role process holds its own components and no others, and a fleet without work costs next to nothing."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.e2e.conftest import worker_of
from tests.fleet.processes import Fleet

COMPONENTS = {"encoder-0": {"text_encoder"}, "transformer-0": {"transformer"}, "decoder-0": {"vae"}}
"""What each process must hold: between them the whole model, and nothing of it twice."""

IDLE_S = 6.0
WINDOWS_MAX = 5
"""What earlier tests have left behind is not idleness, so one such time of several is enough."""
CPU_SHARE_MAX = 0.03
"""Three times what a controller or worker takes on a common machine, where gRPC's threads are most of it: enough for a
slow or busy one, and far below what anything that polls would take.
"""


@pytest.mark.parametrize("name", COMPONENTS)
def test_a_process_holds_only_its_own_components(name: str, wan_fleet: Fleet) -> None:
    worker = worker_of(wan_fleet, name)
    expected = {component: weight_bytes(Path(wan_fleet.model, component)) for component in COMPONENTS[name]}
    assert dict(worker.info.component_bytes) == expected
    assert worker.info.parameter_bytes == sum(expected.values())


def test_the_controller_loads_no_torch(wan_fleet: Fleet) -> None:
    """It never touches a tensor, so it has no use for the library; its memory and its start are small."""
    maps = Path(f"/proc/{wan_fleet.processes['controller'].pid}/maps").read_text()
    assert "grpc" in maps
    assert "libtorch" not in maps


def test_an_idle_fleet_uses_next_to_no_cpu(wan_fleet: Fleet) -> None:
    busy: dict[str, float] = {}
    for _ in range(WINDOWS_MAX):
        before, started_s = cpu_s(wan_fleet), time.monotonic()
        time.sleep(IDLE_S)
        elapsed_s = time.monotonic() - started_s
        shares = {name: (after - before[name]) / elapsed_s for name, after in cpu_s(wan_fleet).items()}
        assert len(shares) >= 4
        busy = {name: share for name, share in shares.items() if share >= CPU_SHARE_MAX}
        if not busy:
            break
    assert busy == {}


def cpu_s(fleet: Fleet) -> dict[str, float]:
    """Seconds of CPU that each process has used, in user and system mode together."""
    used = {}
    for name, process in fleet.processes.items():
        # The command's name, in parentheses, may hold spaces; utime and stime are fields 14 and 15.
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        used[name] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return used


def weight_bytes(folder: Path) -> int:
    """Bytes of all tensors in a component's safetensors files."""
    return sum(tensor.nbytes for file in folder.glob("*.safetensors") for tensor in load_file(file).values())
