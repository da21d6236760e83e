"""Diffusers' own variable for the kind of attention changes bits, so workers with different ones don't mix."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable

import pytest

PROGRAM = """
import json, sys
from triptych.roles import ROLES
from triptych.stages.stage import Stage
from triptych.stages.whole import Whole
whole = Whole.open(sys.argv[1])
print(json.dumps(Stage.load(whole, ROLES[1]).settings))
"""


@pytest.mark.parametrize("backend", ["native", "_native_math"])
def test_the_kind_of_attention_is_a_setting_of_the_stage(backend: str, family_folder: Callable[[str], str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, family_folder("wan")],
        env={**os.environ, "DIFFUSERS_ATTN_BACKEND": backend, "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert json.loads(done.stdout.splitlines()[-1])["attention"] == backend
