"""FileService: decode, call the controller, encode."""

from __future__ import annotations

from collections.abc import AsyncIterator

from google.api.httpbody_pb2 import HttpBody
from google.protobuf.timestamp_pb2 import Timestamp

from triptych.media.uploads import Stored
from triptych.rpc import Context
from triptych.security.identity import caller
from triptych.v1 import file_service_pb2 as pb
from triptych.v1 import file_service_pb2_grpc as pb_grpc

from .stored_files import StoredFiles
from .uploads import Uploads


class FileServicer(pb_grpc.FileServiceServicer):
    """Files as bytes."""

    def __init__(self, stored: StoredFiles, uploads: Uploads) -> None:
        self._stored = stored
        self._uploads = uploads

    async def GetArtifact(self, request: pb.GetArtifactRequest, context: Context) -> AsyncIterator[HttpBody]:
        artifact = await self._stored.find(request.job_id, request.artifact_index)
        async for piece in self._stored.pieces(request.job_id, artifact):
            yield HttpBody(content_type=artifact.media_type, data=piece)

    async def UploadFile(
        self, requests: AsyncIterator[pb.UploadFileRequest], context: Context
    ) -> pb.UploadFileResponse:
        return pb.UploadFileResponse(upload=_upload(await self._uploads.receive(caller().name, requests)))

    async def GetUpload(self, request: pb.GetUploadRequest, context: Context) -> pb.GetUploadResponse:
        return pb.GetUploadResponse(upload=_upload(await self._uploads.get(caller().name, request.upload_id)))

    async def DeleteUpload(self, request: pb.DeleteUploadRequest, context: Context) -> pb.DeleteUploadResponse:
        await self._uploads.delete(caller().name, request.upload_id)
        return pb.DeleteUploadResponse()


def _upload(stored: Stored) -> pb.Upload:
    return pb.Upload(
        upload_id=stored.upload_id,
        size_bytes=stored.size_bytes,
        complete=stored.is_complete,
        sha256=stored.sha256,
        expire_time=Timestamp(seconds=stored.until_s),
    )
