"""End-to-end latency: four processes with tensors between them, against the same three stages in one process.

Both sides run the same prompts with the same seeds in turns, so that whatever else the machine does hits both. What is
timed is request to stored file, on a loaded and warm model.

    python benchmarks/bench_latency.py --model examples/shapes/model --runs 10
"""

from __future__ import annotations

import argparse
import asyncio
import filecmp
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from triptych.config import WorkerConfig
from triptych_client import AsyncClient, build_request, embedded_fleet
from triptych_client.fleet_plan import threads_default
from triptych_client.fused import FusedModel

PROMPTS = (
    "a big red circle moving right on a blue background",
    "a small green square moving up on a white background",
    "a big yellow triangle moving left on a black background",
)
MODEL = Path(__file__).parents[1] / "examples" / "shapes" / "model"
WARM_UP_RUNS = 2
"""First runs of each side, not counted: they fill caches and start thread pools."""


@dataclass
class Timings:
    """Seconds per run of both sides, in the same order."""

    services_s: list[float] = field(default_factory=list)
    fused_s: list[float] = field(default_factory=list)
    equal_count: int = 0
    """Runs whose two files had the same bytes."""


async def measure(model: str, runs: int, steps: int, mover: str = "") -> Timings:
    """Time `runs` jobs on each side, in turns."""
    timings = Timings()
    threads = threads_default()
    with tempfile.TemporaryDirectory() as folder:
        fused = FusedModel.load(WorkerConfig(model=model, threads=threads))
        async with embedded_fleet(model, threads=threads, mover=mover) as fleet, AsyncClient(fleet.endpoint) as client:
            for run in range(-WARM_UP_RUNS, runs):
                prompt = PROMPTS[run % len(PROMPTS)]
                size = {"height": 64, "width": 64, "num_frames": 9, "num_inference_steps": steps, "seed": run + 1000}
                services_path, fused_path = Path(folder, "services.npy"), Path(folder, "fused.npy")
                start_s = time.perf_counter()
                await client.generate(prompt, services_path, **size)  # type: ignore[arg-type]
                middle_s = time.perf_counter()
                request = build_request(prompt, output_format="npy", **size)
                fused.generate(request, fused_path)  # blocks this loop, which has nothing else to do
                end_s = time.perf_counter()
                if run >= 0:
                    timings.services_s.append(middle_s - start_s)
                    timings.fused_s.append(end_s - middle_s)
                    timings.equal_count += filecmp.cmp(services_path, fused_path, shallow=False)
    return timings


def table(timings: Timings, steps: int) -> Table:
    """Medians, spread and ratio."""
    ratios = [services / fused for services, fused in zip(timings.services_s, timings.fused_s, strict=True)]
    shown = Table(title=f"request to stored file, {steps} steps, {len(ratios)} runs in turns", title_justify="left")
    for column in ("", "median", "fastest", "slowest"):
        shown.add_column(column)
    for name, values, unit in (
        ("services (4 processes)", timings.services_s, " s"),
        ("fused (1 process)", timings.fused_s, " s"),
        ("services / fused, run by run", ratios, " ×"),
    ):
        figures = (statistics.median(values), min(values), max(values))
        shown.add_row(name, *(f"{figure:.3f}{unit}" for figure in figures))
    overhead_s = statistics.median(timings.services_s) - statistics.median(timings.fused_s)
    shown.add_row("services − fused", f"{overhead_s * 1000:.0f} ms", "", "")
    shown.add_row("equal bytes", f"{timings.equal_count} of {len(ratios)}", "", "")
    return shown


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=str(MODEL))
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--steps", type=int, default=10, help="denoising steps")
    parser.add_argument("--mover", default="", help="force one mover")
    args = parser.parse_args()
    timings = asyncio.run(measure(args.model, args.runs, args.steps, args.mover))
    Console().print(table(timings, args.steps))


if __name__ == "__main__":
    main()
