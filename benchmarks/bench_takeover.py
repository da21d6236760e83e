"""How long after the active controller's end the standby serves: after a kill -9, and when it is told to stop.

What is timed is until the standby's health says SERVING, over both databases. The lease is two seconds.

    python -m benchmarks.bench_takeover --times 10
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.standby.pair import LEASE_S, WAIT_S, Pair
from tests.standby.postgres import Postgres


def measure(flags: Sequence[str], times: int) -> dict[str, list[float]]:
    """Leases, by what ended the active controller."""
    with tempfile.TemporaryDirectory() as folder, Pair(Path(folder), flags) as pair:

        def stop(name: str) -> None:
            pair.processes[name].terminate()
            pair.processes[name].wait(WAIT_S)

        ends: dict[str, Callable[[str], None]] = {"kill -9": pair.kill, "SIGTERM": stop}
        found: dict[str, list[float]] = {about: [] for about in ends}
        for about, end in ends.items():
            for _ in range(times):
                ended = pair.active()
                found[about].append(pair.taken_over_s(end) / LEASE_S)
                pair.start(ended)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--times", type=int, default=10)
    times = parser.parse_args().times
    shown = Table(title=f"until the standby serves, in leases of {LEASE_S:g} s", title_justify="left")
    for column in ("journal", "ended by", "times", "median", "worst"):
        shown.add_column(column)
    with Postgres() as postgres, tempfile.TemporaryDirectory() as results:
        stores = {
            "SQLite": (),
            "PostgreSQL": ("--journal", postgres.url(postgres.new_schema()), "--result-url", results),
        }
        for store, flags in stores.items():
            for about, leases in measure(flags, times).items():
                shown.add_row(store, about, str(times), f"{statistics.median(leases):.2f}", f"{max(leases):.2f}")
    Console().print(shown)


if __name__ == "__main__":
    main()
