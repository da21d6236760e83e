"""One side of `bench_gpu`, diffusers' pipeline or `--fused`, in a process of its own, whose peak memory is its own.

python -m benchmarks.gpu_side {diffusers,fused} FOLDER DEVICE SEED FIELDS OUT.npy, with FIELDS as JSON
"""

from __future__ import annotations

import json
import resource
import sys
import time
from typing import Any

import numpy as np
import torch

from triptych.config import WorkerConfig
from triptych.stages.library import ModularPipeline
from triptych_client.fused import FusedModel
from triptych_client.request import build_request

PROMPT = "a big red circle moving right on a blue background"
DTYPE = "bfloat16"
RUNS = 2
"""The first is warm-up: kernels are chosen and loaded, pools of memory grow."""


def main() -> None:
    """Run one side and print its seconds and its peak memory as JSON."""
    side, folder, device, seed, fields, out = sys.argv[1:]
    make = {"diffusers": _diffusers, "fused": _fused}[side]
    run = make(folder, device, int(seed), json.loads(fields))
    seconds = 0.0
    for _ in range(RUNS):
        started_s = time.perf_counter()
        value = run()
        seconds = time.perf_counter() - started_s
    np.save(out, value)
    print(json.dumps({"seconds": seconds, "peak_bytes": peak_bytes(device)}))


def peak_bytes(device: str) -> int:
    """The most memory that this process has had: of the device, or its own where there is none."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def _diffusers(folder: str, device: str, seed: int, fields: dict[str, Any]) -> Any:
    pipeline = ModularPipeline.from_pretrained(folder)
    pipeline.load_components(dtype=getattr(torch, DTYPE))
    pipeline.to(device)
    output = "videos" if "num_frames" in fields else "images"

    def run() -> Any:
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        return np.asarray(pipeline(prompt=PROMPT, generator=generator, output=output, **fields)[0])

    return run


def _fused(folder: str, device: str, seed: int, fields: dict[str, Any]) -> Any:
    model = FusedModel.load(WorkerConfig(model=folder, device=device, dtype=DTYPE))
    request = build_request(PROMPT, seed=seed, **fields)

    def run() -> Any:
        (value,) = model.run(request).values()
        return np.asarray(value[0])  # type: ignore[index]

    return run


if __name__ == "__main__":
    main()
