"""An encoder's text encoders in a process of their own: the engine that a stage is given, over gRPC and rooms.

The stage's thread calls and waits; everything else runs on the event loop that `open_text_encoder` was called in.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, Generic, TypeVar

from triptych import rpc
from triptych.config import WorkerConfig
from triptych.errors import (
    DeadlinePassed,
    EngineAbsent,
    Full,
    InvalidRequest,
    JobCancelled,
    RoomGone,
    SourceCorrupt,
    Unavailable,
    WrongState,
)
from triptych.rpc.backoff import Backoff
from triptych.stages.engines import RUN_LOCALLY, Answer, Call
from triptych.transport import calls, codec
from triptych.transport import room as layout
from triptych.transport.fetcher import Fetcher
from triptych.v1 import text_encoder_service_pb2 as pb

from .link import any_set

log = logging.getLogger(__name__)

Result = TypeVar("Result")
Description = TypeVar("Description")

DESCRIBE_TIMEOUT_S = 5.0
"""It only tells what it holds."""
ENCODE_TIMEOUT_S = 600.0
"""Longest call with its wait for others: the largest text encoders take a minute on a CPU."""
START_WAIT_S = 5.0
"""How long an encoder that can run its text encoders itself waits for their process at its start."""
AGAIN = (Unavailable, DeadlinePassed, Full, RoomGone, SourceCorrupt)
"""Errors after which the same call may succeed: the process starts, is gone, has no space, or its room is gone."""


class RemoteEngine(Generic[Description]):
    """What engines have in common: they may be absent. See `engines.Engine`."""

    def __init__(self, config: WorkerConfig) -> None:
        self.name = config.text_encoder_engine
        self.absent = config.text_encoder_absent
        self.absent_for = ""
        """Why calls wait, in a sentence; empty where the engine answers."""
        self._config = config
        self._loop = asyncio.get_running_loop()
        self._cancelled: Callable[[], bool] = lambda: False
        self._expected: tuple[str, dict[str, str]] = "", {}
        self._description: Description | None = None

    async def _described(self) -> Description:
        """What the engine is, compared with what this encoder expects. Raises WrongState and InvalidRequest."""
        raise NotImplementedError

    def begin(self, cancelled: Callable[[], bool]) -> None:
        """See `Engine`."""
        self._cancelled = cancelled

    def _open(self, config_digest: str, settings: Mapping[str, str]) -> Description | None:
        """The engine's description; None where it is absent and the encoder can do without."""
        self._expected = config_digest, dict(settings)
        wait_s = START_WAIT_S if self.absent == RUN_LOCALLY else self._config.text_encoder_wait_s
        try:
            return self._await(self._until_answered(self._described, wait_s))
        except EngineAbsent as error:
            if self.absent != RUN_LOCALLY:
                raise
            log.warning("%s; what it would run is loaded in this process when a job needs it", error)
            return None

    def _asked(self, ask: Callable[[], Awaitable[Result]]) -> Result:
        """What a call returns, waited for as the settings say."""
        wait_s = 0.0 if self.absent == RUN_LOCALLY else self._config.text_encoder_wait_s
        return self._await(self._until_answered(ask, wait_s))

    async def wait_for_it(self, draining: asyncio.Event, changed: Callable[[], None]) -> None:
        """Where calls wait for the process, wait until it is back or `draining` is set; `changed` is told of both ends.

        So a worker claims nothing meanwhile that another could do. Without a bound: `waiting_for` says it.
        """
        if not self.absent_for or self.absent == RUN_LOCALLY:
            return
        changed()
        backoff = Backoff()
        while self.absent_for and not draining.is_set():
            try:
                await self._described()
            except AGAIN:
                await any_set(draining, timeout_s=backoff.next_s())
            else:
                self._found()
        changed()

    def _found(self) -> None:
        if self.absent_for:
            log.warning("the text encoder at %s is back", self.name)
        self.absent_for = ""

    def _await(self, work: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _until_answered(self, ask: Callable[[], Awaitable[Result]], wait_s: float) -> Result:
        """What `ask` returns, tried again for `wait_s` and at least twice. Raises EngineAbsent and JobCancelled."""
        backoff = Backoff()
        since_s, tries = time.monotonic(), 0
        while True:
            try:
                result = await ask()
            except AGAIN as error:
                tries += 1
                waited_s = time.monotonic() - since_s
                sentence = f"the text encoder at {self.name} is absent: {error}"
                if not self.absent_for:
                    log.warning("%s", sentence)
                self.absent_for = sentence
                if self._cancelled():
                    raise JobCancelled("the job was cancelled while its text encoder was absent") from error
                if waited_s >= wait_s and tries >= 2:
                    raise EngineAbsent(f"{sentence} (for {waited_s:.0f} s)") from error
                await asyncio.sleep(backoff.next_s())
            else:
                self._found()
                return result


class ProcessEngine(RemoteEngine[pb.DescribeTextEncoderResponse]):
    """A text-encoder process of ours. See `engines.Engine`."""

    def __init__(self, config: WorkerConfig, stub: Any, fetcher: Fetcher) -> None:
        super().__init__(config)
        self._stub = stub
        self._fetcher = fetcher

    def open(self, config_digest: str, settings: Mapping[str, str]) -> dict[str, str]:
        """See `Engine`. A process that is absent is waited for; not for long where the encoder can do without."""
        description = self._open(config_digest, settings)
        return _differences(description.settings, settings) if description is not None else {}

    def serves(self, names: Sequence[str]) -> list[str]:
        """See `Engine`. One that is absent is taken to run them all."""
        held = self._description.components if self._description is not None else names
        return [name for name in names if name in held]

    def call(self, call: Call) -> Answer:
        """See `Engine`."""
        inputs = calls.pack(call.args, call.kwargs)
        request = pb.EncodeRequest(component=call.component, module=call.module, inputs=inputs, wanted=call.wanted)
        ref, buffer = self._asked(lambda: self._encoded(request))
        values = codec.decode(layout.parse(buffer, ref.room_id), buffer, self._config.device)
        return Answer(values["output"], call.wanted or None)

    async def _described(self) -> pb.DescribeTextEncoderResponse:
        """What the process is, compared with what this encoder expects. Raises WrongState and InvalidRequest."""
        request = pb.DescribeTextEncoderRequest()
        description: pb.DescribeTextEncoderResponse = await rpc.translate(
            self._stub.DescribeTextEncoder(request, timeout=DESCRIBE_TIMEOUT_S)
        )
        digest, settings = self._expected
        if description.config_digest != digest:
            raise WrongState(f"{self.name} runs other files or software than this encoder's model")
        if self.absent == RUN_LOCALLY and (differences := _differences(description.settings, settings)):
            accepted = f"wait, because {self.name} gives other bits than this process would: {differences}"
            raise InvalidRequest("text_encoder_absent", RUN_LOCALLY, accepted)
        self._description = description
        return description

    async def _encoded(self, request: pb.EncodeRequest) -> tuple[Any, memoryview]:
        """One call's room and its bytes."""
        description = self._description or await self._described()
        request.identity = description.identity
        response = await rpc.translate(self._stub.Encode(request, timeout=ENCODE_TIMEOUT_S))
        fetched = await self._fetcher.fetch(response.room)
        return response.room, fetched.buffer


def _differences(theirs: Mapping[str, str], own: Mapping[str, str]) -> dict[str, str]:
    """What a stage declares whose text encoders run under other settings than its own."""
    other = {key: theirs.get(key, "") for key in sorted({*theirs, *own}) if theirs.get(key) != own.get(key)}
    return {"text_encoder": json.dumps(other)} if other else {}
