"""Large files of a request go ahead of it, as uploads, and are deleted when no job of this client needs them any more.

An upload's id follows from the file's content. So a file that is there isn't sent again, one that broke goes on, and
the same request is the same message whichever process sends it, as its `request_id` asks for. Other processes may send
and delete the same upload at any moment; whoever misses it sends it anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import logging
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import grpc
from google.api.httpbody_pb2 import HttpBody

from triptych import rpc
from triptych.errors import (
    AlreadyExists,
    InvalidRequest,
    NoSuchMethod,
    NotFound,
    SourceCorrupt,
    TriptychError,
    UploadBusy,
    UploadsFull,
    WrongState,
)
from triptych.model import trees
from triptych.v1.file_service_pb2 import DeleteUploadRequest, GetUploadRequest, Upload, UploadFileRequest
from triptych.v1.generation_service_pb2 import CreateJobRequest
from triptych.v1.job_pb2 import GenerationRequest, Job
from triptych_client.retry import RetryPolicy, call, call_method

if TYPE_CHECKING:
    from triptych.v1.file_service_pb2_grpc import FileServiceAsyncStub
    from triptych.v1.generation_service_pb2_grpc import GenerationServiceAsyncStub

log = logging.getLogger(__name__)

UPLOADED_FROM_BYTES = 4 * 2**20
"""Files that are larger are uploaded: above this size a call that breaks costs seconds on a usual line, and proxies
and other servers of gRPC take no larger message without being told."""
SENT_BYTES = 2**20
"""In one message."""
UPLOAD_ATTEMPTS_MAX = 2
"""An upload that was found may be gone when the job comes: too old, or deleted by another process with the same file.
Then it is sent anew, and at last in the request."""

LOOKS_MAX = 3
"""So often another process may get ahead between the look at an upload and the call that goes on with it."""
DELETING = RetryPolicy(total_s_max=2.0, absent_s_max=2.0, attempt_s_max=2.0)
"""A deletion isn't waited for much: the job is accepted, and what stays goes by itself within the hour."""


class Uploads:
    """The uploads of one client's jobs. Belongs to one event loop."""

    def __init__(self, files: FileServiceAsyncStub, policy: RetryPolicy, peer: str) -> None:
        self._files = files
        self._policy = policy
        self._peer = peer
        self._users: Counter[str] = Counter()
        """Jobs that are being sent, by upload."""
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """By upload: one job sends or deletes it, and others with the same file wait and find it done."""

    async def submit(self, jobs: GenerationServiceAsyncStub, request: GenerationRequest, request_id: str) -> Job:
        """Have a job accepted, its large files ahead of it."""
        for attempts_left in reversed(range(UPLOAD_ATTEMPTS_MAX + 1)):
            forms = [request]
            try:
                async with self.forms(request, uploads=attempts_left > 0) as forms:
                    return await self._create(jobs, forms, request_id)
            except (NotFound, WrongState, SourceCorrupt):  # an upload is gone, or another process sends it again
                if not attempts_left or forms[0] is request:
                    raise
        raise AssertionError("the last attempt returns or raises")

    async def _create(
        self, jobs: GenerationServiceAsyncStub, forms: Sequence[GenerationRequest], request_id: str
    ) -> Job:
        """Send the first form of a request; the other where an earlier call with this id may have sent that one."""
        for form in forms:
            message = CreateJobRequest(request_id=request_id, request=form)
            try:
                return (await call_method(jobs.CreateJob, message, self._policy, self._peer)).job
            except AlreadyExists:
                if form is forms[-1]:
                    raise
        raise AssertionError("the last form's call returns or raises")

    @contextlib.asynccontextmanager
    async def forms(
        self, request: GenerationRequest, *, uploads: bool = True
    ) -> AsyncIterator[list[GenerationRequest]]:
        """The request as it is to be sent, and after it, where it has large files, its other form.

        First is the one that names uploads, which are there then; or the request itself, where it has no large files,
        the controller takes none now, or `uploads` is False. At a good end the uploads are deleted. After an error they
        stay, as the same may be sent again.
        """
        leaves = [leaf for _place, leaf in trees.file_leaves(request)]
        large = [index for index, leaf in enumerate(leaves) if len(leaf.data) > UPLOADED_FROM_BYTES]
        if not large:
            yield [request]
            return
        lean = GenerationRequest()
        lean.CopyFrom(request)
        lean_leaves = [leaf for _place, leaf in trees.file_leaves(lean)]
        for index in large:
            leaf = lean_leaves[index]
            leaf.upload_id = (await asyncio.to_thread(hashlib.sha256, leaf.data)).hexdigest()[:32]
            leaf.ClearField("data")
        files = {lean_leaves[index].upload_id: leaves[index].data for index in large}
        self._users.update(files.keys())
        try:
            yield [lean, request] if uploads and await self._send_all(files) else [request, lean]
        except BaseException:
            self._release(files)
            raise
        self._release(files)
        for upload_id in files:
            await self._delete(upload_id)

    def _release(self, files: Mapping[str, bytes]) -> None:
        self._users.subtract(files.keys())
        self._users += Counter()  # forgets those that nobody needs

    async def _send_all(self, files: Mapping[str, bytes]) -> bool:
        """Whether the controller has taken all."""
        try:
            for upload_id, data in files.items():
                async with self._lock(upload_id):
                    await call(functools.partial(self._send, upload_id, data), self._policy, self._peer, len(data))
        except (NoSuchMethod, UploadsFull) as error:
            log.debug("files go in the request: %s", error)
            return False
        return True

    def _lock(self, upload_id: str) -> asyncio.Lock:
        return self._locks.setdefault(upload_id, asyncio.Lock())

    async def _send(self, upload_id: str, data: bytes, timeout_s: float) -> None:
        """Send what isn't there. Raises UploadsFull where there is no place; UploadBusy as gRPC's, to be retried."""
        for _ in range(LOOKS_MAX):
            there = await self._look(upload_id, timeout_s)
            if there.complete:
                return
            try:
                await self._files.UploadFile(_messages(upload_id, data, there.size_bytes), timeout=timeout_s)
                return
            except grpc.aio.AioRpcError as error:
                found = rpc.error_from(error)
                if isinstance(found, AlreadyExists):
                    return
                if type(found) is UploadsFull and rpc.is_named(error):
                    raise found from error
                if not isinstance(found, InvalidRequest) or found.field != "offset_bytes":
                    raise
        raise UploadBusy(f"others write the upload {upload_id!r}")

    async def _look(self, upload_id: str, timeout_s: float) -> Upload:
        try:
            return (await self._files.GetUpload(GetUploadRequest(upload_id=upload_id), timeout=timeout_s)).upload
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise
            return Upload()

    async def _delete(self, upload_id: str) -> None:
        """Remove an upload, unless another job needs it."""
        async with self._lock(upload_id):
            if self._users[upload_id]:
                return
            message = DeleteUploadRequest(upload_id=upload_id)
            try:
                await call_method(self._files.DeleteUpload, message, DELETING, self._peer)
            except TriptychError as error:
                log.debug("the upload %s isn't deleted: %s", upload_id, error)


async def _messages(upload_id: str, data: bytes, offset_bytes: int) -> AsyncIterator[UploadFileRequest]:
    yield UploadFileRequest(upload_id=upload_id, offset_bytes=offset_bytes, size_bytes=len(data))
    for at in range(offset_bytes, len(data), SENT_BYTES):
        yield UploadFileRequest(body=HttpBody(data=data[at : at + SENT_BYTES]))
