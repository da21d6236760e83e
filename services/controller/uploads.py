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
from triptych.errors import AlreadyExists, DeadlinePassed, InvalidRequest, NotFound, UploadsFull, WrongState
from triptych.media import results, uploads
from triptych.media.uploads import Stored
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
"""Calls that write at a time; each holds a piece and a message. One client has half."""
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
        """Remove an upload of a client. Raises as `get`, and UploadsFull while a call writes it."""
        stored = await self.get(client, upload_id)
        with self._writes(client, stored.owner, upload_id):
            await self._run(client, uploads.remove, self._url, stored.owner, upload_id)

    async def receive(self, client: str, messages: AsyncIterator[UploadFileRequest]) -> Stored:
        """Write what comes. Raises InvalidRequest, AlreadyExists, UploadsFull, DeadlinePassed."""
        message = await _next(messages)
        if message is None:
            raise InvalidRequest("body", "", "at least one message")
        first, owner = message, uploads.owner_of(client)
        upload_id = first.upload_id or results.new_token()
        uploads.check_id(upload_id)
        size_max = first.size_bytes or UPLOAD_BYTES_MAX
        if size_max > UPLOAD_BYTES_MAX:
            raise InvalidRequest("size_bytes", size_max, f"at most {UPLOAD_BYTES_MAX}")
        with self._writes(client, owner, upload_id):
            stored = await self._opened(client, owner, upload_id, first.offset_bytes)
            pending = bytearray()
            while message is not None:
                pending += message.body.data
                if stored.size_bytes + len(pending) > size_max:
                    raise InvalidRequest("body", stored.size_bytes + len(pending), f"at most {size_max} bytes in all")
                if len(pending) >= PIECE_BYTES:
                    stored = await self._run(client, uploads.append, self._url, stored, bytes(pending))
                    pending.clear()
                message = await _next(messages)
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
    def _writes(self, client: str, owner: str, upload_id: str) -> Iterator[None]:
        share = STREAMS_MAX // 2 if client else STREAMS_MAX
        if self._writing.total() >= STREAMS_MAX or self._writing[client] >= share:
            raise UploadsFull(f"{self._writing[client]} uploads are being written; try again later")
        if (owner, upload_id) in self._written:
            raise UploadsFull(f"another call writes the upload {upload_id!r}; try again later")
        self._written.add((owner, upload_id))
        try:
            with counted(self._writing, client):
                yield
        finally:
            self._written.discard((owner, upload_id))

    async def find_media(self, client: str, request: GenerationRequest) -> dict[str, Stored]:
        """The uploads that a request's media name. Raises NotFound, WrongState, InvalidRequest."""
        found: dict[str, Stored] = {}
        for media in request.media:
            if not media.upload_id:
                continue
            if media.data:
                raise InvalidRequest(f"media.{media.name}", media.upload_id, "either data or upload_id")
            stored = await self.get(client, media.upload_id)
            if not stored.is_complete:
                raise WrongState(f"the upload {media.upload_id!r} isn't complete: {stored.size_bytes} bytes are there")
            found[media.upload_id] = stored
        return found

    async def fill(self, client: str, request: GenerationRequest, found: dict[str, Stored]) -> None:
        """Put the bytes of the uploads that were found into a request. Raises SourceCorrupt."""
        for media in request.media:
            if media.upload_id:
                media.data = await self._run(client, uploads.read, self._url, found[media.upload_id])

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


def whole_bytes(request: GenerationRequest, message_bytes: int, found: dict[str, Stored]) -> int:
    """A request's size with its uploads. Raises InvalidRequest where that is more than a request may have."""
    added = sum(found[media.upload_id].size_bytes for media in request.media if media.upload_id)
    if added and added + message_bytes > limits.REQUEST_BYTES_MAX + limits.LARGE_BYTES:
        shown = f"{added} bytes by uploads in a request of {message_bytes} bytes"
        raise InvalidRequest("media", shown, f"at most {limits.REQUEST_BYTES_MAX} bytes in all")
    return added + message_bytes


async def _next(messages: AsyncIterator[UploadFileRequest]) -> UploadFileRequest | None:
    try:
        async with asyncio.timeout(SILENCE_S_MAX):
            return await anext(messages, None)
    except TimeoutError as error:
        raise DeadlinePassed(f"nothing came for {SILENCE_S_MAX:g} s; go on where GetUpload says") from error
