"""The rows of docs/counters.md, each at its edge."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.controller.journal import Journal
from services.controller.journal_meta import COUNTER_MAX
from tests.services.conftest import OpenBench
from triptych import ids
from triptych.errors import InvalidRequest, JournalFull, WrongState
from triptych.rings import layout, ring
from triptych.rings.layout import Geometry, Kind, StateWord
from triptych.rings.memory import MemoryDriver, MemoryRing
from triptych.rings.protocol import Program, Write
from triptych.v1.dispatch_pb2 import RING_PHASE1, Dispatch
from triptych.v1.job_pb2 import JOB_STATE_QUEUED, GenerationRequest, Job
from triptych.v1.journal_pb2 import JournalEntry
from triptych.v1.ring_service_pb2 import Lease


def entry(number: int) -> JournalEntry:
    return JournalEntry(job=Job(job_id=f"job-{number}", request_id=str(number), state=JOB_STATE_QUEUED))


async def set_meta(journal: Journal, key: str, value: int) -> None:
    await journal.run(lambda db: db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value)) and None)


async def test_after_the_last_rank_new_workers_are_refused_and_the_others_go_on(open_bench: OpenBench) -> None:
    """It ended the controller, and each of its next starts."""
    async with open_bench() as bench:
        await set_meta(bench.journal, "rank", ids.RANK_MAX - 1)
        assert await bench.encoder("last") == ids.RANK_MAX
        with pytest.raises(WrongState, match="all 268435455 ranks have been given"):
            await bench.encoder("one too many")
        job = await bench.create()
        assert await bench.claimed(ids.RANK_MAX) == [job.job_id]
    async with open_bench() as bench:
        await bench.controller.holdings.recover()
        await bench.controller.upkeep.tick()
        assert await bench.encoder("last") == ids.RANK_MAX
        assert await bench.claimed(ids.RANK_MAX) == [job.job_id]


def test_the_last_room_of_the_last_rank_has_an_id_of_its_own() -> None:
    last = ids.room_id(ids.RANK_MAX, ids.ROOM_COUNTER_MAX)
    assert last == 2**64 - 1
    assert ids.room_id(1, ids.ROOM_COUNTER_MAX) + 1 == ids.room_id(2, 0)
    assert ids.ROOM_COUNTER_BITS + ids.RANK_BITS == 64


async def test_tickets_wrap_in_order() -> None:
    driver = MemoryDriver(memoryview(bytearray(Geometry().ring_bytes)))
    one = MemoryRing(RING_PHASE1, 1, attempts_max=2, driver=driver)
    driver.execute(_set_ticket(layout.TICKET_COUNT - 2))
    for number in range(4):
        await one.publish(Dispatch(job_id=str(number)), 0)
    claimed = [await one.claim(1) for _ in range(4)]
    assert [c.dispatch.job_id for c in claimed if c] == ["0", "1", "2", "3"]
    assert [c.lease.ticket for c in claimed if c] == [layout.TICKET_COUNT - 2, layout.TICKET_COUNT - 1, 0, 1]


def _set_ticket(ticket: int) -> Program[None]:
    yield (Write(layout.TICKET_OFFSET, layout.word_bytes(ticket)),)


def test_the_widest_state_word_fits() -> None:
    word = StateWord(layout.TICKET_COUNT - 1, layout.ATTEMPT_MAX, layout.RANK_MAX, Kind.LEASED)
    assert StateWord.unpack(word.pack()) == word
    assert layout.RANK_MAX is ids.RANK_MAX


@pytest.mark.parametrize(
    "lease",
    [
        {"ticket": layout.TICKET_COUNT},
        {"ticket": 2**32 - 1},
        {"attempt": layout.ATTEMPT_MAX + 1},
        {"rank": layout.RANK_MAX + 1},
    ],
)
def test_a_lease_beyond_the_counters_is_refused(lease: dict[str, int]) -> None:
    with pytest.raises(InvalidRequest, match=f"lease.{next(iter(lease))}"):
        ring.held_of(Lease(**{"ring": RING_PHASE1, "rank": 1, **lease}), RING_PHASE1, Geometry())  # type: ignore[arg-type]


async def test_after_the_last_epoch_the_controller_does_not_start(tmp_path: Path) -> None:
    async with Journal(tmp_path) as journal:
        await set_meta(journal, "epoch", COUNTER_MAX - 1)
        assert await journal.next_epoch() == COUNTER_MAX
        for _ in range(2):
            with pytest.raises(WrongState, match="epoch"):
                await journal.next_epoch()


async def test_after_the_last_sequence_no_job_is_taken_and_the_others_go_on(tmp_path: Path) -> None:
    async with Journal(tmp_path) as journal:
        await journal.add(entry(1), GenerationRequest())
        await journal.run(lambda db: db.execute("UPDATE sqlite_sequence SET seq = ?", (COUNTER_MAX - 1,)) and None)
        assert await journal.add(entry(2), GenerationRequest()) is None
        with pytest.raises(JournalFull):
            await journal.add(entry(3), GenerationRequest())
        page, _more = await journal.page([], COUNTER_MAX, 9)
        assert [one.job.job_id for _, one in page] == ["job-1"]
        await journal.save(entry(2))
        assert await journal.get("job-2") is not None


def test_the_words_of_a_ring_wrap() -> None:
    assert layout.word_bytes(2**64) == bytes(8)
