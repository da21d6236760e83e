"""Virtual time, and a network between real clients and real servicers that loses, delays and repeats.

`SimLoop` is asyncio with a clock that jumps to whatever happens next, so a schedule of a minute takes milliseconds.
`Wire` stands for gRPC: what a stub is made from. A call's request, its answer, or both may come late or never; a client
that gives up leaves its request under way. A stream breaks for its client first and for its server later.
"""

from __future__ import annotations

import asyncio
import random
import selectors
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message

from services.worker.link import CALL_TIMEOUT_S
from triptych.errors import DeadlinePassed, TriptychError, Unavailable
from triptych.security.identity import ANYONE, set_caller

FAULTS = ("request lost", "answer lost", "request late", "given up", "answer late")
STREAM_S_MAX = 6.0
"""A stream that breaks does so within this time."""


@dataclass(frozen=True)
class FaultMix:
    """Which share of calls, registrations and heartbeat streams is struck, and by what."""

    calls: float
    registrations: float
    streams: float
    call_faults: Sequence[str] = FAULTS
    registration_faults: Sequence[str] = FAULTS[-2:]
    late_s_max: float = 12.0

    @classmethod
    def even(cls, share: float) -> FaultMix:
        """Registrations, the rarest, are struck most often."""
        return cls(share, 2 * share, share)


class _Selector(selectors.DefaultSelector):
    """Waits for nothing: time passes instead."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("nothing will ever happen again")
        self.now_s += max(timeout, 0.0)
        return []


class SimLoop(asyncio.SelectorEventLoop):
    """An event loop in virtual time, and without threads."""

    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.now_s

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001  (delivered to the caller)
            future.set_exception(error)
        return future


class SimContext:
    """What a servicer may ask of its call."""

    def __init__(self) -> None:
        self._callbacks: list[Callable[[Any], None]] = []
        self._is_sent = False

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self._callbacks.append(callback)

    def done(self) -> bool:
        return self._is_sent

    def time_remaining(self) -> float:
        """Callers wait as long as workers do: `END_S` counts on it."""
        return CALL_TIMEOUT_S

    def cancelled(self) -> bool:
        return False

    def over(self, *, is_sent: bool) -> None:
        self._is_sent = is_sent
        for callback in self._callbacks:
            callback(self)


class Server:
    """One incarnation of the controller's process: once dead it stays dead."""

    def __init__(self, servicers: list[object]) -> None:
        self.servicers = servicers
        self.tasks: set[asyncio.Task[Any]] = set()
        self.dead = asyncio.get_running_loop().create_future()

    def spawn(self, work: Any) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self.tasks.discard(task)
        if not task.cancelled():
            task.exception()

    def kill(self) -> None:
        if not self.dead.done():
            self.dead.set_result(None)
        for task in list(self.tasks):
            task.cancel()

    def method(self, path: str) -> Callable[..., Any]:
        name = path.rpartition("/")[2]
        return next(getattr(one, name) for one in self.servicers if hasattr(type(one), name))


class Network:
    """Decides what becomes of each message. Calls and streams are struck until `until_s`."""

    def __init__(self, seed: int, mix: FaultMix, until_s: float) -> None:
        self.random = random.Random(seed)
        self.mix = mix
        self.until_s = until_s
        self.server: Server | None = None
        self.struck = 0

    def fault(self, path: str) -> str:
        """What strikes a call or a stream; empty for nothing."""
        share = self.mix.calls
        faults = self.mix.call_faults
        if path.endswith("/RegisterWorker"):
            share = self.mix.registrations
            faults = self.mix.registration_faults
        elif path.endswith("/Heartbeat"):
            share = self.mix.streams
        if asyncio.get_running_loop().time() > self.until_s or self.random.random() >= share:
            return ""
        self.struck += 1
        return self.random.choice(faults)

    def hop_s(self) -> float:
        return self.random.uniform(0.001, 0.03)


