"""A call that makes another one hands on what is left of its time."""

from __future__ import annotations

import os
import signal
import time
import uuid
from pathlib import Path

import grpc
import pytest

from tests.failures.loads import check, fake_fleet, request, wait_over
from tests.fleet.held import WAIT_S
from triptych import rpc
from triptych.v1.encoder_service_pb2 import GenerateRequest
from triptych.v1.encoder_service_pb2_grpc import EncoderServiceStub

SHORT_S = 1.5


def test_an_encoder_gives_up_when_its_caller_does(tmp_path: Path) -> None:
    """Its controller stands still. The encoder is free for the next call then, and not only when the controller is."""
    with fake_fleet(tmp_path / "fleet", 0.3) as fleet, fleet.client() as client:
        message = GenerateRequest(request_id=str(uuid.uuid4()), request=request(1))
        with grpc.insecure_channel(fleet.addresses["encoder-0"]) as channel:
            encoder = EncoderServiceStub(channel)
            os.kill(fleet.pid("controller"), signal.SIGSTOP)
            try:
                for _ in range(3):
                    with pytest.raises(grpc.RpcError) as late:
                        encoder.Generate(message, timeout=SHORT_S)
                    assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED, rpc.reason_from(late.value)
                    time.sleep(0.3)
            finally:
                os.kill(fleet.pid("controller"), signal.SIGCONT)
            job_id = encoder.Generate(message, timeout=WAIT_S).job.job_id
        check(client, wait_over(client, [job_id], WAIT_S)[job_id], 1, tmp_path)
