"""The leased rings under seeded schedules: see `world` for what happens in them, `ledger` for what must hold."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.sim.ledger import Violation
from tests.sim.planted import PLANTED
from tests.sim.scripts import CONSUMERS, PRODUCERS, Fate, Programs
from tests.sim.world import KINDS_OF_FATE, World
from triptych.rings import recovery

SCHEDULES = 20_000
"""What the project promises; about 20 s of one core."""
BATCHES = 4
PLANTED_SEEDS_MAX = 3000
"""A planted bug must show within so many schedules; the rarest needs about 300."""


@pytest.mark.parametrize("batch", range(BATCHES))
def test_no_schedule_breaks_an_invariant(batch: int) -> None:
    seen: Counter[str] = Counter()
    size = SCHEDULES // BATCHES
    for seed in range(batch * size, (batch + 1) * size):
        ledger = World(seed).run()
        seen["acked"] += len(ledger.acked)
        seen["stale refusals"] += ledger.stale_refusals
        seen["redelivered"] += sum(count > 1 for count in ledger.delivery_count.values())
        seen.update(ledger.removed.values())
    # The schedules reach what they are there for.
    assert seen["acked"] > 4 * size
    for event in ("stale refusals", "redelivered", recovery.PAST_CAP, recovery.TARGET_DEAD):
        assert seen[event] > size // 100, (event, seen)


@pytest.mark.parametrize("kind", KINDS_OF_FATE, ids=["killed", "asleep", "cut off"])
def test_every_process_struck_at_every_operation(kind: tuple[bool, bool]) -> None:
    schedules = 0
    for seed in range(16):
        undisturbed = World(seed, fates={})
        undisturbed.run()
        for rank in range(1, PRODUCERS + CONSUMERS + 1):
            for step in range(undisturbed.processes[rank].performed_count):
                World(seed, fates={rank: Fate(step, *kind)}).run()
                schedules += 1
    assert schedules > 1000


def test_a_message_that_kills_is_delivered_up_to_the_cap_and_then_handed_to_the_controller() -> None:
    found = 0
    for seed in range(400):
        world = World(seed, fates={})
        ledger = world.run()
        if world.poison:
            assert len(ledger.acked) + len(ledger.removed) == len(ledger.published), seed
            if ledger.removed[world.poison] == recovery.PAST_CAP:  # else it was for one rank, which it killed
                found += 1
                assert ledger.delivery_count[world.poison] == ledger.attempts_max, seed
    assert found > 10


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_bug_is_found(name: str) -> None:
    for seed in range(PLANTED_SEEDS_MAX):
        try:
            World(seed, PLANTED[name], is_table_checked=False).run()
        except Violation:
            break
    else:
        pytest.fail(f"{name}: not noticed in {PLANTED_SEEDS_MAX} schedules")
    with pytest.raises(Violation, match=f"^seed {seed}: "):  # the seed finds it again
        World(seed, PLANTED[name], is_table_checked=False).run()


def test_a_store_to_a_state_word_is_noticed_at_once() -> None:
    with pytest.raises(Violation, match="without compare-and-swap"):
        World(0, PLANTED["ack without compare-and-swap"]).run()


def test_a_seed_is_a_schedule() -> None:
    traces: list[list[str]] = [[], []]
    for trace in traces:
        World(9, Programs(), trace=trace.append).run()
    assert traces[0] == traces[1]
    assert len(traces[0]) > 50
