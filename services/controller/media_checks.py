"""Whether the pictures and videos of a request can be decoded: found out in child processes, each client in turn.

A file costs seconds where a call costs microseconds. So checks are bounded in number and bytes, for one client and in
all, and each result is remembered for a while: a call that is repeated isn't checked again.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence

from triptych import rpc
from triptych.errors import ChecksFull, InvalidRequest
from triptych.media.decoding.headers import File
from triptych.media.decoding.pool import Decoders

from .shares import FairThreads, counted

CHILDREN = 2
"""Checks at a time, so that a slow one leaves a place to others; a client that has a name has one."""
CHECKS_MAX = 64
"""Most checks that wait or run; each is an open call."""
CHECK_BYTES_MAX = 256 * 2**20
"""Most bytes of their requests: four of the largest message."""
CLIENT_SHARES = 2
"""One client may have this part of both: half."""
TURN_WAIT_S_MAX = 20.0
"""Longest wait for a turn: as long as one check may take. Then the caller is told to come again."""
KNOWN_MAX = 1024
KNOWN_S = 600.0
"""So many results are remembered, for so long: callers repeat within seconds."""


class MediaChecks:
    """Used on the event loop."""

    def __init__(self) -> None:
        self._decoders = Decoders()
        self._threads = FairThreads("media", CHILDREN, CHILDREN // 2)
        self._checks: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._known: OrderedDict[bytes, tuple[float, str]] = OrderedDict()
        """By digest: until when it holds, and the refusal (empty for none)."""

    async def check(self, files: Sequence[File], client: str) -> None:
        """Raises InvalidRequest for files that can't be decoded within the bounds, ChecksFull, Unavailable."""
        if not files:
            return
        with self._place(client, max(rpc.message_bytes(), sum(len(file.data) for file in files))):
            try:
                refusal = await self._threads.run(client, lambda: self._look(files, client), wait_s=TURN_WAIT_S_MAX)
            except TimeoutError as error:
                raise ChecksFull(f"media wait to be checked for {TURN_WAIT_S_MAX:g} s; try again later") from error
        if refusal:
            raise InvalidRequest.from_message(refusal)

    def close(self) -> None:
        """End the children. Checks under way end with Unavailable."""
        self._threads.close()
        self._decoders.close()

    @contextlib.contextmanager
    def _place(self, client: str, size_bytes: int) -> Iterator[None]:
        shares = CLIENT_SHARES if client else 1
        for who, count, total, share in (
            ("all clients", self._checks.total(), self._bytes.total(), 1),
            (f"client {client!r}", self._checks[client], self._bytes[client], shares),
        ):
            if count >= CHECKS_MAX // share or total + size_bytes > CHECK_BYTES_MAX // share:
                raise ChecksFull(f"the media of {count} requests of {who} are being checked; try again later")
        with counted(self._checks, client), counted(self._bytes, client, size_bytes):
            yield

    def _look(self, files: Sequence[File], client: str) -> str:
        """In a thread: the refusal, or nothing."""
        digest = hashlib.sha256(client.encode())  # by client, or times would tell what others have sent
        for file in files:
            what = (file._replace(data=b""), len(file.data))
            digest.update(f"\n{what}\n".encode())
            digest.update(file.data)
        key = digest.digest()
        now_s = time.monotonic()
        with self._lock:
            until_s, refusal = self._known.get(key, (0.0, ""))
        if until_s > now_s:
            return refusal
        try:
            self._decoders.check(files)
            refusal = ""
        except InvalidRequest as error:
            refusal = str(error)
        with self._lock:
            self._known[key] = (now_s + KNOWN_S, refusal)
            while len(self._known) > KNOWN_MAX:
                self._known.popitem(last=False)
        return refusal
