"""Uploads: how clients' streams become files, how many there may be, and how jobs take their bytes."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TypeVar

from triptych import limits
from triptych.errors import (
    AlreadyExists,
    DeadlinePassed,
    InvalidRequest,
    NotFound,
    SourceCorrupt,
    UploadBusy,
    UploadsFull,
    WrongState,
)
from triptych.media import results, uploads
from triptych.media.uploads import Stored
from triptych.model import trees
from triptych.v1.file_service_pb2 import UploadFileRequest
from triptych.v1.job_pb2 import GenerationRequest

from .shares import FairThreads, counted

Result = TypeVar("Result")

UPLOAD_BYTES_MAX = limits.REQUEST_BYTES_MAX
"""A job's request holds the bytes of its uploads, so that it needs them no more, and a request may be so large."""
PIECE_BYTES = 2**20
"""What a broken call loses at most; each piece is a file that is synced."""
AGE_S = 3600
"""How long an upload is kept: until its job is accepted, and a client that waits for a place has some time."""
UPLOADS_MAX = 4096
"""In all: a listing of so many files takes a fraction of a second."""
UPLOADS_BYTES_MAX = 8 * 2**30
"""In all, where one that isn't complete counts as the largest."""
UPLOAD_SHARES = 4
"""One client may have this part of both."""
STREAMS_MAX = 32
"""Calls that write at a time; each holds a piece and a message."""
STREAM_SHARES = 2
"""One client may have this part of them: half."""
SILENCE_S_MAX = 60.0
"""Longest wait for the next message: at the slowest line, a piece takes 8 s."""
THREADS = 8
"""Files written and read at a time."""


