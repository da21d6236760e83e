"""What the lease promises over every database. A suite subclasses `LeaseConformance` and gives `open_store`."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable

import pytest

from services.controller.journal import Journal
from services.controller.journal_database import Store
from services.controller.journal_meta import Standing
from services.controller.standby import Lease, stand_by
from tests.journal.conformance import entry, ids
from triptych.config import ControllerConfig
from triptych.errors import InvalidRequest, TakenOver
from triptych.security.auth import Security
from triptych.v1.job_pb2 import GenerationRequest

LEASE_S = 1.0
WAIT_S = 60.0
LAST = 2**62

OpenStore = Callable[[float], Store]
"""The same store each time, with the time of a lease; 0 for a controller without one."""


@contextlib.asynccontextmanager
async def controllers(store: Store, count: int) -> AsyncIterator[list[tuple[Journal, Lease]]]:
    """So many, as far as journal and lease go."""
    async with contextlib.AsyncExitStack() as stack:
        journals = [await stack.enter_async_context(Journal(store)) for _ in range(count)]
        yield [(journal, Lease(journal, LEASE_S)) for journal in journals]


@contextlib.asynccontextmanager
async def kept(lease: Lease) -> AsyncIterator[asyncio.Task[None]]:
    """The lease is renewed in the block."""
    task = asyncio.create_task(lease.keep())
    yield task
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError, TakenOver):
        await task


async def work_on(lease: Lease) -> None:
    """As a controller does."""
    async with lease.kept():
        await asyncio.Event().wait()


class LeaseConformance:
    """Every database's."""

    @pytest.fixture
    def open_store(self) -> OpenStore:
        """An empty store."""
        raise NotImplementedError

    async def test_one_that_is_renewed_is_not_taken(self, open_store: OpenStore) -> None:
        async with controllers(open_store(LEASE_S), 2) as [(journal, lease), (_, other)]:
            assert await asyncio.wait_for(lease.wait(), WAIT_S) == 1
            async with kept(lease):
                waiting = asyncio.create_task(other.wait())
                done, _ = await asyncio.wait([waiting], timeout=4 * LEASE_S)
                assert not done
                lease.check()
                await journal.add(entry(1), GenerationRequest())
                waiting.cancel()

    async def test_one_that_is_left_is_taken_once_and_its_old_holder_does_nothing_more(
        self, open_store: OpenStore
    ) -> None:
        async with controllers(open_store(LEASE_S), 4) as [(old, lease), *others]:
            await asyncio.wait_for(lease.wait(), WAIT_S)
            await old.add(entry(1), GenerationRequest())
            waiting = {asyncio.create_task(other.wait()): (journal, other) for journal, other in others}
            done, rest = await asyncio.wait(waiting, timeout=WAIT_S, return_when=asyncio.FIRST_COMPLETED)
            (first,) = done
            assert first.result() == 2
            journal, active = waiting[first]
            with pytest.raises(TakenOver):
                lease.check()
            for call in (old.add(entry(2), GenerationRequest()), old.counts(), old.set_meta("k", b"v")):
                with pytest.raises(TakenOver):
                    await call
            assert old.ended.done()
            await journal.add(entry(3), GenerationRequest())
            assert ids(await journal.page([], LAST, 9)) == ["job-3", "job-1"]
            async with kept(active):
                done, _ = await asyncio.wait(rest, timeout=2 * LEASE_S)
                assert not done
            for task in rest:
                task.cancel()

    async def test_who_could_not_renew_ends_although_nobody_took_over(self, open_store: OpenStore) -> None:
        """It stood still for longer than the lease."""
        async with controllers(open_store(LEASE_S), 1) as [(_, lease)]:
            await lease.wait()
            lease._until_s -= 2 * LEASE_S  # as if so much time had passed since
            with pytest.raises(TakenOver):
                lease.check()
            with pytest.raises(TakenOver, match="could not be renewed"):
                await asyncio.wait_for(lease.keep(), WAIT_S)

    async def test_a_start_may_take_most_of_a_lease(self, open_store: OpenStore) -> None:
        """What is left is less than the time between two renewals."""
        async with controllers(open_store(LEASE_S), 1) as [(_, lease)]:
            await lease.wait()
            lease._until_s -= 0.7 * LEASE_S  # as if so much time had passed since
            async with kept(lease) as keeping:
                await asyncio.wait([keeping], timeout=LEASE_S)
                lease.check()

    async def test_who_can_not_renew_does_nothing_more_and_gives_back(self, open_store: OpenStore) -> None:
        async with controllers(open_store(LEASE_S), 2) as [(_, lease), (_, other)]:
            await lease.wait()
            async with lease.kept():
                lease.check()
            assert await asyncio.wait_for(other.wait(), LEASE_S / 2) == 2, "it was given back"
            other._until_s -= 2 * LEASE_S  # as if so much time had passed since
            with pytest.raises(ExceptionGroup) as ended:
                await asyncio.wait_for(work_on(other), WAIT_S)
            assert ended.group_contains(TakenOver, match="could not be renewed")

    async def test_damage_is_found_while_standing_by(self, open_store: OpenStore) -> None:
        """Before anything is taken over, and beside the one that is active."""
        async with controllers(open_store(LEASE_S), 2) as [(journal, lease), (_, other)]:
            await lease.wait()
            async with kept(lease):
                await journal.add(entry(1), GenerationRequest())
                await journal.run(lambda db: db.execute("UPDATE jobs SET entry = ?", (b"\xff",)).rowcount)
                with pytest.raises(InvalidRequest, match="job 'job-1' can't be read"):
                    await asyncio.wait_for(other.wait(), 10 * LEASE_S)
                lease.check()
                assert (await journal.standing()).epoch == 1

    async def test_one_that_is_given_back_is_free(self, open_store: OpenStore) -> None:
        async with controllers(open_store(LEASE_S), 2) as [(_, lease), (_, other)]:
            await lease.wait()
            await lease.release()
            with pytest.raises(TakenOver):
                lease.check()
            assert await asyncio.wait_for(other.wait(), LEASE_S / 2) == 2, "no time had to pass"

    async def test_giving_it_back_takes_no_longer_than_it_lasts(self, open_store: OpenStore) -> None:
        """Where the database stands still."""
        async with controllers(open_store(LEASE_S), 1) as [(journal, lease)]:
            await lease.wait()
            goes_on = threading.Event()
            still = asyncio.create_task(journal.run(lambda db: goes_on.wait(WAIT_S)))
            try:
                await asyncio.wait_for(lease.release(), 10 * LEASE_S)
            finally:
                goes_on.set()
                await asyncio.gather(still, return_exceptions=True)  # PostgreSQL may have ended its session

    async def test_who_is_told_to_stop_while_it_takes_over_gives_it_back(self, open_store: OpenStore) -> None:
        """The journal's thread takes over all the same."""
        stop = asyncio.Event()

        class Told(Journal):
            """Tells the controller to stop while the transaction waits for its turn."""

            async def take_over(self, seen: Standing, lease: bytes) -> int | None:
                before = asyncio.create_task(self.run(lambda db: threading.Event().wait(LEASE_S / 4)))
                await asyncio.sleep(0)  # it is on its way
                stop.set()
                epoch = await super().take_over(seen, lease)
                await before
                return epoch

        store = open_store(LEASE_S)
        async with Told(store) as journal, Journal(store) as other:
            config = ControllerConfig(address="127.0.0.1:0", lease_s=LEASE_S)
            assert await stand_by(config, Lease(journal, LEASE_S), Security(), stop) is None
            assert await other.standing() == Standing(1, b""), "it was taken, and is nobody's now"

    async def test_who_has_no_lease_shares_with_nobody(self, open_store: OpenStore) -> None:
        async with Journal(open_store(0.0)):
            with pytest.raises(InvalidRequest, match="or only such with lease_s"):
                await Journal(open_store(LEASE_S)).__aenter__()
        async with Journal(open_store(LEASE_S)):
            with pytest.raises(InvalidRequest, match="no other controller uses"):
                await Journal(open_store(0.0)).__aenter__()
        async with Journal(open_store(0.0)) as journal:
            assert await journal.next_epoch() == 1
