"""The client against a real server: results, errors, retries, resuming."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.clients.conftest import QUICK
from tests.clients.toy_controller import STEPS, ToyController
from tests.filled import filled
from tests.fleet.processes import free_port
from triptych import errors, rpc
from triptych.errors import (
    BacklogFull,
    DeadlinePassed,
    Full,
    InvalidRequest,
    JobCancelled,
    JobFailed,
    NotFound,
    SourceCorrupt,
    Unavailable,
    WrongState,
)
from triptych.v1 import generation_service_pb2, job_pb2
from triptych.v1.generation_service_pb2 import CreateJobRequest
from triptych.v1.generation_service_pb2_grpc import GenerationServiceStub
from triptych_client import AsyncClient, Client, RetryPolicy, build_request

HASTY = RetryPolicy(delay_s_initial=0.02, delay_s_max=0.05, total_s_max=1.5)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def test_a_prompt_becomes_a_file(client: AsyncClient, controller: ToyController, tmp_path: Path) -> None:
    states = []
    done = await client.generate(
        "a circle", tmp_path / "out.mp4", seed=5, on_update=lambda update: states.append(update.job.state)
    )
    assert done.paths == (tmp_path / "out.mp4",)
    assert done.paths[0].read_bytes() == controller.content
    assert states == sorted(states)
    assert states[-1] == job_pb2.JOB_STATE_SUCCEEDED
    assert controller.requests[0].seed == 5
    assert controller.requests[0].output_format == "mp4"
    assert names(tmp_path) == ["out.mp4"]


async def test_several_outputs_are_numbered(client: AsyncClient, tmp_path: Path) -> None:
    done = await client.generate("two", tmp_path / "out.gif", num_outputs=2)
    assert [path.name for path in done.paths] == ["out-0.gif", "out-1.gif"]


async def test_every_step_is_seen(client: AsyncClient) -> None:
    job = await client.create_job("a circle")
    steps = [update.job.step async for update in client.watch_job(job.job_id)]
    assert set(steps) == set(range(STEPS + 1))


@pytest.mark.parametrize(("prompt", "error"), [("fail", JobFailed), ("late", DeadlinePassed)])
async def test_a_job_that_ends_otherwise_is_an_error(
    client: AsyncClient, tmp_path: Path, prompt: str, error: type[Exception]
) -> None:
    with pytest.raises(error, match="job-0"):
        await client.generate(prompt, tmp_path / "out.mp4")
    assert names(tmp_path) == []


async def test_a_cancelled_job_is_an_error(client: AsyncClient, tmp_path: Path) -> None:
    started = asyncio.Event()
    generating = client.generate("forever", tmp_path / "out.mp4", on_update=lambda _update: started.set())
    work = asyncio.create_task(generating)
    async with asyncio.timeout(60):
        await started.wait()
        assert (await client.cancel_job("job-0")).state == job_pb2.JOB_STATE_CANCELLED
        with pytest.raises(JobCancelled):
            await work


async def test_the_servers_error_arrives_as_its_class(client: AsyncClient) -> None:
    with pytest.raises(NotFound, match="no job gone"):
        await client.get_job("gone")
    with pytest.raises(InvalidRequest, match="prompt is ''; accepted: text") as caught:
        await client.create_job("")
    assert caught.value.field == "prompt"
    with pytest.raises(NotFound):
        _ = [update async for update in client.watch_job("gone")]


async def test_all_pages_are_listed(client: AsyncClient) -> None:
    for _ in range(5):
        await client.create_job("fail")
    assert [job.job_id async for job in client.list_jobs(page_size=2)] == [f"job-{i}" for i in (4, 3, 2, 1, 0)]
    assert [job async for job in client.list_jobs([job_pb2.JOB_STATE_CANCELLED])] == []


async def test_a_server_that_comes_late_is_waited_for(controller: ToyController) -> None:
    port = free_port()
    async with AsyncClient(f"127.0.0.1:{port}", QUICK) as client:
        creating = asyncio.create_task(client.create_job("a circle"))
        await asyncio.sleep(0.3)
        assert not creating.done()
        server = await rpc.start_server(f"127.0.0.1:{port}", controller.services)
        assert (await creating).job_id == "job-0"
        await server.stop(0)


async def test_a_server_that_never_comes_is_given_up(tmp_path: Path) -> None:
    endpoint = f"127.0.0.1:{free_port()}"
    async with AsyncClient(endpoint, HASTY) as client:
        start_s = time.monotonic()
        with pytest.raises(Unavailable, match=f"no answer from {endpoint}"):
            await client.describe_model()
        with pytest.raises(Unavailable):
            _ = [update async for update in client.watch_job("job-0")]
        with pytest.raises(Unavailable):
            await client.download_result("job-0", tmp_path / "out.mp4")
        assert time.monotonic() - start_s < 30
    assert names(tmp_path) == []


async def test_a_full_backlog_is_waited_for_with_one_identity(client: AsyncClient, controller: ToyController) -> None:
    controller.full_count = 3
    await client.create_job("a circle")
    assert controller.create_count == 4
    assert len(controller.jobs) == 1


async def test_a_backlog_that_stays_full_is_an_error(server: rpc.Server, controller: ToyController) -> None:
    controller.full_count = 10**6
    async with AsyncClient(server.address, HASTY) as client:
        with pytest.raises(BacklogFull):
            await client.create_job("a circle")


async def test_a_servers_hint_is_waited_for(server: rpc.Server, controller: ToyController) -> None:
    """The policy alone would ask a dozen times in that time."""
    controller.full_count, controller.retry_after_s = 2, 0.7
    async with AsyncClient(server.address, RetryPolicy(0.01, 0.02, total_s_max=60)) as client:
        await client.create_job("a circle")
    waits = [after - before for before, after in pairwise(controller.created_s)]
    assert len(waits) == 2
    assert all(wait_s >= 0.7 for wait_s in waits)


async def test_a_hint_beyond_the_policy_ends_it_at_once(server: rpc.Server, controller: ToyController) -> None:
    controller.full_count, controller.retry_after_s = 10**6, 30.0
    async with AsyncClient(server.address, HASTY) as client:
        with pytest.raises(BacklogFull) as caught:
            await client.create_job("a circle")
    assert caught.value.retry_after_s == 30.0
    assert controller.create_count == 1


async def test_every_full_server_says_when_to_come_back(server: rpc.Server, controller: ToyController) -> None:
    """As gRPC has it, so that any language can read it."""
    controller.full_count, controller.retry_after_s = 1, None
    async with grpc.aio.insecure_channel(server.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await GenerationServiceStub(channel).CreateJob(filled(CreateJobRequest))
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert ("grpc-retry-pushback-ms", "2000") in tuple(caught.value.trailing_metadata() or ())
    for error in vars(errors).values():
        if isinstance(error, type) and issubclass(error, errors.Full):
            assert error("full").retry_after_s > 0


async def test_too_many_watches_are_waited_for(client: AsyncClient, controller: ToyController) -> None:
    controller.watches_full_count = 2
    job = await client.create_job("a circle")
    states = [update.job.state async for update in client.watch_job(job.job_id)]
    assert states[-1] == job_pb2.JOB_STATE_SUCCEEDED


async def test_a_message_that_is_too_large_is_not_sent_again(client: AsyncClient) -> None:
    """gRPC ends it with the status that full servers use."""
    request = job_pb2.GenerationRequest(prompt="x" * (65 * 2**20))
    start_s = time.monotonic()
    with pytest.raises(Full):
        await client.submit(request)
    assert time.monotonic() - start_s < 30


async def test_dead_letters_are_listed_and_retried(client: AsyncClient) -> None:
    dead = await client.create_job("dead")
    assert [update.job async for update in client.watch_job(dead.job_id)][-1].dead_letter
    alive = await client.create_job("fail")
    _ = [update async for update in client.watch_job(alive.job_id)]
    assert [job.job_id async for job in client.list_jobs(dead_letters_only=True)] == [dead.job_id]
    again = await client.retry_job(dead.job_id)
    assert again.retry_of == dead.job_id
    assert (await client.retry_job(dead.job_id)).job_id == again.job_id
    with pytest.raises(WrongState):
        await client.retry_job(alive.job_id)


async def test_the_same_request_id_is_the_same_job(client: AsyncClient) -> None:
    first = await client.create_job("a circle", request_id="mine")
    assert (await client.create_job("a circle", request_id="mine")).job_id == first.job_id
    assert (await client.create_job("a circle")).job_id != first.job_id


async def test_watching_resumes_when_the_server_comes_back(controller: ToyController) -> None:
    controller.step_s = 0.4
    server = await rpc.start_server("127.0.0.1:0", controller.services)
    async with AsyncClient(server.address, QUICK) as client:
        job = await client.create_job("a circle")
        steps: list[int] = []
        async for update in client.watch_job(job.job_id):
            if update.job.step >= 1 and not any(steps):
                await server.stop(0)
                server = await rpc.start_server(server.address, controller.services)
            steps.append(update.job.step)
        assert update.job.state == job_pb2.JOB_STATE_SUCCEEDED
        assert steps == sorted(steps)
    await server.stop(0)


async def test_watching_ends_after_its_timeout(client: AsyncClient) -> None:
    job = await client.create_job("forever")
    with pytest.raises(DeadlinePassed, match="not over after"):
        async with asyncio.timeout(60):
            _ = [update async for update in client.watch_job(job.job_id, timeout_s=0.3)]


async def test_a_corrupt_download_is_read_again(client: AsyncClient, controller: ToyController, tmp_path: Path) -> None:
    done = await client.generate("a circle", tmp_path / "first.mp4")
    controller.corrupt_count = 1
    path = await client.download_result(done.job.job_id, tmp_path / "second.mp4")
    assert path.read_bytes() == controller.content


async def test_a_download_that_stays_corrupt_keeps_nothing(
    client: AsyncClient, controller: ToyController, tmp_path: Path
) -> None:
    controller.corrupt_count = 2
    (tmp_path / "out.mp4").write_bytes(b"what was there before")
    with pytest.raises(SourceCorrupt, match="SHA-256"):
        await client.generate("a circle", tmp_path / "out.mp4")
    assert names(tmp_path) == ["out.mp4"]
    assert (tmp_path / "out.mp4").read_bytes() == b"what was there before"


async def test_a_path_that_cannot_be_written_is_refused_before_the_job(
    client: AsyncClient, controller: ToyController, tmp_path: Path
) -> None:
    with pytest.raises(InvalidRequest, match="output"):
        await client.generate("a circle", tmp_path / "missing" / "out.mp4")
    with pytest.raises(InvalidRequest, match=r"ends in \.mp4"):
        await client.generate("a circle", tmp_path / "out.avi")
    assert not controller.jobs


async def test_the_sync_client_does_the_same(server: rpc.Server, tmp_path: Path) -> None:
    await asyncio.to_thread(_use_sync_client, server.address, tmp_path)


def _use_sync_client(address: str, tmp_path: Path) -> None:
    with Client(address, QUICK) as client:
        done = client.generate("a circle", tmp_path / "out.mp4")
        assert done.paths[0].exists()
        assert [update.job.state for update in client.watch_job(done.job.job_id)] == [job_pb2.JOB_STATE_SUCCEEDED]
        assert [job.job_id for job in client.list_jobs()] == ["job-0"]
        assert client.get_fleet().epoch == 4
        assert client.describe_model().model == "toy"
        watching = client.watch_job(client.create_job("forever").job_id)
        next(watching)
        watching.close()  # type: ignore[attr-defined]
        with pytest.raises(NotFound):
            client.get_job("gone")
        dead = client.create_job("dead", priority="low")
        list(client.watch_job(dead.job_id))
        assert [job.job_id for job in client.list_jobs(dead_letters_only=True)] == [dead.job_id]
        assert client.retry_job(dead.job_id).retry_of == dead.job_id


class Silent(ToyController):
    """One that never answers some calls."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = asyncio.Event()

    async def GetFleet(self, request: Any, context: Any) -> Any:
        self.asked.set()
        await asyncio.Event().wait()

    async def DownloadResult(self, request: Any, context: Any) -> AsyncIterator[Any]:
        yield generation_service_pb2.DownloadResultResponse()
        self.asked.set()
        await asyncio.Event().wait()


