"""The conformance suite of all movers. The owner of the rooms is another process."""

from __future__ import annotations

import concurrent.futures
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from triptych import rpc
from triptych.errors import InvalidRequest, RoomGone, SourceCorrupt, TransferFailed
from triptych.transport import codec, room
from triptych.transport.arena import Arena
from triptych.transport.fetcher import READS_MAX, Fetcher, open_fetcher
from triptych.transport.movers import LocalMover, MooncakeMover, RpcMover
from triptych.transport.shared_memory import sweep
from triptych.v1 import room_pb2

MOONCAKE = pytest.param("mooncake", marks=pytest.mark.needs_mooncake)
MOVERS = ("local", MOONCAKE, "rpc")
DEAD_OWNER_S = 8
"""A dead owner must be noticed sooner than a fetch's own timeout of 10 s."""

each_mover = pytest.mark.parametrize("name", MOVERS)


def reachable_only_by(name: str, ref: room_pb2.RoomRef) -> room_pb2.RoomRef:
    """The reference without what any other mover needs: what arrives has come by this one."""
    left = room_pb2.RoomRef()
    left.CopyFrom(ref)
    if name != "local":
        left.host_id, left.arena = "another host", ""
    if name != "mooncake":
        left.mooncake_session, left.base_address = "", 0
    if name != "rpc":
        left.owner_address = ""
    return left


@each_mover
@pytest.mark.parametrize("size_bytes", [0, 1, 2**20 - 1, 2**20 + 1, 20 * 2**20 + 13])
async def test_equal_bytes(name, size_bytes, owner, open_forced):
    ref = owner.put(size_bytes, seed=size_bytes)
    for fetcher in (open_forced(name), open_forced()):
        fetched = await fetcher.fetch(reachable_only_by(name, ref))
        assert (fetched.mover, len(fetched.buffer), fetched.read_count) == (name, ref.size_bytes, 1)
        values = codec.decode(room.parse(fetched.buffer, ref.room_id), fetched.buffer)
        np.testing.assert_array_equal(
            values["x"], np.random.default_rng(size_bytes).integers(0, 256, size_bytes, np.uint8)
        )
    owner.release(ref.room_id)


@pytest.mark.needs_mooncake
async def test_order_of_choice(owner, open_forced):
    ref = owner.put(100, seed=1)
    assert (await open_forced().fetch(ref)).mover == "local"
    ref.host_id = "another host"
    assert (await open_forced().fetch(ref)).mover == "mooncake"
    ref.mooncake_session = "127.0.0.1:1"
    assert (await open_forced().fetch(ref)).mover == "rpc"


@pytest.mark.needs_mooncake
def test_mooncake_is_tcp(owner, engine):
    assert (owner.protocol, engine.protocol) == ("tcp", "tcp")


def test_unknown_mover_is_refused(reader_arena):
    with pytest.raises(InvalidRequest, match=r"mooncake.*local, rpc"):
        open_fetcher(reader_arena, None, forced="mooncake")


@pytest.mark.needs_mooncake
async def test_forced_mover_does_not_fall_back(owner, open_forced):
    ref = reachable_only_by("rpc", owner.put(100, seed=1))
    for name in ("local", "mooncake"):
        with pytest.raises(TransferFailed, match=name):
            await open_forced(name).fetch(ref)


@each_mover
async def test_released_room_is_gone(name, owner, open_forced):
    ref = owner.put(300_000, seed=2)
    assert owner.release(ref.room_id)
    assert not owner.release(ref.room_id)
    with pytest.raises(RoomGone):
        await open_forced(name).fetch(ref)


@pytest.mark.parametrize("name", ["local", MOONCAKE])
async def test_place_taken_by_another_room_is_gone(name, owner, open_forced):
    ref = owner.put(300_000, seed=2)
    owner.release(ref.room_id)
    other = owner.put(300_000, seed=3)
    assert other.offset_bytes == ref.offset_bytes
    with pytest.raises(RoomGone):
        await open_forced(name).fetch(ref)
    owner.release(other.room_id)


@each_mover
@pytest.mark.parametrize("where", [3, 100, -1])
async def test_corruption_at_rest(name, where, owner, open_forced):
    ref = owner.put(200_000, seed=3)
    flip(owner, ref.offset_bytes + where % ref.size_bytes)
    with pytest.raises(SourceCorrupt, match=f"{READS_MAX} times, by {name}"):
        await open_forced(name).fetch(ref)
    flip(owner, ref.offset_bytes + where % ref.size_bytes)
    assert (await open_forced(name).fetch(ref)).mover == name
    owner.release(ref.room_id)


class Noisy:
    """A mover over a line that flips a bit in its first reads."""

    def __init__(self, inner, flips: int) -> None:
        self.name, self.protocol, self._inner, self._flips = inner.name, inner.protocol, inner, flips

    def accepts(self, ref):
        return self._inner.accepts(ref)

    async def fetch(self, ref, into):
        await self._inner.fetch(ref, into)
        if self._flips:
            self._flips -= 1
            into[-1] ^= 1


