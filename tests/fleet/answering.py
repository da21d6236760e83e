"""A worker's server that says yes when a controller calls it back, for tests that register by themselves."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

from triptych.security.certificates import Certificates
from triptych.v1 import worker_service_pb2 as pb
from triptych.v1 import worker_service_pb2_grpc as pb_grpc


class _Answering(pb_grpc.WorkerServiceServicer):
    def ConfirmInstance(self, request: pb.ConfirmInstanceRequest, context: Any) -> pb.ConfirmInstanceResponse:
        return pb.ConfirmInstanceResponse()


@contextmanager
def answering(tls: Path | None = None) -> Iterator[str]:
    """Its address. `tls` is the folder of its certificate, where it has one."""
    server = grpc.server(ThreadPoolExecutor(2))
    pb_grpc.add_WorkerServiceServicer_to_server(_Answering(), server)
    if tls is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("127.0.0.1:0", Certificates(tls).server_credentials(require_client=True))
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()