async def _watch(client: AsyncClient, silent: Silent) -> None:
    job = await client.create_job("forever")
    async for _ in client.watch_job(job.job_id):
        silent.asked.set()


CALLS: dict[str, Callable[[AsyncClient, Silent, Path], Coroutine[Any, Any, Any]]] = {
    "get_fleet": lambda client, silent, path: client.get_fleet(),
    "watch_job": lambda client, silent, path: _watch(client, silent),
    "download_result": lambda client, silent, path: client.download_result("job-0", path / "out.mp4"),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("count", [1, 2])
async def test_a_client_that_is_closed_says_so_to_its_calls(call: str, count: int, tmp_path: Path) -> None:
    silent = Silent()
    server = await rpc.start_server("127.0.0.1:0", silent.services)
    client = AsyncClient(",".join([server.address] * count), QUICK)
    running = asyncio.create_task(CALLS[call](client, silent, tmp_path))
    async with asyncio.timeout(30):
        await silent.asked.wait()
        await client.close()
        with pytest.raises(WrongState, match="client is closed"):
            await running
        with pytest.raises(WrongState, match="client is closed"):
            await CALLS[call](client, silent, tmp_path)
    await server.stop(0)


async def test_a_sync_client_that_is_closed_leaves_no_thread_waiting(server: rpc.Server) -> None:
    def watch() -> None:
        for _ in client.watch_job(client.create_job("forever").job_id):
            loop.call_soon_threadsafe(begun.set)

    loop, begun = asyncio.get_running_loop(), asyncio.Event()
    client = await asyncio.to_thread(Client, server.address, QUICK)
    async with asyncio.timeout(30):
        watching = asyncio.create_task(asyncio.to_thread(watch))
        await begun.wait()
        await asyncio.to_thread(client.close)
        with pytest.raises(WrongState, match="client is closed"):
            await watching
        with pytest.raises(WrongState, match="client is closed"):
            await asyncio.to_thread(client.get_fleet)


def test_the_client_and_the_launcher_import_no_torch() -> None:
    code = """
import sys
import triptych_client.sync, triptych_client.local_fleet, triptych_client.commands.generate, triptych_client.commands.up
sys.exit(bool({"torch", "diffusers", "transformers", "numpy", "av"} & set(sys.modules)))
"""
    assert subprocess.run((sys.executable, "-c", code), check=False).returncode == 0


def test_an_endpoint_needs_a_port() -> None:
    with pytest.raises(InvalidRequest, match="endpoint is 'somewhere'"):
        Client("somewhere")


def test_fields_are_carried_and_those_not_given_stay_unset(tmp_path: Path) -> None:
    (tmp_path / "b.png").write_bytes(b"two")
    end = datetime.now(UTC) + timedelta(hours=1)
    request = build_request(
        "a circle",
        height=64,
        guidance_scale=0.0,
        parameters={"shift": 3.5, "flags": [True, None]},
        media={"image": [b"one", tmp_path / "b.png"], "mask": b"three"},
        deadline=end,
        width=None,
    )
    assert (request.height, request.HasField("width")) == (64, False)
    assert request.priority == job_pb2.PRIORITY_UNSPECIFIED
    assert build_request(priority="high").priority == job_pb2.PRIORITY_HIGH
    assert request.HasField("guidance_scale")
    assert request.parameters["shift"] == 3.5
    assert [(m.name, m.data) for m in request.media] == [("image", b"one"), ("image", b"two"), ("mask", b"three")]
    assert request.deadline_time.ToDatetime(UTC) == end


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"height": 10**12}, "height"),
        ({"height": "tall"}, "height"),
        ({"seed": 2**70}, "seed"),
        ({"transformer_rank": -1}, "transformer_rank"),
        ({"num_frames": True}, "num_frames"),
        ({"hight": 64}, "hight"),
        ({"priority": "urgent"}, "priority"),
        ({"priority": 1}, "priority"),
        ({"parameters": {"x": object()}}, "parameters.x"),
        ({"media": {"image": "/no/such/file.png"}}, "media.image"),
        ({"media": {"image": b"x" * (61 * 2**20)}}, "request"),
        ({"deadline": datetime(2030, 1, 1)}, "deadline"),
    ],
)
def test_what_a_field_cannot_hold_is_named(fields: dict[str, object], named: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        build_request("a circle", **fields)
    assert caught.value.field == named


def test_text_that_is_not_unicode_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="prompt"):
        build_request("\udcff")


@given(prompt=st.text(max_size=50), seed=st.integers(-(2**63), 2**63 - 1), scale=st.floats(allow_nan=False))
def test_any_text_and_number_is_carried_as_it_is(prompt: str, seed: int, scale: float) -> None:
    request = build_request(prompt, seed=seed, guidance_scale=scale)
    copy = job_pb2.GenerationRequest.FromString(request.SerializeToString())
    assert (copy.prompt, copy.seed, copy.guidance_scale) == (prompt, seed, scale)
