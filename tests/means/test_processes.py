"""What holds for a whole process: its allocator, its node, its arithmetic; and a fleet by its file, to the bit."""

from __future__ import annotations

import ctypes.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests import needs
from tests.means.conftest import FIELDS, ours, reference
from triptych.means.options import ProcessMeans, of_tables
from triptych.stages.means import arithmetic

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 120.0
CLI = (sys.executable, "-P", "-m", "triptych_client.cli")


def run_python(text: str) -> str:
    """What a program prints in a process of its own."""
    command = (sys.executable, "-c", text)
    return subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=ROOT, timeout=TIMEOUT_S
    ).stdout.strip()


def test_the_allocator_has_its_settings_before_torch_is_there() -> None:
    text = """
from triptych.means.options import of_tables
from triptych.means.process import apply
apply(of_tables({"process": {"allocator": "max_split_size_mb:123"}}).process)
import torch
print(torch._C._accelerator_getAllocatorSettings())
"""
    assert run_python(text) == "max_split_size_mb:123"


def test_threads_run_on_a_nodes_cores(tmp_path: Path) -> None:
    """One node of a machine that the test makes up, since most have one."""
    (tmp_path / "node5").mkdir()
    (tmp_path / "node5" / "cpulist").write_text("0\n")
    text = f"""
import os, threading
from pathlib import Path
from triptych.means import process
process.bind(5, Path({str(tmp_path)!r}))
found = [os.sched_getaffinity(0)]
thread = threading.Thread(target=lambda: found.append(os.sched_getaffinity(0)))
thread.start(); thread.join()
print(found)
"""
    assert run_python(text) == "[{0}, {0}]"


def test_memory_comes_from_this_machines_node() -> None:
    if not Path("/sys/devices/system/node/node0").is_dir():
        pytest.skip("this machine's kernel tells of no NUMA nodes")
    if ctypes.util.find_library("numa") is None:
        needs.skip("libnuma isn't installed: apt-get install libnuma1")
    text = """
from triptych.means.options import of_tables
from triptych.means.process import apply
apply(of_tables({"process": {"numa_node": 0}}).process)
print(open("/proc/self/numa_maps").read().count("prefer"))
"""
    assert int(run_python(text)) > 0


def test_the_precision_of_products_holds_while_a_role_runs(folder_of: Any) -> None:
    folder, fields = folder_of("wan_t2v"), FIELDS["wan_t2v"]
    before = torch.get_float32_matmul_precision()
    made = ours(folder, fields, {"process": {"matmul_precision": "medium"}})
    assert torch.get_float32_matmul_precision() == before
    torch.set_float32_matmul_precision("medium")
    try:
        expected = reference(folder, fields)
    finally:
        torch.set_float32_matmul_precision(before)
    assert np.array_equal(made, expected)


def test_cudnns_switches_are_set_and_put_back() -> None:
    """What they do needs a CUDA device; that they are set doesn't."""
    cudnn = torch.backends.cudnn
    before = (cudnn.allow_tf32, cudnn.benchmark)
    means = of_tables({"process": {"cudnn_tf32": not before[0], "cudnn_benchmark": not before[1]}}).process
    with arithmetic(means):
        assert (cudnn.allow_tf32, cudnn.benchmark) == (not before[0], not before[1])
    assert (cudnn.allow_tf32, cudnn.benchmark) == before
    with arithmetic(ProcessMeans()):
        assert (cudnn.allow_tf32, cudnn.benchmark) == before


FLEET = """
[controller]
state = "{state}"
[workers]
model = "{model}"
threads = 1
[workers.components.vae]
tiling = {{ tile_sample_min_height = 16, tile_sample_min_width = 16, tile_sample_stride_height = 8, \
tile_sample_stride_width = 8 }}
[transformer.process]
numa_node = 0
[transformer.components.transformer]
cache = {{ config = "FirstBlockCacheConfig", threshold = 0.5 }}
offload = {{ kind = "group" }}
[[transformer.warm_up]]
height = 32
width = 64
num_frames = 5
"""
REQUEST = ("--height", "32", "--width", "64", "--num-frames", "5", "--num-inference-steps", "6", "--seed", "7")


def test_a_fleet_by_its_file_gives_the_bits_of_fused_and_names_what_is_lossy(folder_of: Any, tmp_path: Path) -> None:
    file = tmp_path / "fleet.toml"
    file.write_text(FLEET.format(state=tmp_path / "state", model=folder_of("wan_t2v")))
    results = {}
    for name, flags in {"fused": ["--fused", "--threads", "1"], "fleet": []}.items():
        path = tmp_path / f"{name}.npy"
        command = (*CLI, "generate", "a big red circle", *REQUEST, "--fleet", str(file), *flags, "-o", str(path))
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=TIMEOUT_S, check=False)
        assert done.returncode == 0, done.stderr
        assert "made with lossy means, of the transformer: transformer.cache FirstBlockCacheConfig" in done.stderr
        results[name] = np.load(path)
    assert np.array_equal(results["fused"], results["fleet"])
    assert results["fleet"].std() > 0, "a flat picture proves nothing"
