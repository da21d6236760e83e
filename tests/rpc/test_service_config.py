"""What gRPC's own retries repeat, in Triptych's client and in those of other languages."""

from __future__ import annotations

import json
import re
from pathlib import Path

import grpc
import pytest

from tests.rpc.test_codes import COMMENTS
from triptych import rpc
from triptych.errors import NotFound, TriptychError, Unavailable
from triptych.rpc.service_config import ATTEMPTS_MAX, FIRST_PAUSE_S, LAST_PAUSE_S, service_config
from triptych.security.rules import RULES
from triptych.v1 import generation_service_pb2 as pb
from triptych.v1 import generation_service_pb2_grpc as pb_grpc

PUBLISHED = Path(__file__).parents[2] / "docs/service_config.json"


def test_the_published_file_is_fresh() -> None:
    """`make proto` writes it."""
    assert PUBLISHED.read_text() == service_config() + "\n"


def test_what_a_comment_calls_safe_is_marked_so() -> None:
    for path, (_about, own) in COMMENTS.items():
        said = re.search(r"Retry:[\s/]*(safe|as Ack)", own)
        assert (said is not None) == RULES[path].is_repeatable, path


def test_clients_calls_are_in_it_and_workers_are_not() -> None:
    (config,) = json.loads(service_config())["methodConfig"]
    names = {f"/{name['service']}/{name['method']}" for name in config["name"]}
    assert {"/triptych.v1.GenerationService/CreateJob", "/triptych.v1.EncoderService/Generate"} <= names
    assert {"/triptych.v1.FleetService/GetFleet", "/triptych.v1.GenerationService/DiscardJobs"} <= names
    assert not {"/triptych.v1.FleetService/Heartbeat", "/triptych.v1.RingService/Claim"} & names


class Refusing(pb_grpc.GenerationServiceServicer):
    """Answers each call with the next error, and counts the calls."""

    def __init__(self, *answers: TriptychError) -> None:
        self._answers = list(answers)
        self.asked = 0

    async def GetJob(self, request: pb.GetJobRequest, context: rpc.Context) -> pb.GetJobResponse:
        self.asked += 1
        if self._answers:
            raise self._answers.pop(0)
        return pb.GetJobResponse()


async def asked(servicer: Refusing) -> grpc.StatusCode:
    """How a single call ends, by a channel that repeats."""
    service = (pb_grpc.add_GenerationServiceServicer_to_server, servicer, "triptych.v1.GenerationService")
    server = await rpc.start_server("127.0.0.1:0", [service])
    try:
        hasty = service_config().replace(f'"{FIRST_PAUSE_S:g}s"', '"0.01s"').replace(f'"{LAST_PAUSE_S:g}s"', '"0.1s"')
        async with grpc.aio.insecure_channel(server.address, options=[("grpc.service_config", hasty)]) as channel:
            await pb_grpc.GenerationServiceStub(channel).GetJob(pb.GetJobRequest(job_id="a"), timeout=30)
    except grpc.aio.AioRpcError as error:
        return error.code()
    finally:
        await server.stop(0)
    return grpc.StatusCode.OK


async def test_a_short_absence_is_not_seen() -> None:
    servicer = Refusing(Unavailable("it starts"), Unavailable("it starts"))
    assert await asked(servicer) is grpc.StatusCode.OK
    assert servicer.asked == 3


@pytest.mark.parametrize(
    ("answers", "count"), [([NotFound("no")], 1), ([Unavailable("it starts")] * (ATTEMPTS_MAX + 1), ATTEMPTS_MAX)]
)
async def test_other_errors_and_long_absences_are(answers: list[TriptychError], count: int) -> None:
    servicer = Refusing(*answers)
    assert await asked(servicer) is not grpc.StatusCode.OK
    assert servicer.asked == count
