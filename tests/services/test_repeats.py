"""An error that will come again isn't tried again; one that may be the machine's is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from services.controller.attempts import SICK_MAX, fields_of
from services.worker.places import place_of
from tests.messages import token_for
from tests.services.conftest import Bench, OpenBench
from tests.services.test_attempts import ATTEMPTS_MAX, register, take
from triptych.errors import RoomGone
from triptych.media import tensor_files
from triptych.v1 import fleet_service_pb2 as fleet_pb
from triptych.v1.dispatch_pb2 import ROLE_ENCODER
from triptych.v1.job_pb2 import JOB_STATE_FAILED, JOB_STATE_QUEUED, GenerationRequest, Job, TensorFile

PLACE = "IndexError in scheduling_unipc_multistep.step #0123456789ab"
OTHER = "ValueError in scheduling_unipc_multistep.step #0123456789ab"


async def fail(
    bench: Bench,
    rank: int,
    place: str,
    reason: Any = fleet_pb.FAILURE_REASON_STAGE_ERROR,
    message: str = "tuple index",
) -> Job:
    claimed = await take(bench, ROLE_ENCODER, rank)
    assert claimed is not None
    request = fleet_pb.FailPhaseRequest(
        reason=reason, message=message, place=place, token=token_for(claimed, ROLE_ENCODER)
    )
    await bench.controller.phases.fail(request)
    await bench.rings[ROLE_ENCODER].ack(claimed.lease)
    return await bench.core.ledger.get(claimed.dispatch.job_id)


@pytest.mark.parametrize("names", [("e1", "e2"), ("e1",)], ids=["of two workers", "of the only one"])
async def test_the_same_error_again_ends_the_job(open_bench: OpenBench, names: tuple[str, ...]) -> None:
    async with open_bench() as bench:
        ranks = [await register(bench, name, ROLE_ENCODER) for name in names]
        await bench.create(num_inference_steps=400)
        assert (await fail(bench, ranks[0], PLACE)).state == JOB_STATE_QUEUED
        job = await fail(bench, ranks[-1], PLACE)
        assert (job.state, len(job.attempts)) == (JOB_STATE_FAILED, 2)
        assert job.error == (
            "the encoder fails this request in the same way each time (IndexError in scheduling_unipc_multistep.step): "
            "it sets num_inference_steps 400, prompt; change one of them"
        )


def test_tensors_of_a_request_are_said_by_dtype_and_shape() -> None:
    """It is what the pipeline takes or not; the numbers are the client's own."""
    latents = tensor_files.tensor_of(np.zeros((1, 16, 2, 3), np.float32))
    request = GenerationRequest(prompt="a secret", num_inference_steps=4)
    request.inputs["latents"].tensor.data = tensor_files.write({"x": latents})
    request.inputs["one"].tensor.CopyFrom(TensorFile(data=tensor_files.write({"x": latents, "y": latents}), tensor="y"))
    request.inputs["uploaded"].tensor.upload_id = "0" * 32
    said = "F32 of shape [1, 16, 2, 3]"
    assert (
        fields_of(request)
        == f"inputs.latents {said}, inputs.one {said}, num_inference_steps 4, inputs.uploaded, prompt"
    )


async def test_numbers_that_are_none_end_the_job_with_the_place_where_they_showed(open_bench: OpenBench) -> None:
    async with open_bench() as bench:
        rank = await register(bench, "e", ROLE_ENCODER)
        await bench.create(num_inference_steps=4)
        place, message = "NotFinite in finite.check #0123456789ab", "NotFinite: the encoder made NaN in prompt_embeds"
        assert (await fail(bench, rank, place, message=message)).state == JOB_STATE_QUEUED
        job = await fail(bench, rank, place, message=message)
        assert job.state == JOB_STATE_FAILED
        assert "in the same way each time (the encoder made NaN in prompt_embeds): it sets" in job.error


@pytest.mark.parametrize(
    "places",
    [("", ""), (PLACE, OTHER), (PLACE, "not a place"), ("x" * 300, "x" * 300)],
    ids=["the machine's", "another", "none", "too long"],
)
async def test_other_errors_are_tried_again(open_bench: OpenBench, places: tuple[str, str]) -> None:
    async with open_bench() as bench:
        rank = await register(bench, "e", ROLE_ENCODER)
        await bench.create()
        for place in places:
            job = await fail(bench, rank, place)
        assert job.state == JOB_STATE_QUEUED


async def test_a_job_that_spoils_its_workers_ends(open_bench: OpenBench) -> None:
    async with open_bench() as bench:
        rank = await register(bench, "e", ROLE_ENCODER)
        await bench.create()
        for number in range(SICK_MAX):
            job = await fail(bench, rank, "", fleet_pb.FAILURE_REASON_WORKER_BROKEN)
            assert (job.state == JOB_STATE_FAILED) == (number == SICK_MAX - 1)
        assert ATTEMPTS_MAX < SICK_MAX
        assert (job.error, job.dead_letter) == (
            f"gave up after {SICK_MAX} attempts by workers that broke; the last: tuple index",
            True,
        )


def raised(error: Exception, cause: Exception | None = None) -> Exception:
    try:
        raise error from cause
    except type(error) as caught:
        return caught


def test_a_place_is_the_same_whatever_the_numbers() -> None:
    first, second = [place_of(raised(IndexError("")), f"index {n} at 0x7f{n}") for n in (3, 1412)]
    assert first == second
    assert first.startswith("IndexError in test_repeats.raised #")
    assert place_of(raised(IndexError("")), "another text") != first


@pytest.mark.parametrize(
    "error",
    [
        OSError("full"),
        MemoryError(),
        TimeoutError(),
        ImportError("no module"),
        RoomGone("gone"),
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("can't start new thread"),
        raised(ValueError("can't load"), OSError("no such file")),
    ],
    ids=lambda error: type(error).__name__,
)
def test_the_machine_has_no_place(error: Exception) -> None:
    assert (
        place_of(raised(error, error.__cause__ if isinstance(error.__cause__, Exception) else None), "it broke") == ""
    )
