"""FileService: decode, call the controller, encode."""

from __future__ import annotations

from collections.abc import AsyncIterator

from google.api.httpbody_pb2 import HttpBody

from triptych.rpc import Context
from triptych.v1 import file_service_pb2 as pb
from triptych.v1 import file_service_pb2_grpc as pb_grpc

from .stored_files import StoredFiles


class FileServicer(pb_grpc.FileServiceServicer):
    """Files as bytes."""

    def __init__(self, stored: StoredFiles) -> None:
        self._stored = stored

    async def GetArtifact(self, request: pb.GetArtifactRequest, context: Context) -> AsyncIterator[HttpBody]:
        artifact = await self._stored.find(request.job_id, request.artifact_index)
        async for piece in self._stored.pieces(request.job_id, artifact):
            yield HttpBody(content_type=artifact.media_type, data=piece)
