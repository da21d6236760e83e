"""The model and the programs do the same: random schedules of the model, replayed by the real programs."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest

from tests.model_checker import spin
from tests.model_checker.call import Difference
from tests.model_checker.configurations import SIMULATED
from tests.model_checker.replay import Replay
from tests.model_checker.scale import Scale
from tests.sim.planted import PLANTED
from triptych.rings.layout import Kind
from triptych.rings.protocol import TABLE

if not spin.is_installed():
    pytest.skip(spin.INSTALL, allow_module_level=True)

SEEDS = 40
"""Schedules of each configuration; all take about ten seconds on two cores. The rarest event comes in one of fifty."""
SPINS_AT_ONCE = 2

HAPPENS = (
    *(f"line {line}" for line in TABLE),
    *(f"{line} lost" for line in ("reserve", "ready", "claim", "ack", "nack", "redeliver")),
    "contended choice",
    "death",
    "stop",
    "Fenced",
    "RingUnreachable",
    "publish raised RingFull",
    *(f"{call} raised LeaseLost" for call in ("publish", "claim", "ack", "nack")),
    *(f"{call} returned" for call in ("publish", "claim", "ack", "nack", "reap", "abandon")),
)
"""What the schedules must have had, so that their replay means something."""


class Trace(NamedTuple):
    """A schedule of the model."""

    name: str
    scale: Scale
    steps: list[str]


@pytest.fixture(scope="module")
def traces() -> Iterator[list[Trace]]:
    """Schedules of all configurations."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(SPINS_AT_ONCE) as pool:
        made = []
        for configuration in SIMULATED:
            path, scale = spin.expand(configuration, folder), Scale.of(configuration)
            for seed in range(1, SEEDS + 1):
                steps = pool.submit(spin.simulate, path, seed, folder)
                made.append((f"{configuration.name}, seed {seed}", scale, steps))
        yield [Trace(name, scale, steps.result()) for name, scale, steps in made]


def test_the_programs_do_what_the_model_did(traces: list[Trace]) -> None:
    seen: Counter[str] = Counter()
    transitions: set[tuple[Kind, Kind, int]] = set()
    for name, scale, steps in traces:
        replay = Replay(scale)
        try:
            replay.run(steps)
        except Difference as difference:
            pytest.fail(f"{name}: {difference}")
        seen += replay.seen
        transitions |= replay.transitions
    assert transitions == {(line.source, line.target, line.attempt_step) for line in TABLE.values()}
    assert not [event for event in HAPPENS if not seen[event]], seen


@pytest.mark.parametrize("name", [name for name in PLANTED if name != "reap before fence"])
def test_a_program_that_does_something_else_is_noticed(name: str, traces: list[Trace]) -> None:
    for trace in traces:
        try:
            Replay(trace.scale, PLANTED[name]).run(trace.steps)
        except Difference:
            return
    pytest.fail(f"{name}: not noticed in {len(traces)} schedules")
