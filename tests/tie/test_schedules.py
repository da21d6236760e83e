"""The tie between workers and controller under seeded schedules: see `world` for what happens and what must hold."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.tie.planted import PLANTED
from tests.tie.world import Violation, World

SCHEDULES = 300
"""About 15 s of one core. `python -m tests.tie.many FIRST LAST` runs more, by hand."""
PLANTED_SEEDS_MAX = 60
"""A planted bug must show within so many schedules."""


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Thousands of warnings that are as they should be."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def test_no_schedule_breaks_the_tie() -> None:
    seen: Counter[str] = Counter()
    for seed in range(SCHEDULES):
        world = World(seed).run()
        seen["jobs"] += len(world.accepted)
        seen["faults"] += world.network.struck
        seen["restarts"] += world.restarts
        seen["kills"] += world.kills
        seen.update(world.metrics.reconciliations)
    # The schedules reach what they are there for.
    assert seen["jobs"] > 3 * SCHEDULES
    assert seen["faults"] > 5 * SCHEDULES
    assert min(seen["restarts"], seen["kills"]) > SCHEDULES // 3, seen


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_bug_is_found(name: str) -> None:
    for seed in range(PLANTED_SEEDS_MAX):
        try:
            World(seed, PLANTED[name]).run()
        except Violation:
            return
    pytest.fail(f"{name}: not noticed in {PLANTED_SEEDS_MAX} schedules")
