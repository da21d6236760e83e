"""`triptych backup`: a copy of the state folder, while the controller runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from triptych.config import ControllerConfig
from triptych.limits import bytes_text
from triptych_client.backup import back_up
from triptych_client.terminal import visible


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the two folders."""
    parser.add_argument("target", metavar="FOLDER", help="the copy; must not exist yet")
    default = ControllerConfig.state
    parser.add_argument("--state", default=default, metavar="DIR", help="what to copy (default: %(default)s)")


def run(args: argparse.Namespace) -> None:
    """Copy, and say what was copied."""
    journal_bytes, result_count, result_bytes = back_up(Path(args.state), Path(args.target))
    results = f"{result_count} results {bytes_text(result_bytes)}"
    print(visible(f"{args.target}: journal {bytes_text(journal_bytes)}, {results}"))
