"""`generate --fused`: whatever a stage raises is one sentence and an exit code."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tests.clients.test_up import CLI, ENV, MODEL, SMALL, STEPS_S


def test_a_stage_that_raises_is_one_sentence(tmp_path: Path) -> None:
    flags = ("--param", "sigmas=[]", "-o", str(tmp_path / "out.npy"), "--model", str(MODEL))
    command = (*CLI, "generate", "a circle", *SMALL, "1", "--fused", *flags)
    done = subprocess.run(command, capture_output=True, text=True, timeout=STEPS_S, check=False, env=ENV)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr
    assert re.search(r"^seed \d+$", done.stderr, re.MULTILINE)  # or nobody could try it again
    said = [line for line in done.stderr.splitlines() if line.startswith("triptych: ")]
    assert len(said) == 1, done.stderr
    assert said[0].startswith(
        "triptych: the transformer failed: TypeError in scheduling_unipc_multistep.set_timesteps: "
    )
    assert list(tmp_path.iterdir()) == []


def test_a_workflow_that_the_pipeline_lacks_is_refused(tmp_path: Path) -> None:
    flags = ("--workflows", "text2music", "-o", str(tmp_path / "out.npy"), "--model", str(MODEL))
    command = (*CLI, "generate", "a circle", *SMALL, "1", "--fused", *flags)
    done = subprocess.run(command, capture_output=True, text=True, timeout=STEPS_S, check=False, env=ENV)
    assert done.returncode == 2, done.stderr
    assert "workflows is ['text2music']" in done.stderr
