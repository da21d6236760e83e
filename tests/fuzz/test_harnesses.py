"""The share of `tests.fuzz.drive` that a change's tests run: good inputs bent at random, from a seed.

What was found once is in the ordinary suites as a test of its own. The last tests here prove that a harness that
crashes, hangs or takes memory is noticed.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.fuzz import drive
from tests.fuzz.harnesses import HARNESSES

RUNS = 15_000
SLOW = {"whole_room": 10_000, "manifest": 10_000, "picture": 5_000}
PLANTED = {
    "crash": "raise KeyError(1)",
    "memory": "bytearray(2 << 30)",
    "hang": "re.match('(a+)+$', 'a' * 60 + 'b')",
}


@pytest.mark.parametrize("name", HARNESSES)
def test_bent_inputs(name: str) -> None:
    runs = SLOW.get(name, RUNS)
    done = drive.run(name, runs)
    assert done.ok, done.output[-4000:]
    assert done.count == runs


@pytest.mark.skipif(not drive.has_atheris(), reason="atheris has no wheel for this Python")
def test_inputs_chosen_by_coverage() -> None:
    done = drive.run("request", 5_000, engine="atheris")
    assert done.ok, done.output[-4000:]
    assert done.count == 5_000


@pytest.mark.parametrize("kind", PLANTED)
def test_planted_bugs_are_noticed(kind: str) -> None:
    script = (
        "import re, random; from tests.fuzz import drive; drive.INPUT_TIMEOUT_S = 1; drive._limit_memory()\n"
        "drive.FOUND = __import__('pathlib').Path(__import__('tempfile').mkdtemp())\n"
        f"def bad(data):\n    {PLANTED[kind]}\n"
        "drive._with_seeds(drive._guarded('planted', bad), lambda rng, data: data, [b'x'], 10, 1)"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=drive.ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert ("did not return" in done.stderr) == (kind != "hang"), done.stderr
    assert "File" in done.stderr, "it says where"
