"""Too little memory in a real stage: it is known for what it is, said in one sentence, and the stage stays whole."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable

from tests.failures import short_of_memory

SENTENCE = re.compile(
    r"out of memory on cpu: [\d.e+]+ [KMG]iB more were asked for; "
    r"[\d.e+]+ ([KMG]i)?B of the [\d.e+]+ [KMG]iB that this process may have were free"
)


def test_each_role_works_again_after_it(model_folder: Callable[[str], str]) -> None:
    """With the same bits, and nothing of the failed job left."""
    done = subprocess.run(
        [sys.executable, "-m", short_of_memory.__name__, model_folder("wan_t2v")],
        env={**os.environ, **short_of_memory.ALLOCATOR, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    roles = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(roles) == 3
    for said in roles:
        assert said["is_shortage"], said
        assert SENTENCE.fullmatch(said["sentence"]), said
        assert said["same"], said
        assert said["left_bytes"] == 0, said
