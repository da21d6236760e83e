"""What every service says to whoever started it, and that a service doesn't depend on being heard."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import asyncio
from services import process
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


FAILING = """
import asyncio
from services import process
from triptych import rpc
async def main():
    server = await rpc.start_server("127.0.0.1:0", [])
    {announced}
    {failing}
process.run(main)
"""


@pytest.mark.parametrize(
    ("failing", "code", "sentence"),
    [
        ("open('/nowhere/trace.jsonl')", 2, "'/nowhere/trace.jsonl' can't be used: No such file or directory"),
        ("raise OSError(errno.EROFS, 'Read-only file system', '/x')", 2, "'/x' can't be used: Read-only file system"),
        ("raise OSError(errno.ENOSPC, 'No space left on device')", 1, "No space left on device"),
        ("raise RuntimeError('no kernel\\nfor this')", 1, "RuntimeError: no kernel for this"),
        ("raise errors.ModelInvalid('half a model')", 2, "half a model"),
        ("raise errors.Unavailable('the other side')", 1, "the other side"),
        ("raise ExceptionGroup('', [errors.ModelInvalid('a'), KeyError('b')])", 1, "KeyError: 'b'"),
    ],
)
def test_whatever_ends_a_start_is_the_last_line(failing: str, code: int, sentence: str) -> None:
    """Also where a server runs, whose own end would say more after it."""
    program = "import errno\nfrom triptych import errors\n" + FAILING.format(failing=failing, announced="")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (code, f"error: {sentence}")


def test_what_ends_a_service_later_quotes_nothing() -> None:
    """It may have a prompt in it; and a file that is gone later may be there at the next start."""
    for failing, expected in (("raise KeyError('a prompt')", "KeyError"), ("open('/nowhere')", "'/nowhere' can't")):
        program = FAILING.format(failing=failing, announced='process.announce("127.0.0.1:1")')
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].startswith(f"error: {expected}")
        assert "prompt" not in done.stderr.splitlines()[-1]
