"""All benchmarks in one run; `make bench` calls this. What counts are the ratios: both sides ran on the same machine.

python benchmarks/run.py
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
BENCHMARKS = (
    ("operations of the leased rings, beside what promises nothing", "benchmarks.bench_rings"),
    ("hand-off of one room from phase to phase, on one host", "benchmarks.bench_handoff"),
    ("what it costs to look for numbers that are none", "benchmarks.bench_finite"),
    ("what it costs to ask who calls", "benchmarks.bench_security"),
    ("a whole job on the demo model", "benchmarks.bench_latency"),
)
BENCHMARK_TIMEOUT_S = 200.0
"""Longest run of one of them: several times what two busy cores need."""


def main() -> int:
    """Run each benchmark in a process of its own, one after another, and print its table."""
    started_s = time.monotonic()
    cores = len(os.sched_getaffinity(0))
    print(f"{cores} cores, Python {platform.python_version()}, load average {os.getloadavg()[0]:.1f} at the start")
    failed_count = sum(not run(about, module) for about, module in BENCHMARKS)
    print(f"\n{time.monotonic() - started_s:.0f} s in all, load average {os.getloadavg()[0]:.1f} at the end")
    return 1 if failed_count else 0


def run(about: str, module: str) -> bool:
    """Run one benchmark; what it wrote to stderr is shown only where it failed."""
    print(f"\n{about}  (python -m {module})\n", flush=True)
    command = [sys.executable, "-m", module]
    try:
        subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, timeout=BENCHMARK_TIMEOUT_S, check=True)
    except subprocess.TimeoutExpired:
        print(f"{module} was not done after {BENCHMARK_TIMEOUT_S:g} s", flush=True)
        return False
    except subprocess.CalledProcessError as error:
        print(f"{module} ended with exit code {error.returncode}:\n{error.stderr.decode(errors='replace')}", flush=True)
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
