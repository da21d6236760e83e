"""`triptych backup`: a copy of the state folder, while the controller runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from triptych.units import bytes_text
from triptych_client.backup import back_up


def run(args: argparse.Namespace) -> None:
    """Copy, and say what was copied."""
    journal_bytes, result_count, result_bytes = back_up(Path(args.state), Path(args.target))
    print(f"{args.target}: journal {bytes_text(journal_bytes)}, {result_count} results {bytes_text(result_bytes)}")
