"""The direct path and explicit routing: who works on a job can be said, and what can't be had is refused at once."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from tests.e2e.conftest import SMALL, channel_to, generate, generate_directly, job_count, succeeded, worker_of
from tests.fleet.processes import Fleet, wait_until
from triptych.errors import InvalidRequest
from triptych.v1.encoder_service_pb2 import GenerateRequest, GenerateResponse
from triptych.v1.encoder_service_pb2_grpc import EncoderServiceStub
from triptych_client.request import build_request

FIELDS: dict[str, Any] = {**SMALL, "num_frames": 5, "guidance_scale": 3.5, "output_format": "npy"}
CALLERS = 12


def message(request_id: str = "", **fields: Any) -> GenerateRequest:
    return GenerateRequest(request_id=request_id, request=build_request("a big red circle", **(FIELDS | fields)))


def direct(fleet: Fleet, request_id: str = "", **fields: Any) -> GenerateResponse:
    """Generate at the encoder's own address, when it is free."""
    with channel_to(fleet, "encoder-0") as channel:
        return generate_directly(channel, message(request_id, **fields))


def test_a_direct_job_gives_the_bits_of_the_usual_way(wan_fleet: Fleet, tmp_path: Path) -> None:
    response = direct(wan_fleet)
    assert response.controller_address == wan_fleet.endpoint
    with wan_fleet.client() as client:
        job = succeeded(client, response.job.job_id)
        ours = np.load(client.download_result(job.job_id, tmp_path / "direct.npy"))
        assert job.encoder_rank == worker_of(wan_fleet, "encoder-0").rank
        assert np.array_equal(ours, generate(client, tmp_path, num_frames=5, guidance_scale=3.5))


def test_a_repeated_request_id_is_the_same_job(wan_fleet: Fleet) -> None:
    first = direct(wan_fleet, "the same")
    with wan_fleet.client() as client:
        succeeded(client, first.job.job_id)
        assert direct(wan_fleet, "the same").job.job_id == first.job.job_id
        assert client.create_job("a big red circle", request_id="the same", **FIELDS).job_id == first.job.job_id


def test_a_busy_encoder_refuses_and_accepts_nothing(wan_fleet: Fleet) -> None:
    """Many at once: one encoder can start only one. What it accepts runs; the others leave no job behind."""
    with wan_fleet.client() as client, channel_to(wan_fleet, "encoder-0") as channel:
        first = direct(wan_fleet)
        succeeded(client, first.job.job_id)
        wait_until(lambda: worker_of(wan_fleet, "encoder-0").status.progress.job_id == "", 60, "the encoder is idle")
        before, encoder = job_count(wan_fleet), wan_fleet.processes["encoder-0"]
        grpc.channel_ready_future(channel).result(60)
        encoder.send_signal(signal.SIGSTOP)  # so that it finds all of them at once
        try:
            calls = [EncoderServiceStub(channel).Generate.future(message(seed=n), timeout=120) for n in range(CALLERS)]
        finally:
            encoder.send_signal(signal.SIGCONT)
        refused = [call for call in calls if call.exception() is not None]
        accepted = [call.result() for call in calls if call.exception() is None]
        assert accepted
        assert refused
        assert {call.code() for call in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert {call.details() for call in refused} == {
            "this encoder is busy; ask another, or send the job to the controller"
        }
        assert job_count(wan_fleet) == before + len(accepted)
        for answer in accepted:
            succeeded(client, answer.job.job_id)


def test_a_client_that_goes_away_leaves_no_job_half_started(wan_fleet: Fleet) -> None:
    before = job_count(wan_fleet)
    with channel_to(wan_fleet, "encoder-0") as channel:
        call = EncoderServiceStub(channel).Generate.future(message("gone"), timeout=60)
        wait_until(lambda: call.done() or job_count(wan_fleet) > before, 60, "the job is on disk")
        call.cancel()
    with wan_fleet.client() as client:
        succeeded(client, client.create_job("a big red circle", request_id="gone", **FIELDS).job_id)


def test_bad_input_is_refused_as_at_the_front_door(wan_fleet: Fleet) -> None:
    before = job_count(wan_fleet)
    with pytest.raises(grpc.RpcError) as refused:
        direct(wan_fleet, height=33)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert refused.value.details().startswith("height is 33; accepted: 8 to 8192 pixels in multiples of 8")
    assert job_count(wan_fleet) == before


@pytest.fixture(scope="module")
def two_transformers(wan_fleet: Fleet) -> Iterator[dict[str, int]]:
    """A second transformer for a while. Ranks by name."""
    with wan_fleet.also("transformer-1"):
        yield {name: worker_of(wan_fleet, name).rank for name in ("transformer-0", "transformer-1")}


def test_a_job_goes_to_the_transformer_that_it_names(two_transformers: dict[str, int], wan_fleet: Fleet) -> None:
    with wan_fleet.client() as client:
        wanted = [rank for _ in range(3) for rank in two_transformers.values()]
        jobs = [client.create_job("a big red circle", **FIELDS, transformer_rank=rank) for rank in wanted]
        assert [succeeded(client, job.job_id).transformer_rank for job in jobs] == wanted


@pytest.mark.parametrize("field", ["transformer_rank", "decoder_rank"])
def test_an_unknown_rank_is_refused(field: str, wan_fleet: Fleet) -> None:
    encoder, before = worker_of(wan_fleet, "encoder-0").rank, job_count(wan_fleet)
    with wan_fleet.client() as client:
        for rank in (encoder, 999_999):
            with pytest.raises(InvalidRequest, match=rf"{field} is {rank}; accepted: 0 for anyone, or a rank that is"):
                client.create_job("a big red circle", **FIELDS, **{field: rank})
    assert job_count(wan_fleet) == before
