"""A result whose place has gone while it was made isn't lost, and the job's id is told."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np

from tests.clients.test_up import CLI, ENV, MODEL, SMALL, STEPS_S


def test_an_embedded_fleet_leaves_what_cannot_be_fetched(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    command = (*CLI, "generate", "a circle", *SMALL, "300", "--model", str(MODEL), "-o", str(folder / "out.npy"))
    env = {**ENV, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "denoising" in line:
                folder.rmdir()
                break
        out, said = process.communicate(timeout=STEPS_S)
    assert (process.returncode, out) == (1, "")
    assert re.search(r"^job job-[0-9a-f]{32}, seed \d+$", said, re.MULTILINE)
    told = re.search(r"^the result isn't lost; it is in (.*)$", said, re.MULTILINE)
    assert told is not None, said
    (kept,) = Path(told[1]).rglob("*.npy")
    assert np.load(kept).size
    assert said.splitlines()[-1].startswith("triptych: [Errno 2] No such file or directory")
