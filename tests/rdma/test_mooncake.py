"""Rooms over Mooncake and RDMA arrive with equal bytes, and the cards carry them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import numpy as np
import pytest

from tests.transport.conftest import Owner
from tests.transport.test_movers import reachable_only_by
from triptych import rdma_devices
from triptych.errors import RoomGone, TransferFailed, WrongState
from triptych.rdma_devices import DEVICES
from triptych.transport import codec, room
from triptych.transport.arena import Arena
from triptych.transport.fetcher import FETCH_TIMEOUT_BASE_S, Fetcher, open_fetcher
from triptych.transport.mooncake_engine import MooncakeEngine, open_engine

DEAD_OWNER_S = FETCH_TIMEOUT_BASE_S + 5
"""The fetcher's own bound, and something for a slow machine."""
PACKET_BYTES_MAX = 4096
"""Largest path MTU of any card: a transfer takes at least its size by this many packets."""


def address_of(device: str) -> str:
    """The IPv4 address behind a device's GID."""
    gid = rdma_devices.choose(device, rdma_devices.ports()).gid.value
    return ".".join(str(part) for part in gid[-4:])


def packets(device: str) -> int:
    """Packets that a soft-RoCE device has received."""
    counter = DEVICES / device / "ports" / "1" / "hw_counters" / "rcvd_pkts"
    if not counter.exists():
        pytest.skip(f"{device} counts no packets")
    return int(counter.read_text())


@pytest.fixture(scope="module")
def arena() -> Iterator[Arena]:
    with Arena(32 * 2**20) as arena:
        yield arena


@pytest.fixture(scope="module")
def owner(devices: tuple[str, str]) -> Iterator[Owner]:
    owner = Owner(address_of(devices[0]), "rdma", devices[0])
    yield owner
    owner.kill()
    owner.arena.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def fetcher(devices: tuple[str, str], arena: Arena) -> Iterator[Fetcher]:
    engine = open_engine(arena, address_of(devices[1]), "rdma", devices[1])
    assert (engine.protocol, engine.reason.startswith("it took uverbs")) == ("rdma", True)
    fetcher = open_fetcher(arena, engine, forced="mooncake")
    yield fetcher
    fetcher.close()
    engine.close()


@pytest.mark.parametrize("size_bytes", [0, 1, 2**20 + 1, 10 * 2**20 + 13])
async def test_equal_bytes_carried_by_the_card(
    size_bytes: int, owner: Owner, fetcher: Fetcher, devices: tuple[str, str]
) -> None:
    assert owner.protocol == "rdma"
    ref = owner.put(size_bytes, seed=size_bytes)
    before = packets(devices[1])
    fetched = await fetcher.fetch(reachable_only_by("mooncake", ref))
    assert (fetched.mover, fetched.protocol, fetched.read_count) == ("mooncake", "rdma", 1)
    assert packets(devices[1]) - before >= size_bytes // PACKET_BYTES_MAX
    values = codec.decode(room.parse(fetched.buffer, ref.room_id), fetched.buffer)
    expected = np.random.default_rng(size_bytes).integers(0, 256, size_bytes, np.uint8)
    np.testing.assert_array_equal(values["x"], expected)
    owner.release(ref.room_id)


async def test_a_released_room_is_gone(owner: Owner, fetcher: Fetcher) -> None:
    ref = owner.put(300_000, seed=2)
    owner.release(ref.room_id)
    with pytest.raises(RoomGone):
        await fetcher.fetch(reachable_only_by("mooncake", ref))


async def test_a_reader_over_tcp_is_told_and_another_mover_helps(owner: Owner, arena: Arena) -> None:
    """Both ends must speak the same protocol; where they don't, the room comes by gRPC."""
    ref = owner.put(1000, seed=3)
    ref.host_id = "another host"
    with Arena(2**20) as own:
        engine = open_engine(own, "127.0.0.1", "tcp")
        for forced, outcome in (("mooncake", None), ("", "rpc")):
            fetcher = open_fetcher(own, engine, forced=forced)
            if outcome is None:
                with pytest.raises(TransferFailed, match="mooncake"):
                    await fetcher.fetch(ref)
            else:
                assert (await fetcher.fetch(ref)).mover == outcome
            fetcher.close()
        engine.close()


async def test_a_dead_owner_is_noticed(devices: tuple[str, str], fetcher: Fetcher) -> None:
    mortal = Owner(address_of(devices[0]), "rdma", devices[0])
    ref = reachable_only_by("mooncake", mortal.put(1000, seed=4))
    await fetcher.fetch(ref)  # so that it has a connection that dies
    mortal.kill()
    mortal.arena.unlink(missing_ok=True)
    started_s = time.monotonic()
    with pytest.raises(TransferFailed):
        await fetcher.fetch(ref)
    assert time.monotonic() - started_s < DEAD_OWNER_S


def test_auto_takes_rdma_where_there_is_a_device(devices: tuple[str, str]) -> None:
    engine = MooncakeEngine("127.0.0.1", "auto", devices[0])
    assert engine.protocol == "rdma"
    engine.close()
    engine = MooncakeEngine("127.0.0.1", "tcp")
    assert (engine.protocol, engine.reason) == ("tcp", "it was asked for")
    engine.close()


def test_an_arena_that_cannot_be_pinned_goes_over_tcp_or_is_an_error() -> None:
    free = os.statvfs("/dev/shm")
    with Arena(2 * free.f_blocks * free.f_frsize) as too_large:
        with pytest.raises(WrongState, match="arena_bytes"):
            open_engine(too_large, "127.0.0.1", "rdma")
        engine = open_engine(too_large, "127.0.0.1", "auto")
        assert engine.protocol == "tcp"
        assert "arena_bytes" in engine.reason
        engine.close()