@each_mover
async def test_corruption_on_the_way_is_read_again(name, owner, reader_arena, engine):
    ref = owner.put(50_000, seed=4)
    with concurrent.futures.ThreadPoolExecutor(2) as executor:
        movers = {
            "local": lambda: LocalMover(executor),
            "mooncake": lambda: MooncakeMover(engine, reader_arena, executor),
            "rpc": lambda: RpcMover(rpc.open_channel),
        }
        assert (await Fetcher([Noisy(movers[name](), READS_MAX - 1)], executor).fetch(ref)).read_count == READS_MAX
        with pytest.raises(SourceCorrupt):
            await Fetcher([Noisy(movers[name](), READS_MAX)], executor).fetch(ref)


@each_mover
async def test_reference_out_of_range(name, owner, open_forced):
    ref = reachable_only_by(name, owner.put(1000, seed=5))
    ref.offset_bytes = 2**33
    with pytest.raises((TransferFailed, InvalidRequest)):
        await open_forced(name).fetch(ref)


@pytest.mark.parametrize(
    "wrong",
    [
        {"size_bytes": 63},
        {"size_bytes": 2**63},
        {"offset_bytes": 1},
        {"offset_bytes": 2**64 - 64},
        {"xxh3_128": b"short"},
        {"room_id": 0},
        {"arena": "/etc/passwd"},
        {"arena": "/dev/shm/triptych-arena-/../../etc/passwd"},
    ],
)
async def test_impossible_reference_is_refused(wrong, owner, open_forced):
    ref = owner.put(1000, seed=5)
    for name, value in wrong.items():
        setattr(ref, name, value)
    with pytest.raises(InvalidRequest, match=f"room.{next(iter(wrong))}"):
        await open_forced("local").fetch(ref)


@each_mover
async def test_dead_owner(name, mortal, open_forced):
    ref = mortal.put(1_000_000, seed=6)
    fetcher = open_forced(name)
    await fetcher.fetch(ref)
    mortal.kill()
    if name == "local":  # what it held outlives it, until somebody sweeps
        await fetcher.fetch(ref)
        sweep()
        assert not mortal.arena.exists()
    started = time.monotonic()
    with pytest.raises(TransferFailed):
        await fetcher.fetch(ref)
    assert time.monotonic() - started < DEAD_OWNER_S


def test_nothing_is_left(mortal, owner, reader_arena):
    assert mortal.arena.stat().st_mode & 0o777 == 0o600
    mortal.quit()
    assert not mortal.arena.exists()
    sweep()
    assert owner.arena.exists()
    assert reader_arena.path.exists()


@pytest.mark.needs_mooncake
async def test_full_arena_falls_through(owner, engine, reader_arena, open_forced):
    ref = owner.put(1000, seed=7)
    ref.host_id = "another host"
    with reader_arena.borrow(reader_arena.largest_gap_bytes):
        assert (await open_forced().fetch(ref)).mover == "rpc"
    assert (await open_forced().fetch(ref)).mover == "mooncake"
    assert reader_arena.used_bytes == 0


@each_mover
async def test_fetched_memory_is_the_readers_own(name, mortal, open_forced):
    ref = mortal.put(10_000, seed=8)
    fetched = await open_forced(name).fetch(ref)
    values = codec.decode(room.parse(fetched.buffer, ref.room_id), fetched.buffer)
    mortal.kill()
    sweep()
    values["x"] += 1
    assert np.frombuffer(fetched.buffer, np.uint8).ctypes.data % 64 == 0
    np.testing.assert_array_equal(
        values["x"], np.random.default_rng(8).integers(0, 256, 10_000, np.uint8) + np.uint8(1)
    )


def test_without_mooncake_one_sentence_names_the_extra():
    script = (
        "import sys; sys.modules['mooncake'] = None\n"
        "from triptych.transport.mooncake_engine import MooncakeEngine\n"
        "MooncakeEngine('127.0.0.1')"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=60)
    assert run.stderr.splitlines()[-1].endswith("pip install 'triptych[serve]'")


def flip(owner, position: int) -> None:
    with owner.arena.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 0x40]))


@pytest.mark.parametrize(("rate", "expected_s"), [(2e6, 10 + 100), (1e9, 10.2)])
def test_a_read_has_the_longer_the_larger_the_room_is(reader_arena: Arena, rate: float, expected_s: float) -> None:
    """200 MB between hosts on 100 Mbit/s take 17 s, and were given up after that with every mover in turn."""
    fetcher = open_fetcher(reader_arena, None, bytes_per_s_min=rate)
    assert fetcher.timeout_s(200_000_000) == expected_s
    fetcher.close()
