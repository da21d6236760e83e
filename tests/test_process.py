"""What every service says to whoever started it, and that a service doesn't depend on being heard."""

from __future__ import annotations

import os
import subprocess
import sys

PROGRAM = """
import asyncio
from triptych import process
async def main():
    process.announce("127.0.0.1:1")
    print("went on", file=__import__("sys").stderr, flush=True)
process.run(main)
"""


def test_a_service_goes_on_whose_starter_has_gone() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM], stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60, check=False
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (0, "went on\n")