class Uploads:
    """Used on the event loop. A client's name is all that says whose an upload is."""

    def __init__(self, result_url: str) -> None:
        self._url = result_url
        self._threads = FairThreads("uploads", THREADS, THREADS // 2)
        self._writing: Counter[str] = Counter()
        self._written: set[tuple[str, str]] = set()
        """Owner and id of what calls write now."""
        self._counting = asyncio.Lock()
        """Held from counting to the beginning of the next, so that calls at the same time don't share a place."""

    async def get(self, client: str, upload_id: str) -> Stored:
        """An upload of a client. Raises InvalidRequest, NotFound."""
        return await self._run(client, uploads.find, self._url, uploads.owner_of(client), upload_id, time.time())

    async def delete(self, client: str, upload_id: str) -> None:
        """Remove an upload of a client. Raises as `get`, and UploadBusy while a call writes it."""
        stored = await self.get(client, upload_id)
        with self._alone(stored.owner, upload_id):
            await self._run(client, uploads.remove, self._url, stored.owner, upload_id)

    async def receive(self, client: str, messages: AsyncIterator[UploadFileRequest]) -> Stored:
        """Write what comes. Raises InvalidRequest, AlreadyExists, UploadsFull, UploadBusy, DeadlinePassed.

        A place is kept as long as the missing bytes take on the slowest line, and no longer than the upload itself.
        """
        message = await _next(messages, SILENCE_S_MAX)
        if message is None:
            raise InvalidRequest("body", "", "at least one message")
        first, owner = message, uploads.owner_of(client)
        upload_id = first.upload_id or results.new_token()
        uploads.check_id(upload_id)
        size_max = first.size_bytes or UPLOAD_BYTES_MAX
        if size_max > UPLOAD_BYTES_MAX:
            raise InvalidRequest("size_bytes", size_max, f"at most {UPLOAD_BYTES_MAX}")
        with self._alone(owner, upload_id), self._stream(client):
            stored = await self._opened(client, owner, upload_id, first.offset_bytes)
            end_s = time.monotonic() + call_s_max(stored, size_max, time.time())
            pending = bytearray()
            while message is not None:
                pending += message.body.data
                if stored.size_bytes + len(pending) > size_max:
                    raise InvalidRequest("body", stored.size_bytes + len(pending), f"at most {size_max} bytes in all")
                if len(pending) >= PIECE_BYTES:
                    stored = await self._run(client, uploads.append, self._url, stored, bytes(pending))
                    pending.clear()
                message = await _next(messages, end_s - time.monotonic())
            if pending:
                stored = await self._run(client, uploads.append, self._url, stored, bytes(pending))
            if stored.size_bytes < first.size_bytes:
                return stored
            return await self._run(client, uploads.finish, self._url, stored)

    async def _opened(self, client: str, owner: str, upload_id: str, offset_bytes: int) -> Stored:
        """The upload to write, begun where there is none."""
        try:
            stored = await self.get(client, upload_id)
        except NotFound:
            async with self._counting:
                await self._check_place(client, owner)
                until_s = int(time.time()) + AGE_S
                stored = await self._run(client, uploads.begin, self._url, owner, upload_id, until_s)
        if stored.is_complete:
            raise AlreadyExists(f"the upload {upload_id!r} is complete, with {stored.size_bytes} bytes")
        if offset_bytes != stored.size_bytes:
            raise InvalidRequest("offset_bytes", offset_bytes, f"{stored.size_bytes}: the bytes that are there")
        return stored

    async def _check_place(self, client: str, owner: str) -> None:
        found = await self._run(client, uploads.find_all, self._url)
        now_s = time.time()
        sizes = [
            (one.owner, one.size_bytes if one.is_complete else UPLOAD_BYTES_MAX) for one in found if one.until_s > now_s
        ]
        own = [size for whose, size in sizes if whose == owner]
        shares = UPLOAD_SHARES if client else 1
        for who, taken, share in (("all clients", [size for _, size in sizes], 1), (f"client {client!r}", own, shares)):
            if len(taken) >= UPLOADS_MAX // share or sum(taken) + UPLOAD_BYTES_MAX > UPLOADS_BYTES_MAX // share:
                raise UploadsFull(
                    f"the {len(taken)} uploads of {who} take their share of the store; delete some, or try again later"
                )

    @contextlib.contextmanager
    def _stream(self, client: str) -> Iterator[None]:
        """Keep a place for a call that writes."""
        shares = STREAM_SHARES if client else 1
        for who, count, share in (
            ("all clients", self._writing.total(), 1),
            (f"client {client!r}", self._writing[client], shares),
        ):
            if count >= STREAMS_MAX // share:
                raise UploadsFull(f"{count} uploads of {who} are being written, the most at a time; try again later")
        with counted(self._writing, client):
            yield

    @contextlib.contextmanager
    def _alone(self, owner: str, upload_id: str) -> Iterator[None]:
        """Keep other calls from changing an upload."""
        if (owner, upload_id) in self._written:
            raise UploadBusy(f"another call writes the upload {upload_id!r}; ask GetUpload, or try again later")
        self._written.add((owner, upload_id))
        try:
            yield
        finally:
            self._written.discard((owner, upload_id))

    async def find_media(self, client: str, request: GenerationRequest) -> dict[str, Stored]:
        """The uploads that a request's files name. Raises NotFound, WrongState, InvalidRequest."""
        trees.check_size(request)  # each file costs a listing of the store
        found: dict[str, Stored] = {}
        for place, leaf in trees.file_leaves(request):
            if not leaf.upload_id:
                continue
            if leaf.data:
                raise InvalidRequest(place, leaf.upload_id, "either data or upload_id")
            if leaf.upload_id in found:
                continue
            stored = await self.get(client, leaf.upload_id)
            if not stored.is_complete:
                raise WrongState(f"the upload {leaf.upload_id!r} isn't complete: {stored.size_bytes} bytes are there")
            found[leaf.upload_id] = stored
        return found

    async def fill(self, client: str, request: GenerationRequest, found: dict[str, Stored]) -> None:
        """Put the bytes of the uploads that were found into a request. Raises SourceCorrupt, NotFound."""
        for _place, leaf in trees.file_leaves(request):
            if not leaf.upload_id:
                continue
            try:
                leaf.data = await self._run(client, uploads.read, self._url, found[leaf.upload_id])
            except SourceCorrupt:
                await self.get(client, leaf.upload_id)  # NotFound, where it has been deleted since
                raise

    async def prune(self) -> None:
        """Remove what is too old. Raises the store's own errors."""
        now_s = time.time()
        for stored in await self._run("", uploads.find_all, self._url):
            if stored.until_s <= now_s and (stored.owner, stored.upload_id) not in self._written:
                await self._run("", uploads.remove, self._url, stored.owner, stored.upload_id)

    async def _run(self, client: str, work: Callable[..., Result], *arguments: object) -> Result:
        try:
            return await self._threads.run(client, functools.partial(work, *arguments))
        except OSError as error:
            if results.is_full(error):
                raise UploadsFull("the disk for results is full; try again later") from error
            raise


def call_s_max(stored: Stored, size_max: int, now_s: float) -> float:
    """How long a call may write an upload of up to `size_max` bytes, in seconds; `now_s` in Unix seconds.

    What is missing may come over the slowest line, and nothing is written to an upload that is too old.
    """
    missing_s = SILENCE_S_MAX + limits.allowance_s(size_max - stored.size_bytes)
    return min(missing_s, stored.until_s - now_s)


def whole_bytes(request: GenerationRequest, message_bytes: int, found: dict[str, Stored]) -> int:
    """A request's size with its uploads. Raises InvalidRequest where that is more than a request may have."""
    added = sum(found[leaf.upload_id].size_bytes for _place, leaf in trees.file_leaves(request) if leaf.upload_id)
    if added and added + message_bytes > limits.REQUEST_BYTES_MAX + limits.LARGE_BYTES:
        shown = f"{added} bytes by uploads in a request of {message_bytes} bytes"
        raise InvalidRequest("media", shown, f"at most {limits.REQUEST_BYTES_MAX} bytes in all")
    return added + message_bytes


async def _next(messages: AsyncIterator[UploadFileRequest], left_s: float) -> UploadFileRequest | None:
    """The next message, or None at the end. Raises DeadlinePassed where the call's time or the client's is over."""
    if left_s <= 0:
        raise DeadlinePassed("the upload came too slowly for its size; go on where GetUpload says")
    wait_s = min(left_s, SILENCE_S_MAX)
    try:
        async with asyncio.timeout(wait_s):
            return await anext(messages, None)
    except TimeoutError as error:
        raise DeadlinePassed(f"nothing came for {wait_s:.0f} s; go on where GetUpload says") from error
