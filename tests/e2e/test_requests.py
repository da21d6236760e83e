"""Real input works; bad input is one sentence that names field, value and what is accepted, and nothing is queued."""

from __future__ import annotations

import base64
import io
import signal
from datetime import timedelta
from pathlib import Path
from typing import Any

import av
import grpc
import numpy as np
import PIL.Image
import pytest
from google.protobuf import json_format

from tests.e2e.conftest import SMALL, channel_to, job_count, worker_of
from tests.fleet.processes import Fleet, wait_until
from triptych.errors import AlreadyExists, InvalidRequest, NotFound, WrongState
from triptych.v1 import generation_service_pb2 as pb
from triptych.v1.generation_service_pb2_grpc import GenerationServiceStub
from triptych.v1.job_pb2 import (
    JOB_STATE_CANCELLED,
    JOB_STATE_DENOISING,
    JOB_STATE_EXPIRED,
    JOB_STATE_QUEUED,
    JOB_STATE_SUCCEEDED,
    Job,
)
from triptych_client import Client

LONG_STEPS = 333
"""The most that this scheduler can do. At `LONG`'s size they take seconds on any machine, for jobs that are stopped
before they end."""
STOPPED_STEPS_MAX = 300
"""A worker that is to stop makes no more: a job that isn't stopped is seen beyond."""

WATCHED_STEPS = 300
"""Steps that take seconds at `WATCHED`'s size, for a job that ends."""

FIELDS: dict[str, Any] = {**SMALL, "num_frames": 5, "guidance_scale": 3.5}
LONG = {**FIELDS, "height": 256, "width": 256, "num_inference_steps": LONG_STEPS}
WATCHED = {**FIELDS, "height": 96, "width": 96, "num_inference_steps": WATCHED_STEPS}
SIZE = (64, 32)


def done(client: Client, prompt: str = "a big red circle", **fields: Any) -> Job:
    job = client.create_job(prompt, **{**FIELDS, **fields})
    for update in client.watch_job(job.job_id, timeout_s=120):
        job = update.job
    assert job.state == JOB_STATE_SUCCEEDED, job.error
    return job


# -- real input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prompt",
    [
        pytest.param("一个大红圆在蓝色背景上向右移动", id="Chinese"),
        pytest.param("a 🔴 moves ➡️ past 👩‍👩‍👧‍👦", id="emoji"),
        pytest.param("دائرة حمراء كبيرة تتحرك إلى اليمين", id="right to left"),
        pytest.param("one\ttwo\nthree \x00\x1b[31m %s {x} $(y)", id="control characters"),
        pytest.param("a " * (63 << 9), id="63 KiB"),
        pytest.param("é" * (32 << 10), id="64 KiB to the byte"),
    ],
)
def test_any_prompt(prompt: str, wan_fleet: Fleet) -> None:
    with wan_fleet.client() as client:
        done(client, prompt)


def test_a_prompt_over_64_kib_is_refused_by_its_bytes(wan_fleet: Fleet) -> None:
    before = job_count(wan_fleet)
    with wan_fleet.client() as client:
        for field in ("prompt", "negative_prompt"):
            texts = {"prompt": "x", field: "é" * (32 << 10) + "x"}
            with pytest.raises(InvalidRequest) as refused:
                client.create_job(texts.pop("prompt"), **{**FIELDS, **texts})
            assert str(refused.value) == f"{field} is '65537 bytes'; accepted: at most 65536 bytes of UTF-8"
    assert job_count(wan_fleet) == before


def test_what_a_request_says_makes_a_difference(wan_fleet: Fleet, tmp_path: Path) -> None:
    """Prompt, negative prompt, seed, guidance and a guider's option each reach the model."""
    with wan_fleet.client() as client:
        variants: list[dict[str, Any]] = [
            {},
            {"prompt": "a small green square"},
            {"negative_prompt": "noise"},
            {"seed": 8},
            {"guidance_scale": 6.0},
            {"parameters": {"guider.guidance_rescale": 0.7}},
        ]
        arrays = []
        for number, fields in enumerate([*variants, {}]):
            job = done(client, **{"output_format": "npy", **fields})
            arrays.append(np.load(client.download_result(job.job_id, tmp_path / f"{number}.npy")).tobytes())
    assert arrays.pop() == arrays[0]
    assert len(set(arrays)) == len(variants)


