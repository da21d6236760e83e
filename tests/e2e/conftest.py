"""Models, fleets and references that several end-to-end tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from tests.fleet.processes import Fleet, wait_until
from triptych.v1.encoder_service_pb2 import GenerateRequest, GenerateResponse
from triptych.v1.encoder_service_pb2_grpc import EncoderServiceStub
from triptych.v1.job_pb2 import JOB_STATE_SUCCEEDED, Job
from triptych.v1.worker_pb2 import Worker
from triptych.v1.worker_service_pb2 import GetWorkerRequest
from triptych.v1.worker_service_pb2_grpc import WorkerServiceStub
from triptych_client import Client

SMALL: dict[str, Any] = {"height": 32, "width": 64, "num_inference_steps": 3, "negative_prompt": "blur", "seed": 7}

JOB_TIMEOUT_S = 200.0
"""Longest job: on a machine under load, or an emulated one."""


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """The folder of a tiny random model, by the name of its maker in `tests.models`."""
    from tests import models  # here, because it imports torch, and not all who import this module need it

    root = tmp_path_factory.mktemp("models")
    return lambda name: getattr(models, name)(root / name)


@pytest.fixture(scope="session")
def wan_fleet(tmp_path_factory: pytest.TempPathFactory, model_folder: Callable[[str], str]) -> Iterator[Fleet]:
    """One of each over a tiny Wan, for tests that don't hurt it; shared by all, because a start takes seconds."""
    with Fleet(tmp_path_factory.mktemp("fleet"), model_folder("wan_t2v")) as fleet:
        yield fleet


@contextmanager
def channel_to(fleet: Fleet, name: str = "controller") -> Iterator[grpc.Channel]:
    """A plain channel to one of a fleet's processes, for generated stubs."""
    with grpc.insecure_channel(fleet.addresses[name]) as channel:
        yield channel


def worker_of(fleet: Fleet, name: str) -> Worker:
    """What a worker says of itself, over the wire."""
    with channel_to(fleet, name) as channel:
        return WorkerServiceStub(channel).GetWorker(GetWorkerRequest(), timeout=30).worker


def job_count(fleet: Fleet) -> int:
    """How many jobs were ever accepted."""
    with fleet.client() as client:
        return sum(count.count for count in client.get_fleet().job_counts)


def generate_directly(channel: grpc.Channel, message: GenerateRequest, **call: Any) -> GenerateResponse:
    """A direct job's answer, once the encoder behind a channel is free to take it."""
    answers: list[GenerateResponse] = []

    def is_taken() -> bool:
        try:
            answers.append(EncoderServiceStub(channel).Generate(message, timeout=JOB_TIMEOUT_S, **call))
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.RESOURCE_EXHAUSTED:
                raise
        return bool(answers)

    wait_until(is_taken, JOB_TIMEOUT_S, "the encoder is free")
    return answers[0]


def generate(client: Client, path: Path, **fields: Any) -> np.ndarray[Any, Any]:
    """One result through the services, exactly as the pipeline yielded it."""
    made = client.generate("a big red circle", path / "out.npy", output_format="npy", **{**SMALL, **fields})
    return np.load(made.paths[0])


def ended(client: Client, job_id: str) -> Job:
    """A job once it is over."""
    *_updates, last = client.watch_job(job_id, timeout_s=JOB_TIMEOUT_S)
    return last.job


def succeeded(client: Client, job_id: str) -> Job:
    """A job once it has succeeded."""
    job = ended(client, job_id)
    assert job.state == JOB_STATE_SUCCEEDED, job.error
    return job


def result(client: Client, job_id: str, folder: Path) -> np.ndarray[Any, Any]:
    """What a job yields once it has succeeded."""
    succeeded(client, job_id)
    return np.load(client.download_result(job_id, folder / f"{job_id}.npy"))
