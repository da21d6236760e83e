"""A real owner in another process, and this process as the reader."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import needs
from triptych.transport.arena import Arena
from triptych.transport.fetcher import Fetcher, open_fetcher
from triptych.transport.mooncake_engine import MooncakeEngine
from triptych.v1 import room_pb2

ANSWER_TIMEOUT_S = 60
"""An owner imports gRPC and Mooncake first, on a busy machine."""


class Owner:
    """Speaks to `owner.py`."""

    def __init__(self, *mooncake: str) -> None:
        command = [sys.executable, str(Path(__file__).with_name("owner.py")), *mooncake]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        hello = self._answer()
        self.arena, self.protocol = Path(hello["arena"]), hello["protocol"]

    def put(self, size_bytes: int, seed: int) -> room_pb2.RoomRef:
        return room_pb2.RoomRef.FromString(bytes.fromhex(self._ask(f"put {size_bytes} {seed}")["ref"]))

    def release(self, room_id: int) -> bool:
        return self._ask(f"release {room_id}")["released"]

    def quit(self) -> None:
        self.process.communicate("quit\n", timeout=ANSWER_TIMEOUT_S)

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=ANSWER_TIMEOUT_S)

    def _ask(self, line: str) -> dict:
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict:
        ready, _, _ = select.select([self.process.stdout], [], [], ANSWER_TIMEOUT_S)
        assert ready, "the owner doesn't answer"
        return json.loads(self.process.stdout.readline())


@pytest.fixture(scope="session")
def owner() -> Iterator[Owner]:
    owner = Owner()
    yield owner
    owner.kill()
    owner.arena.unlink(missing_ok=True)


@pytest.fixture
def mortal() -> Iterator[Owner]:
    """An owner that the test may kill."""
    owner = Owner()
    yield owner
    owner.kill()
    owner.arena.unlink(missing_ok=True)


@pytest.fixture(scope="session")
def reader_arena() -> Iterator[Arena]:
    with Arena(64 * 2**20) as arena:
        yield arena


@pytest.fixture(scope="session")
def engine(reader_arena: Arena) -> Iterator[MooncakeEngine | None]:
    """None where Mooncake can't be loaded: tests that use it are marked `needs_mooncake`."""
    if needs.without_mooncake():
        yield None
        return
    engine = MooncakeEngine("127.0.0.1")
    engine.register(reader_arena.base_address, reader_arena.size_bytes)
    yield engine
    engine.close()


@pytest.fixture
def open_forced(reader_arena: Arena, engine: MooncakeEngine | None) -> Iterator[Callable[..., Fetcher]]:
    """Opens fetchers that are closed after the test."""
    opened = []

    def open_one(forced: str = "") -> Fetcher:
        opened.append(open_fetcher(reader_arena, engine, forced=forced))
        return opened[-1]

    yield open_one
    for fetcher in opened:
        fetcher.close()
