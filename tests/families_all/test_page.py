"""docs/families.md says what the families do."""

from __future__ import annotations

from pathlib import Path

import diffusers
import pytest

from tests.families import cases
from tools.families import FILE, NOT_SPLIT, facts_of, page


@pytest.mark.parametrize("family", cases.WORKFLOWS)
def test_a_familys_lines_are_fresh(family: str, tmp_path: Path) -> None:
    facts = facts_of(family, tmp_path)
    text = FILE.read_text()
    assert all(line in text for line in (facts.roles, *facts.workflows)), "run python -m tools.families"


def test_what_has_no_blocks_still_has_none() -> None:
    root = Path(diffusers.__file__).parent
    having = {path.parent.parent.name for path in root.glob("*/wan/*.py") if "expand_timesteps" in path.read_text()}
    assert having == {"pipelines"}, "take TI2V out of tools.families.NOT_SPLIT, and make it a job"
    assert FILE.read_text().endswith(NOT_SPLIT), "run python -m tools.families"


def test_the_rest_of_the_page_is_fresh() -> None:
    """Its lines are checked family by family, and it has no others."""
    text = FILE.read_text()
    assert all(part in text for part in page(()).split("| family")[0].splitlines())
    named = [line.split(" | ")[0].removeprefix("| ") for line in text.splitlines() if line.startswith("| ")]
    lines = {family: 1 + len(cases.cases_of(family)) for family in cases.WORKFLOWS}
    assert {name: named.count(name) for name in dict.fromkeys(named) if name not in ("family", "---")} == lines
