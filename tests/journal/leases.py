"""What the lease promises over every database. A suite subclasses `LeaseConformance` and gives `open_store`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import pytest

from services.controller.journal import Journal
from services.controller.journal_database import Store
from services.controller.standby import Lease
from tests.journal.conformance import entry, ids
from triptych.errors import InvalidRequest, TakenOver
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

    async def test_one_that_is_given_back_is_free(self, open_store: OpenStore) -> None:
        async with controllers(open_store(LEASE_S), 2) as [(_, lease), (_, other)]:
            await lease.wait()
            await lease.release()
            with pytest.raises(TakenOver):
                lease.check()
            assert await asyncio.wait_for(other.wait(), LEASE_S / 2) == 2, "no time had to pass"

    async def test_who_has_no_lease_shares_with_nobody(self, open_store: OpenStore) -> None:
        async with Journal(open_store(0.0)):
            with pytest.raises(InvalidRequest, match="or only such with lease_s"):
                await Journal(open_store(LEASE_S)).__aenter__()
        async with Journal(open_store(LEASE_S)):
            with pytest.raises(InvalidRequest, match="no other controller uses"):
                await Journal(open_store(0.0)).__aenter__()
        async with Journal(open_store(0.0)) as journal:
            assert await journal.next_epoch() == 1
