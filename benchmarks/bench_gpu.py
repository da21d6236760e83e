"""Models of full size through the three roles on one device, beside `--fused` and diffusers' own pipeline.

Nothing but a device is needed: weights are random, in bfloat16. Where memory or disk is too short for a model, it gets
fewer blocks, and the table says so. Without a CUDA device the same runs on a CPU, with toy sizes.

    python -m benchmarks.bench_gpu
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from benchmarks import gpu_models
from benchmarks.gpu_models import Architecture
from benchmarks.gpu_side import DTYPE, PROMPT, RUNS
from triptych.roles import ROLE_NAMES
from triptych_client import AsyncClient, RolePlan, embedded_fleet
from triptych_client.commands import trace

SEED = 7
SIDE_TIMEOUT_S = 1800.0
"""Longest run of one side: a large model is read from disk, and runs twice."""
SHARE = 0.85
"""Of the memory and the disk that are free, what weights may take: the rest is for activations and contexts."""
HAND_OFFS = ("room.store", "room.fetch", "publish phase1", "publish phase2")
METRICS = {"cuda": "triptych_device_memory_bytes", "cpu": "process_memory_usage_bytes"}
"""Names on a worker's page for its memory. Torch gives memory of a device back only when it is told to, so that what
stands there at the end is the most that it had."""


COMPILED = {"compile": {"what": "repeated_blocks"}}
CACHED = {"cache": {"config": "FirstBlockCacheConfig", "threshold": 0.1}}
MEANS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "cuda": {
        "services": {},
        "services, blocks compiled": COMPILED,
        "services, attention of cuDNN": {"attention": "_native_cudnn"},
        "services, FlashAttention": {"attention": "_native_flash"},
        "services, first-block cache": CACHED,
    },
    "cpu": {
        "services": {},
        "services, blocks traced": {"compile": {"what": "repeated_blocks", "backend": "aot_eager"}},
        "services, attention by formula": {"attention": "_native_math"},
        "services, first-block cache": CACHED,
    },
}
"""Means of the transformer for each run of the services. Without any the bits are diffusers' own."""


@dataclass(frozen=True)
class Side:
    """What one side took for its last run."""

    seconds: float
    peak_bytes: Mapping[str, int]
    """By process."""
    stage_s: Mapping[str, float]
    """By role; empty where a side has no roles."""
    hand_off_s: float
    file: Path
    """The result, as an array."""


def alone(side: str, folder: Path, architecture: Architecture, device: str) -> Side:
    """Diffusers' pipeline or `--fused`, in one process."""
    out = folder.parent / f"{side}.npy"
    fields = json.dumps(architecture.request.fields)
    command = [sys.executable, "-m", "benchmarks.gpu_side", side, str(folder), device, str(SEED), fields, str(out)]
    done = subprocess.run(command, capture_output=True, timeout=SIDE_TIMEOUT_S, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-4000:]}")
    measured = json.loads(done.stdout.splitlines()[-1])
    return Side(measured["seconds"], {side: measured["peak_bytes"]}, {}, 0.0, out)


async def services(
    name: str, folder: Path, architecture: Architecture, device: str, transformer: Mapping[str, Any]
) -> Side:
    """The four processes, with these means of the component `transformer`."""
    spans = folder.parent / f"{name}.jsonl"
    out = folder.parent / f"{name}.npy"
    port = free_port()
    more = {"device": device, "dtype": DTYPE, "metrics_port": port, "trace_file": str(spans)}
    means = {"means": json.dumps({"components": {"transformer": transformer}})} if transformer else {}
    roles = {role: RolePlan(settings=means if role == "transformer" else {}) for role in ROLE_NAMES}
    async with embedded_fleet(str(folder), roles=roles, **more) as fleet, AsyncClient(fleet.endpoint) as client:
        for _ in range(RUNS):
            generated = await client.generate(PROMPT, out, seed=SEED, **architecture.request.fields)
        pages = [await asyncio.to_thread(page, port + 1 + index) for index in range(len(ROLE_NAMES))]
    metric = METRICS[torch.device(device).type]
    job = trace.read(str(spans), generated.job.job_id)  # spans are written by the end of the processes
    found = [span for _depth, span in job.spans]
    return Side(
        seconds=job.total_ns / 1e9,
        peak_bytes={role: value(one, metric) for role, one in zip(ROLE_NAMES, pages, strict=True)},
        stage_s={span.service.removeprefix("triptych-"): seconds(span) for span in found if span.name == "stage.run"},
        hand_off_s=sum(seconds(span) for span in found if span.name in HAND_OFFS),
        file=out,
    )