@pytest.mark.parametrize("output_format", ["mp4", "gif", "png", "npy", ""])
def test_every_output_format_twice_over(output_format: str, wan_fleet: Fleet, tmp_path: Path) -> None:
    """Two results of one job are two files, and each can be read."""
    with wan_fleet.client() as client:
        job = done(client, output_format=output_format, num_outputs=2)
        suffix = output_format or "mp4"
        paths = client.download_results(job, tmp_path / f"out.{suffix}")
    assert [path.name for path in paths] == [f"out-0.{suffix}", f"out-1.{suffix}"]
    assert [path.stat().st_size for path in paths] == [artifact.size_bytes for artifact in job.artifacts]
    first, second = (frames(path) for path in paths)
    assert first.shape == second.shape == (5, 32, 64, 3)
    assert not np.array_equal(first, second)


def frames(path: Path) -> np.ndarray[Any, Any]:
    if path.suffix == ".npy":
        return np.load(path)
    if path.suffix == ".mp4":
        with av.open(str(path)) as container:
            return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    image, pictures = PIL.Image.open(path), []
    for number in range(image.n_frames):
        image.seek(number)
        pictures.append(np.asarray(image.convert("RGB")))
    return np.stack(pictures)


def test_previews_and_steps_arrive_while_it_runs(wan_fleet: Fleet) -> None:
    with wan_fleet.client() as client:
        job = client.create_job("a big red circle", **WATCHED, preview_every_steps=20)
        updates = list(client.watch_job(job.job_id, timeout_s=120))
    previews = [update.preview_png for update in updates if update.preview_png]
    assert len(set(previews)) > 1
    for preview in previews:
        assert PIL.Image.open(io.BytesIO(preview)).convert("RGB").width > 1
    steps = [update.job.step for update in updates if update.job.state == JOB_STATE_DENOISING]
    assert steps == sorted(steps)
    assert len(set(steps)) > 2
    assert {update.job.step_count for update in updates if update.job.step} == {WATCHED_STEPS}
    assert updates[-1].job.state == JOB_STATE_SUCCEEDED
    assert updates[-1].job.attempts == []


# -- identity, lists, ends ----------------------------------------------------------------------------------------


def test_a_request_id_names_one_job(wan_fleet: Fleet) -> None:
    with wan_fleet.client() as client:
        first = client.create_job("a big red circle", request_id="mine", **FIELDS)
        before = job_count(wan_fleet)
        assert client.create_job("a big red circle", request_id="mine", **FIELDS).job_id == first.job_id
        with pytest.raises(AlreadyExists, match="request_id 'mine' was used for another request"):
            client.create_job("a small red circle", request_id="mine", **FIELDS)
        assert job_count(wan_fleet) == before
        list(client.watch_job(first.job_id, timeout_s=120))
        assert client.create_job("a big red circle", request_id="mine", **FIELDS).job_id == first.job_id


def test_jobs_are_listed_newest_first_by_page_and_state(wan_fleet: Fleet) -> None:
    with wan_fleet.client() as client:
        made = [done(client, num_inference_steps=1).job_id for _ in range(5)]
        cancelled = client.create_job("a big red circle", **LONG).job_id
        client.cancel_job(cancelled)
        listed = [job.job_id for job in client.list_jobs(page_size=2)]
        assert listed[:6] == [cancelled, *reversed(made)]
        assert len(listed) == len(set(listed)) == job_count(wan_fleet)
        succeeded = [job.job_id for job in client.list_jobs(states=[JOB_STATE_SUCCEEDED], page_size=3)]
        assert succeeded[:5] == list(reversed(made))
        assert cancelled in {job.job_id for job in client.list_jobs(states=[JOB_STATE_CANCELLED])}


def test_cancel_while_queued(wan_fleet: Fleet) -> None:
    """The encoder is held still, so the job can't begin; when it wakes up it drops what it was given."""
    encoder = wan_fleet.processes["encoder-0"]
    with wan_fleet.client() as client:
        wait_until(lambda: worker_of(wan_fleet, "encoder-0").status.progress.job_id == "", 60, "the encoder is idle")
        encoder.send_signal(signal.SIGSTOP)
        try:
            job = client.create_job("a big red circle", **FIELDS)
            assert client.get_job(job.job_id).state == JOB_STATE_QUEUED
            assert client.cancel_job(job.job_id).state == JOB_STATE_CANCELLED
        finally:
            encoder.send_signal(signal.SIGCONT)
        assert [update.job.state for update in client.watch_job(job.job_id)] == [JOB_STATE_CANCELLED]
        after = done(client)
        assert client.get_job(job.job_id).state == JOB_STATE_CANCELLED
        assert after.attempts == []


