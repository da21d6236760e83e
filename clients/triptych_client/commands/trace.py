"""`triptych trace`: a job's trace as a waterfall."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from triptych_client.waterfall import render


def run(args: argparse.Namespace) -> None:
    """Draw the trace that the file holds."""
    Console().print(render(Path(args.trace_file), args.job))
