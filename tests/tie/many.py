"""Many schedules of the tie: `python -m tests.tie.many FIRST LAST`. Prints the seeds that break something."""

from __future__ import annotations

import logging
import sys
import time

from tests.tie.world import Violation, World


def main(first: int, last: int) -> int:
    """Run the seeds from `first` up to, not including, `last`; how many broke something."""
    logging.disable(logging.CRITICAL)
    started_s, broken = time.monotonic(), 0
    for seed in range(first, last):
        try:
            World(seed).run()
        except Violation as violation:
            print(violation, flush=True)
            broken += 1
    print(f"{last - first} schedules in {time.monotonic() - started_s:.0f} s: {broken} broken")
    return broken


if __name__ == "__main__":
    sys.exit(bool(main(int(sys.argv[1]), int(sys.argv[2]))))