def test_cancel_while_denoising(wan_fleet: Fleet) -> None:
    """The worker is idle long before the steps would have been made, and the next job finds it so."""
    with wan_fleet.client() as client:
        job = client.create_job("a big red circle", **LONG)
        wait_until(lambda: client.get_job(job.job_id).step > 3, 120, "the job is being denoised")
        cancelled = client.cancel_job(job.job_id)
        assert cancelled.state == JOB_STATE_CANCELLED
        assert 3 < cancelled.step < LONG_STEPS
        wait_stopped(wan_fleet)
        assert list(client.watch_job(job.job_id))[-1].job == client.cancel_job(job.job_id)
        done(client)
        rooms = [worker_of(wan_fleet, name).status.room_count for name in ("encoder-0", "transformer-0")]
        assert rooms == [0, 0], "what a job held is released when it is over"


def test_a_deadline_ends_a_running_job(wan_fleet: Fleet) -> None:
    with wan_fleet.client() as client:
        for seconds in (1, 4, 16, 64):  # as long as this machine takes to begin
            job = client.create_job("a big red circle", **LONG, deadline=timedelta(seconds=seconds))
            for update in client.watch_job(job.job_id, timeout_s=120):
                job = update.job
            if job.step:
                break
        assert job.state == JOB_STATE_EXPIRED
        assert job.error == "the deadline passed"
        assert 0 < job.step < LONG_STEPS
        assert job.attempts == []
        wait_stopped(wan_fleet)


def wait_stopped(fleet: Fleet) -> None:
    """Wait until the transformer is idle, which it is long before it has made all steps."""

    def is_idle() -> bool:
        progress = worker_of(fleet, "transformer-0").status.progress
        assert progress.step < STOPPED_STEPS_MAX, "it goes on"
        return not progress.job_id

    wait_until(is_idle, 60, "the transformer has stopped")


def test_results_are_there_only_after_success(wan_fleet: Fleet, tmp_path: Path) -> None:
    with wan_fleet.client() as client:
        job = client.create_job("a big red circle", **LONG)
        with pytest.raises(WrongState, match=r"only a job that SUCCEEDED has results"):
            client.download_result(job.job_id, tmp_path / "out.mp4")
        client.cancel_job(job.job_id)
        with pytest.raises(WrongState, match="JOB_STATE_CANCELLED"):
            client.download_result(job.job_id, tmp_path / "out.mp4")
        ended = done(client)
        with pytest.raises(NotFound, match="has 1 artifacts, not 2"):
            client.download_result(ended.job_id, tmp_path / "out.mp4", 1)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_job_is_not_found(wan_fleet: Fleet, tmp_path: Path) -> None:
    with wan_fleet.client() as client:
        for ask in (
            client.get_job,
            client.cancel_job,
            lambda job_id: list(client.watch_job(job_id)),
            lambda job_id: client.download_result(job_id, tmp_path / "out.mp4"),
        ):
            with pytest.raises(NotFound, match="there is no job 'job-of-nobody'"):
                ask("job-of-nobody")
            with pytest.raises(InvalidRequest, match="job_id is ''"):
                ask("")


# -- bad input, each alone ----------------------------------------------------------------------------------------

NAN = float("nan")
BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"prompt": ""}, "prompt is ''", "text that is not empty"),
    ({"prompt": " \n"}, r"prompt is ' \n'", "text that is not empty"),
    ({"height": 33}, "height is 33", "8 to 8192 pixels in multiples of 8"),
    ({"width": 0}, "width is 0", "8 to 8192 pixels in multiples of 8"),
    ({"height": -8}, "height is -8", "8 to 8192 pixels in multiples of 8"),
    ({"width": 8200}, "width is 8200", "8 to 8192 pixels in multiples of 8"),
    ({"num_frames": 4}, "num_frames is 4", "1 to 4096, one more than a multiple of 2"),
    ({"num_inference_steps": 0}, "num_inference_steps is 0", "a whole number, 1 to 333"),
    (
        {"num_inference_steps": 400},
        "num_inference_steps is 400",
        "a whole number, 1 to 333 (this model's scheduler can do no more)",
    ),
    ({"num_inference_steps": 10**9}, "num_inference_steps is 1000000000", "a whole number, 1 to 333"),
    ({"guidance_scale": NAN}, "guidance_scale is nan", "a finite number"),
    ({"guidance_scale": float("inf")}, "guidance_scale is inf", "a finite number"),
    ({"num_outputs": 17}, "num_outputs is 17", "1 to 16"),
    ({"output_format": "avi"}, "output_format is 'avi'", "mp4, webm, gif, png"),
    ({"frames_per_second": NAN}, "frames_per_second is nan", "0.1 to 240, or 0 for the model's own"),
    ({"frames_per_second": 1e-9}, "frames_per_second is 1e-09", "0.1 to 240, or 0 for the model's own"),
    ({"parameters": {"bogus": 1}}, "parameters.bogus is 1", "attention_kwargs, guider.class"),
    ({"parameters": {"sigma": [1]}}, "parameters.sigma is [1]", "sigmas (close to it)"),
    ({"parameters": {"sigmas": "many"}}, "parameters.sigmas is 'many'", "a list"),
    ({"parameters": {"sigmas": [1.0, NAN]}}, "parameters.sigmas[1] is nan", "finite numbers"),
    ({"parameters": {"guider.enabled": "yes"}}, "parameters.guider.enabled is 'yes'", "true or false"),
    ({"parameters": {"guider.start": True}}, "parameters.guider.start is True", "a finite number"),
    ({"parameters": {"max_sequence_length": 1.5}}, "parameters.max_sequence_length is 1.5", "a whole number"),
    ({"parameters": {"latents": [1]}}, "parameters.latents is [1", "a tensor, as safetensors in inputs"),
    ({"parameters": {"height": 32}}, "parameters.height is 32", "nothing here; set the request's own field height"),
    ({"media": {"image": b"GIF89a"}}, "media.name is 'image'", "nothing; this pipeline takes none"),
]


