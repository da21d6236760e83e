"""Media of strangers against a live fleet: what they cost, and that others are served meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from tests.failures.loads import check, fake_fleet, request, wait_over
from tests.fleet.processes import Fleet, wait_until
from tests.media.decoding import files
from triptych.environment import ClientAccess
from triptych.errors import ChecksFull, DeadlinePassed, InvalidRequest
from triptych.media.decoding import bounds
from triptych.media.decoding.headers import File
from triptych.security import tokens
from triptych.v1 import encoder_service_pb2
from triptych.v1.encoder_service_pb2_grpc import EncoderServiceStub
from triptych.v1.job_pb2 import JOB_STATE_SUCCEEDED, GenerationRequest, Job
from triptych_client import Client
from triptych_client.retry import RetryPolicy

WAIT_S = 120.0
IMPATIENT = RetryPolicy(total_s_max=3)
CALL_S_MAX = 10.0
"""Longest call of somebody else while a flood runs: milliseconds on a quiet machine. It was over a hundred seconds."""
CONTROLLER_BYTES_MAX = 192 * 2**20
"""Most that the controller grows by while it has hostile media checked: the messages themselves."""
ENCODER_BYTES_MAX = 4 * bounds.MEDIA_PIXELS_MAX + 384 * 2**20
"""Most that an encoder grows by: Pillow's four bytes a pixel, one picture's three on their way from the child, and the
messages."""


@pytest.fixture(scope="module")
def access(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ClientAccess]:
    """Two clients, and the file of their tokens."""
    file = tmp_path_factory.mktemp("tokens") / "tokens.toml"
    made = {name: ClientAccess(token=tokens.add(file, name, ["submit", "read"])) for name in ("flood", "other")}
    worker = file.with_name("worker")
    worker.write_text(tokens.add(file, "worker", ["encoder", "transformer", "decoder"]))
    worker.chmod(0o600)
    return {**made, "file": ClientAccess(token_file=str(file))}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, access: dict[str, ClientAccess]) -> Iterator[Fleet]:
    """One of each, fake, for the two clients."""
    file = access["file"].token_file
    with fake_fleet(
        tmp_path_factory.mktemp("media"),
        0.05,
        controller_flags=("--tokens", file),
        worker_flags=("--tokens", file, "--token-file", str(Path(file).with_name("worker"))),
        access=access["other"],
    ) as started:
        yield started


def with_media(seed: int, brought: list[File], **fields: Any) -> GenerationRequest:
    """A request with files."""
    made = request(seed, **fields)
    for file in brought:
        made.media.add(name=file.name, data=file.data)
    return made


def peak_bytes(fleet: Fleet, name: str) -> int:
    """The most memory that one of a fleet's processes ever had."""
    lines = Path(f"/proc/{fleet.processes[name].pid}/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def decoders(fleet: Fleet, name: str) -> list[psutil.Process]:
    """A process's children that decode."""
    return [child for child in psutil.Process(fleet.processes[name].pid).children() if decodes(child)]


def decodes(child: psutil.Process) -> bool:
    """Whether a process decodes, and hasn't ended meanwhile."""
    try:
        return "triptych.media.decoding.child" in child.cmdline()
    except psutil.NoSuchProcess:
        return False


def is_at_work(child: psutil.Process) -> bool:
    """Whether a process takes CPU time now."""
    try:
        return child.cpu_percent(0.05) > 0
    except psutil.NoSuchProcess:
        return False


def test_others_are_served_while_a_client_floods_with_media(
    fleet: Fleet, access: dict[str, ClientAccess], tmp_path: Path
) -> None:
    """Files that take a second each, and all that is hostile. Jobs, downloads and pictures of others go on."""
    slow = files.jpeg_turned(8192)
    stop, before = threading.Event(), peak_bytes(fleet, "controller")

    def flood(number: int) -> set[str]:
        found, hostile = set(), [make() for make in files.REFUSED.values()]
        with Client(fleet.endpoint, IMPATIENT, access["flood"]) as client:
            for turn in range(10_000):
                if stop.is_set():
                    break
                own = files.picture(slow + f"{number} {turn}".encode())
                brought = own if number % 2 else hostile[turn % len(hostile)]
                try:
                    client.submit(with_media(turn, brought))
                except (InvalidRequest, ChecksFull, DeadlinePassed) as error:  # the last: it has gone away
                    found.add(type(error).__name__)
        return found

    with ThreadPoolExecutor(8) as pool, Client(fleet.endpoint, None, access["other"]) as other:
        job = wait_over(other, [other.submit(request(1)).job_id], WAIT_S)
        floods = [pool.submit(flood, number) for number in range(8)]
        try:
            wait_until(lambda: decoders(fleet, "controller"), WAIT_S, "media are checked")
            calls = []
            for seed in range(5):
                started_s = time.monotonic()
                for done in job.values():
                    check(other, done, 1, tmp_path)
                brought = with_media(seed, files.picture(files.png(8, 8 + seed)))
                pictured = other.submit(brought).job_id
                calls.append(time.monotonic() - started_s)
                assert wait_over(other, [pictured], WAIT_S)[pictured].state == JOB_STATE_SUCCEEDED
        finally:
            stop.set()
        print("others' calls:", ", ".join(f"{call:.2f} s" for call in calls))
        assert max(calls) < CALL_S_MAX
        print("the flood's calls ended with", set().union(*(one.result(WAIT_S) for one in floods)))
        for hostile in files.REFUSED.values():
            with pytest.raises(InvalidRequest):
                other.submit(with_media(1, hostile()))
    grown = peak_bytes(fleet, "controller") - before
    print(f"the controller grew by {grown >> 20} MiB")
    assert grown < CONTROLLER_BYTES_MAX
    assert len(decoders(fleet, "controller")) <= 2


def test_an_encoder_holds_no_more_than_the_pixels_that_a_request_may_have(
    fleet: Fleet, access: dict[str, ClientAccess], tmp_path: Path
) -> None:
    """Four of the largest pictures; the fleet's result has their pixels in it."""
    before = peak_bytes(fleet, "encoder-0")
    largest = files.picture(files.png(8192, 8192)) * 4
    with Client(fleet.endpoint, None, access["other"]) as client:
        asked = with_media(1, largest)
        job_id = client.submit(asked).job_id
        job = wait_over(client, [job_id], WAIT_S)[job_id]
        assert job.state == JOB_STATE_SUCCEEDED, job.error
        assert job.attempts == []
    grown = peak_bytes(fleet, "encoder-0") - before
    print(f"the encoder grew by {grown >> 20} MiB, of which {4 * bounds.MEDIA_PIXELS_MAX >> 20} MiB are pixels")
    assert grown < ENCODER_BYTES_MAX


def code_when_free(stub: EncoderServiceStub, message: Any, metadata: Any) -> grpc.StatusCode:
    """What a direct call ends with, once the encoder is through with the jobs that earlier tests sent it."""
    codes: list[grpc.StatusCode] = []

    def is_answered() -> bool:
        call = stub.Generate.future(message, metadata=metadata, timeout=WAIT_S)
        assert call.exception() is not None
        codes.append(call.code())
        return codes[-1] != grpc.StatusCode.RESOURCE_EXHAUSTED

    wait_until(is_answered, WAIT_S, "the encoder is free")
    return codes[-1]


def test_a_direct_call_with_dear_media_leaves_the_encoder_to_others(
    fleet: Fleet, access: dict[str, ClientAccess]
) -> None:
    """Refused at once, or checked once; its client's leaving doesn't keep the encoder busy."""
    metadata = (("authorization", f"Bearer {access['flood'].token}"),)
    with grpc.insecure_channel(fleet.addresses["encoder-0"]) as channel:
        stub = EncoderServiceStub(channel)
        for make in files.REFUSED.values():
            message = encoder_service_pb2.GenerateRequest(request=with_media(1, make()))
            assert code_when_free(stub, message, metadata) == grpc.StatusCode.INVALID_ARGUMENT
        slow = with_media(1, files.picture(files.jpeg_turned(8192) + b"direct"))
        left = stub.Generate.future(encoder_service_pb2.GenerateRequest(request=slow), metadata=metadata)
        wait_until(lambda: any(map(is_at_work, decoders(fleet, "controller"))), WAIT_S, "it is checked")
        left.cancel()
        started_s, taken = time.monotonic(), []

        def is_free() -> bool:
            small = encoder_service_pb2.GenerateRequest(request=request(2))
            call = stub.Generate.future(small, metadata=metadata, timeout=WAIT_S)
            if call.exception() is None:
                taken.append(call.result().job.job_id)
            else:
                assert call.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            return bool(taken)

        wait_until(is_free, WAIT_S, "the encoder is free again")
        print(f"the encoder took another job {time.monotonic() - started_s:.2f} s after the client had left")
    with Client(fleet.endpoint, None, access["flood"]) as client:
        assert wait_over(client, taken, WAIT_S)[taken[0]].state == JOB_STATE_SUCCEEDED


def test_children_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    """The controller is killed in the middle of a check, and started again; the call is repeated, and its job made."""
    with fake_fleet(tmp_path / "fleet", 0.05) as fleet, fleet.client() as client:
        slow = with_media(1, files.picture(files.jpeg_turned(8192)) * 3)
        with ThreadPoolExecutor(1) as pool:
            submitted: Future[Job] = pool.submit(client.submit, slow)
            wait_until(lambda: any(map(is_at_work, decoders(fleet, "controller"))), WAIT_S, "it is checked")
            children = decoders(fleet, "controller")
            fleet.kill("controller")
            wait_until(lambda: not any(child.is_running() for child in children), WAIT_S, "they end with it")
            fleet.start("controller")
            job_id = submitted.result(WAIT_S).job_id
        job = wait_over(client, [job_id], WAIT_S)[job_id]
        assert job.state == JOB_STATE_SUCCEEDED, job.error