def seconds(span: trace.Span) -> float:
    """How long it took."""
    return (span.end_ns - span.start_ns) / 1e9


def free_port() -> int:
    """A port that is free, as are the next ones in all likelihood."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def page(port: int) -> str:
    """A process's metrics."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return str(answer.read(), "utf-8")


def value(text: str, metric: str) -> int:
    """The metric's value on a page."""
    lines = (line for line in text.splitlines() if line.partition("{")[0].partition(" ")[0] == metric)
    return int(float(next(lines).rpartition(" ")[2]))


def table(architecture: Architecture, layers: int, sides: Mapping[str, Side]) -> str:
    """Each side's figures, and its ratio to diffusers, in Markdown."""
    request = architecture.request
    size = f"{request.width}x{request.height}" + (f"x{request.frames}" if request.frames else "")
    cut = (
        "" if layers == architecture.layers else f", {layers} of {architecture.layers} blocks, because memory is short"
    )
    heads = ("", "seconds", "over diffusers", *ROLE_NAMES, "hand-offs", "peak GB", "bits")
    rows = [heads, ("---",) * len(heads), *(row(name, side, sides["diffusers"]) for name, side in sides.items())]
    lines = (f"| {' | '.join(cells)} |" for cells in rows)
    return "\n".join((f"{architecture.name}{cut}: {size}, {request.steps} steps, {DTYPE}\n", *lines))


def row(name: str, side: Side, reference: Side) -> tuple[str, ...]:
    """One side's cells."""
    made, expected = np.load(side.file), np.load(reference.file)
    return (
        name,
        f"{side.seconds:.3f}",
        f"{side.seconds / reference.seconds:.3f}×",
        *(f"{side.stage_s[role]:.3f}" if side.stage_s else "" for role in ROLE_NAMES),
        f"{side.hand_off_s:.3f}" if side.stage_s else "",
        " + ".join(f"{peak / 1e9:.2f}" for peak in side.peak_bytes.values()),
        "equal" if np.array_equal(made, expected) else difference(made, expected),
    )


def difference(made: Any, expected: Any) -> str:
    """How far results are apart whose values lie between 0 and 1."""
    if made.shape != expected.shape:
        return f"shape {made.shape} for {expected.shape}"
    return f"differ by up to {np.abs(made.astype(np.float64) - expected).max():.2g}"


def bytes_for_weights(device: str, folder: Path) -> float:
    """What a model's weights may take here, of memory and of disk."""
    is_cuda = torch.device(device).type == "cuda"
    memory_bytes = torch.cuda.mem_get_info(device)[0] if is_cuda else psutil.virtual_memory().available
    return SHARE * min(memory_bytes, shutil.disk_usage(folder).free)


def measure(architecture: Architecture, device: str) -> str:
    """Run each side, one after another, on a model that goes with the block."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "model")
        folder.mkdir()
        layers = gpu_models.layers_that_fit(architecture, bytes_for_weights(device, folder))
        gpu_models.write(architecture, layers, folder, torch.device(device))
        torch.cuda.empty_cache()
        sides = {side: alone(side, folder, architecture, device) for side in ("diffusers", "fused")}
        for name, transformer in MEANS[torch.device(device).type].items():
            sides[name] = asyncio.run(services(name, folder, architecture, device, transformer))
        return table(architecture, layers, sides)


def main() -> None:
    """Measure and print."""
    has_device = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda:0" if has_device else "cpu", help="default: %(default)s")
    parser.add_argument("--tiny", action="store_true", help="toy sizes, as without a device")
    args = parser.parse_args()
    is_tiny = args.tiny or torch.device(args.device).type == "cpu"
    where = args.device if torch.device(args.device).type == "cpu" else torch.cuda.get_device_name(args.device)
    why = "" if has_device else "; no CUDA device is here, so that sizes are toys and only bits mean something"
    print(f"{where}, torch {torch.__version__}, diffusers {gpu_models.diffusers.__version__}{why}")
    for architecture in gpu_models.tiny() if is_tiny else gpu_models.full():
        print(f"\n{measure(architecture, args.device)}", flush=True)


if __name__ == "__main__":
    main()
