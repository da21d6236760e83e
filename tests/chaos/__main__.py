"""Run plans of faults against a fleet and say what became of every job.

    python -m tests.chaos                        the two seeds that CI runs
    python -m tests.chaos --seeds 7              one; --seeds 1-20 or 3,5,8-10 several
    python -m tests.chaos --seeds 7 --plan       print what seed 7 does, and do nothing
    python -m tests.chaos --seeds 1-20 --table docs/reliability-runs.md
    python -m tests.chaos --standby sqlite       two controllers, of which one takes over from the other; or postgres

Exit code 1 when a job was lost, doubled or wrong, an answer contradicts another, or something leaked; then the story of
the jobs concerned is printed, and the folder of logs is kept.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from tests.chaos import network, report, runner
from tests.chaos.plan import Shape, make_plan
from tests.chaos.stages import FakeStages, RealStages, Stages, shape_of

SEEDS = "1-2"
"""Of CI."""
DEFAULTS = {"fake": (Shape.jobs, Shape.faults, Shape.seconds), "real": (24, 8, 40.0)}
"""Jobs, faults and seconds."""
STAGE_S = {"encoder": 0.2, "transformer": 0.4, "decoder": 0.2}
"""Times of fake stages: encoders and decoders are then half busy, transformers three quarters, before anything fails.
So most faults hit somebody at work, and rooms wait long enough to be hit."""


def main() -> int:
    """See the module's docstring."""
    arguments = _parse()
    seeds = _seeds(arguments.seeds)
    jobs, faults, seconds = DEFAULTS[arguments.stages]
    shape = shape_of(arguments.stages, arguments.jobs or jobs, arguments.faults or faults, arguments.seconds or seconds)
    shape = replace(shape, controllers=2 if arguments.standby else 1)
    if arguments.plan:
        for seed in seeds:
            print(make_plan(seed, shape))
        return 0
    reason = "" if arguments.inside else network.reason_against()
    if not reason and not arguments.inside:
        network.enter("tests.chaos", [*sys.argv[1:], network.INSIDE_FLAG])
    if reason:
        print(f"without faults of the network and of disks: {reason}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="triptych-chaos-", dir=arguments.folder or None))
    stages: Stages = RealStages(folder / "model") if arguments.stages == "real" else FakeStages(STAGE_S)
    try:
        with _journals(arguments.standby) as next_journal:
            return _run_all(seeds, shape, stages, folder, reason, arguments.table, next_journal)
    except asyncio.CancelledError:
        print(f"stopped; logs are in {folder}")
        return 1


@contextlib.contextmanager
def _journals(kind: str) -> Iterator[Callable[[], Sequence[str]]]:
    """What gives each run's controllers their flags: for an empty journal in a PostgreSQL of our own, or none."""
    if kind != "postgres":
        yield lambda: ()
        return
    from tests.standby.postgres import Postgres  # late: only here is psycopg needed

    with Postgres() as postgres:
        yield lambda: ("--journal", postgres.url(postgres.new_schema()))


def _run_all(
    seeds: list[int],
    shape: Shape,
    stages: Stages,
    folder: Path,
    reason: str,
    table: str,
    next_journal: Callable[[], Sequence[str]],
) -> int:
    lines, failed = [report.header()], []
    for seed in seeds:
        run_folder = folder / f"seed-{seed}"
        found = runner.supervised(runner.run(make_plan(seed, shape), stages, run_folder, reason, next_journal()))
        lines.append(found.row())
        print(f"{lines[-1]}\n  controller: {found.controller}", flush=True)
        if found.impairment == "tbf":
            print("  delay and loss by a token bucket (tbf): this kernel has no netem", flush=True)
        for why, kinds in found.skipped.items():
            print(f"  left out, because {why}: {report.faults_text(kinds)}", flush=True)
        if found.is_right:
            runner.remove(run_folder)
        else:
            failed.append(seed)
            print(found.text(run_folder), flush=True)
        if table:
            Path(table).write_text("\n".join(lines) + "\n")
    print("\n" + "\n".join(lines))
    if not failed:
        runner.remove(folder)
        return 0
    print(f"seeds {failed} broke a promise; logs are in {folder}; again: make test-chaos SEED={failed[0]}")
    return 1


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default=SEEDS, help="for example 7, 1-20 or 3,5,8-10 (default: %(default)s)")
    parser.add_argument("--plan", action="store_true", help="print the plans, run nothing")
    parser.add_argument("--stages", choices=sorted(DEFAULTS), default="fake", help="a stand-in, or a tiny model")
    parser.add_argument("--jobs", type=int, default=0, help="jobs of a run")
    parser.add_argument("--faults", type=int, default=0, help="faults of a run")
    parser.add_argument("--seconds", type=float, default=0.0, help="over which they are spread")
    parser.add_argument(
        "--standby", choices=("sqlite", "postgres"), default="", help="two controllers, over this journal"
    )
    parser.add_argument("--table", default="", help="write the rows to this file, in Markdown")
    parser.add_argument("--folder", default="", help="make the run's folder in this one (default: the system's)")
    parser.add_argument(network.INSIDE_FLAG, action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def _seeds(text: str) -> list[int]:
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


if __name__ == "__main__":
    sys.exit(main())