@pytest.mark.parametrize(("fields", "found", "accepted"), BAD, ids=[found for _, found, _ in BAD])
def test_bad_input_is_refused_and_nothing_queued(
    fields: dict[str, Any], found: str, accepted: str, wan_fleet: Fleet
) -> None:
    before = job_count(wan_fleet)
    with wan_fleet.client() as client, pytest.raises(InvalidRequest) as refused:
        client.create_job(**{"prompt": "a big red circle", **FIELDS, **fields})
    sentence = str(refused.value)
    assert sentence.startswith(f"{found}")
    assert f"; accepted: {accepted}" in sentence
    assert "\n" not in sentence
    assert job_count(wan_fleet) == before


RAW: list[tuple[str, dict[str, Any], str]] = [
    ("CreateJob", {"request_id": "x" * 129}, "request_id"),
    ("CreateJob", {"request": {"deadline_time": "1970-01-02T00:00:00Z"}}, "deadline_time"),
    ("ListJobs", {"page_size": 1001}, "page_size is 1001; accepted: 1 to 1000, or 0 for 50"),
    ("ListJobs", {"page_size": -1}, "page_size is -1"),
    ("ListJobs", {"states": ["JOB_STATE_UNSPECIFIED"]}, "states is 0; accepted: JOB_STATE_QUEUED"),
    ("ListJobs", {"page_token": "no token"}, "page_token is 'no token'"),
    ("ListJobs", {"page_token": base64.urlsafe_b64encode(b"9" * 40).decode()}, "page_token is"),
]


@pytest.mark.parametrize(("method", "message", "found"), RAW, ids=[found for _, _, found in RAW])
def test_bad_messages_are_refused(method: str, message: dict[str, Any], found: str, wan_fleet: Fleet) -> None:
    """What the Python client would never send."""
    if "request" in message:
        message = {"request": {"prompt": "a big red circle", **message["request"]}}
    elif method == "CreateJob":
        message = {"request": {"prompt": "a big red circle"}, **message}
    request = json_format.ParseDict(message, getattr(pb, f"{method}Request")())
    before = job_count(wan_fleet)
    with channel_to(wan_fleet) as channel, pytest.raises(grpc.RpcError) as refused:
        getattr(GenerationServiceStub(channel), method)(request, timeout=30)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert refused.value.details().startswith(found)
    assert "; accepted: " in refused.value.details()
    assert job_count(wan_fleet) == before


def test_a_deadline_beyond_the_calendar_is_refused(wan_fleet: Fleet) -> None:
    before = job_count(wan_fleet)
    for seconds, nanos in ((10**15, 0), (-(10**15), 0), (2**33, -5), (2**33, 10**9)):
        request = pb.CreateJobRequest()
        request.request.prompt = "a big red circle"
        request.request.deadline_time.seconds, request.request.deadline_time.nanos = seconds, nanos
        with channel_to(wan_fleet) as channel, pytest.raises(grpc.RpcError) as refused:
            GenerationServiceStub(channel).CreateJob(request, timeout=30)
        assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert refused.value.details().startswith("deadline_time is ")
    assert job_count(wan_fleet) == before
