"""Large files of a request go ahead of it, as uploads.

An upload's id follows from the file's content. So a file that is there isn't sent again, one that broke goes on, and
the same request is the same message whichever process sends it, as its `request_id` asks for.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import grpc
from google.api.httpbody_pb2 import HttpBody

from triptych.errors import NoSuchMethod
from triptych.v1.file_service_pb2 import GetUploadRequest, Upload, UploadFileRequest
from triptych.v1.job_pb2 import GenerationRequest
from triptych_client.retry import RetryPolicy, call

if TYPE_CHECKING:
    from triptych.v1.file_service_pb2_grpc import FileServiceAsyncStub

UPLOADED_FROM_BYTES = 4 * 2**20
"""Files that are larger are uploaded: above this size a call that breaks costs seconds on a usual line, and proxies
and other servers of gRPC take no larger message without being told."""
SENT_BYTES = 2**20
"""In one message."""


async def upload_files(
    files: FileServiceAsyncStub, request: GenerationRequest, policy: RetryPolicy, peer: str
) -> GenerationRequest:
    """The request with its large files uploaded; itself, where it has none or the controller takes no uploads."""
    large = [index for index, media in enumerate(request.media) if len(media.data) > UPLOADED_FROM_BYTES]
    if not large:
        return request
    lean = GenerationRequest()
    lean.CopyFrom(request)
    for index in large:
        media = lean.media[index]
        data = media.data
        media.upload_id = (await asyncio.to_thread(hashlib.sha256, data)).hexdigest()[:32]
        try:
            await call(functools.partial(_upload, files, media.upload_id, data), policy, peer, len(data))
        except NoSuchMethod:
            return request
        media.ClearField("data")
    return lean


async def _upload(files: FileServiceAsyncStub, upload_id: str, data: bytes, timeout_s: float) -> None:
    """Send what isn't there."""
    upload = await _present(files, upload_id, timeout_s)
    if not upload.complete:
        await files.UploadFile(_messages(upload_id, data, upload.size_bytes), timeout=timeout_s)


async def _present(files: FileServiceAsyncStub, upload_id: str, timeout_s: float) -> Upload:
    try:
        return (await files.GetUpload(GetUploadRequest(upload_id=upload_id), timeout=timeout_s)).upload
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.NOT_FOUND:
            raise
        return Upload()


async def _messages(upload_id: str, data: bytes, offset_bytes: int) -> AsyncIterator[UploadFileRequest]:
    yield UploadFileRequest(upload_id=upload_id, offset_bytes=offset_bytes, size_bytes=len(data))
    for at in range(offset_bytes, len(data), SENT_BYTES):
        yield UploadFileRequest(body=HttpBody(data=data[at : at + SENT_BYTES]))