class Wire:
    """A worker's channel."""

    def __init__(self, network: Network) -> None:
        self._network = network

    def unary_unary(self, path: str, *_: Any, **__: Any) -> Callable[..., Any]:
        return lambda request, timeout=60.0: self._call(path, request, timeout)

    def unary_stream(self, path: str, *_: Any, **__: Any) -> None:
        return None

    def stream_stream(self, path: str, *_: Any, **__: Any) -> Callable[..., Any]:
        return lambda reports: _Stream(self._network, path, reports)

    async def _call(self, path: str, request: Message, timeout_s: float) -> Any:
        network, fault = self._network, self._network.fault(path)
        server, loop = network.server, asyncio.get_running_loop()
        late_s = network.random.uniform(0.1, network.mix.late_s_max)
        if server is None or fault == "request lost":
            await asyncio.sleep(min(timeout_s, network.random.uniform(0.0, 2.0)))
            raise Unavailable("the network lost it")
        answer: asyncio.Future[Any] = loop.create_future()
        there_s = late_s if fault in ("request late", "given up") else network.hop_s()
        back_s = late_s if fault == "answer late" else network.hop_s()
        is_lost = fault == "answer lost"
        copy = type(request).FromString(request.SerializeToString())
        serving = server.spawn(_serve(server, path, copy, there_s, back_s, is_lost, answer))
        if fault == "given up":  # the connection broke when the request was with the server, which is slow
            await asyncio.sleep(network.hop_s())
            raise Unavailable("the connection broke")
        try:
            await asyncio.wait([answer, server.dead], timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            if path.endswith("/Claim"):  # gRPC tells the server, which ends the call; others go on to their end
                loop.call_later(network.hop_s(), serving.cancel)
            raise
        if answer.done():
            return answer.result()
        if server.dead.done():
            raise Unavailable("the controller went away")
        raise DeadlinePassed("no answer in time")


async def _serve(
    server: Server, path: str, request: Message, there_s: float, back_s: float, is_lost: bool, answer: Any
) -> None:
    set_caller(ANYONE)
    await asyncio.sleep(there_s)
    context = SimContext()
    is_sent = False
    try:
        response: Any = await server.method(path)(request, context)
        error = None
        is_sent = True
    except TriptychError as refused:
        response, error = None, refused
    finally:
        context.over(is_sent=is_sent)
    if is_lost:
        await asyncio.sleep(back_s)
        response, error = None, Unavailable("the answer was lost")
    await asyncio.sleep(back_s)
    if answer.done():
        return
    if error is not None:
        answer.set_exception(error)
        answer.exception()  # the client may have gone
    else:
        answer.set_result(type(response).FromString(response.SerializeToString()))


class _Stream:
    """A heartbeat stream: reports go up in a task, orders come down through a queue."""

    def __init__(self, network: Network, path: str, reports: AsyncIterator[Message]) -> None:
        self._network, self._path, self._reports = network, path, reports
        self._up: asyncio.Queue[Message] = asyncio.Queue()
        self._down: asyncio.Queue[Any] = asyncio.Queue()
        self._server = network.server
        self._tasks: list[asyncio.Task[Any]] = []
        self._is_cut = False

    def __aiter__(self) -> _Stream:
        if not self._tasks and self._server is not None:
            self._tasks = [asyncio.create_task(self._send()), self._server.spawn(self._serve(self._server))]
            if self._network.fault(self._path):
                self._tasks.append(asyncio.create_task(self._break()))
            self._server.dead.add_done_callback(self._gone)
        return self

    async def __anext__(self) -> Any:
        if self._server is None:
            await asyncio.sleep(self._network.hop_s())
            raise Unavailable("nobody there")
        item = await self._down.get()
        if item is None:
            raise StopAsyncIteration
        if isinstance(item, Exception):
            raise item
        return item

    def _gone(self, _: Any) -> None:
        """The controller died; its worker hears of it when it does."""
        gone_s = self._network.random.choice((0.0, 0.1, 3.0))
        asyncio.get_running_loop().call_later(gone_s, self._down.put_nowait, Unavailable("it went away"))

    def cancel(self) -> None:
        self._is_cut = True
        loop = asyncio.get_running_loop()
        for number, task in enumerate(self._tasks):
            if number == 1:  # the server hears of it later, or only when the next stream comes
                loop.call_later(self._network.random.choice((0.01, 8.0)), task.cancel)
            else:
                task.cancel()

    async def _send(self) -> None:
        async for report in self._reports:
            self._up.put_nowait(type(report).FromString(report.SerializeToString()))

    async def _break(self) -> None:
        await asyncio.sleep(self._network.random.uniform(0.0, STREAM_S_MAX))
        self._is_cut = True  # what goes down from now on is lost
        await asyncio.sleep(self._network.random.uniform(0.0, 2.0))
        self._down.put_nowait(Unavailable("the stream broke"))

    async def _arriving(self) -> AsyncIterator[Message]:
        while True:
            report = await self._up.get()
            await asyncio.sleep(self._network.hop_s())
            yield report

    async def _serve(self, server: Server) -> None:
        set_caller(ANYONE)
        try:
            async for orders in server.method(self._path)(self._arriving(), SimContext()):
                if not self._is_cut:
                    self._down.put_nowait(orders)
        except TriptychError as error:
            self._down.put_nowait(error)
            return
        self._down.put_nowait(None)
