"""`triptych trace`: a job's trace as a waterfall."""

from __future__ import annotations

import argparse
from pathlib import Path

from triptych_client.tables import is_terminal
from triptych_client.terminal import visible
from triptych_client.waterfall import draw, lines, read


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the job and the file."""
    parser.add_argument("job", metavar="JOB", help="job id or trace id, or the beginning of one")
    parser.add_argument("--trace-file", required=True, metavar="FILE", help="what the fleet's --trace-file wrote")


def run(args: argparse.Namespace) -> None:
    """Draw the trace that the file holds; in a pipe, print its spans."""
    trace = read(Path(args.trace_file), args.job)
    if is_terminal():
        from rich.console import Console

        console = Console(highlight=False)
        console.print(draw(trace, console.encoding))
        return
    for cells in lines(trace):
        print("\t".join(map(visible, cells)))
