"""What it costs to look for NaN and infinity in what leaves a stage, beside a room's checksum of the same bytes.

python -m benchmarks.bench_finite
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
import xxhash

from triptych.stages import finite

TENSOR_BYTES = 64 * 2**20
TURNS = 9
"""Odd, so that the median is one of them."""


def main() -> None:
    """Print a row for each dtype; one thread, as the least that a worker has."""
    torch.set_num_threads(1)
    print(f"{'64 MiB of':12}{'look':>10}{'checksum':>10}")
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        tensor = torch.randn(TENSOR_BYTES // dtype.itemsize).to(dtype)
        raw = tensor.view(torch.uint8).numpy().data
        look_ms = median_ms(lambda tensor=tensor: finite.check("decoder", {"latents": tensor}))
        checksum_ms = median_ms(lambda raw=raw: xxhash.xxh3_128_digest(raw))
        print(f"{str(dtype).removeprefix('torch.'):12}{look_ms:7.1f} ms{checksum_ms:7.1f} ms")


def median_ms(work: Callable[[], object]) -> float:
    """Of `TURNS` runs, after one that doesn't count."""
    work()
    taken = []
    for _turn in range(TURNS):
        started_s = time.perf_counter()
        work()
        taken.append((time.perf_counter() - started_s) * 1000)
    return statistics.median(taken)


if __name__ == "__main__":
    main()
