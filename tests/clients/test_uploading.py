"""Large files of a request go ahead of it, once, and on where they broke; where there is no place they go in it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from services.controller.file_service import FileServicer
from services.controller.uploads import UPLOADS_BYTES_MAX, Uploads
from tests.clients.toy_controller import ToyController
from tests.slow_line import slow_line
from triptych import rpc
from triptych.errors import AlreadyExists, NotFound
from triptych.media import uploads as at_rest
from triptych.v1 import generation_service_pb2 as pb
from triptych.v1.file_service_pb2 import UploadFileRequest
from triptych.v1.file_service_pb2_grpc import add_FileServiceServicer_to_server
from triptych_client import AsyncClient
from triptych_client import uploading as subject
from triptych_client.request import build_request
from triptych_client.retry import RetryPolicy
from triptych_client.uploading import UPLOADED_FROM_BYTES

LARGE = bytes(range(251)) * (UPLOADED_FROM_BYTES // 250)
SMALL = b"a small one"
QUICK = RetryPolicy(delay_s_initial=0.02, delay_s_max=0.05)
OWNER = at_rest.owner_of("")


class Controller(ToyController):
    """One that takes jobs whose uploads are there only, and knows the form of each request id."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url
        self.loses_uploads = 0
        """Delete the upload before so many calls look for it."""
        self.missed = 0

    async def CreateJob(self, request: pb.CreateJobRequest, context: Any) -> pb.CreateJobResponse:
        for job, made_for in zip(self.jobs.values(), self.requests, strict=True):
            if job.request_id == request.request_id:
                if made_for != request.request:
                    raise AlreadyExists("another request")
                return pb.CreateJobResponse(job=job)
        for media in request.request.media:
            if media.upload_id:
                if self.loses_uploads:
                    self.loses_uploads -= 1
                    at_rest.remove(self.url, OWNER, media.upload_id)
                if not any(one.is_complete for one in at_rest.find_all(self.url, OWNER, media.upload_id)):
                    self.missed += 1
                    raise NotFound(f"there is no upload {media.upload_id!r}")
        return await super().CreateJob(request, context)


class Overtaken(FileServicer):
    """Whoever asks it for an upload is overtaken by another, who writes a part before the answer is there."""

    def __init__(self, uploads: Uploads, *parts: bytes) -> None:
        super().__init__(None, uploads)  # type: ignore[arg-type]
        self.parts = list(parts)
        self.size_bytes = 0

    async def GetUpload(self, request: Any, context: Any) -> Any:
        try:
            return await super().GetUpload(request, context)
        finally:
            if self.parts:
                await self.UploadFile(self._messages(request.upload_id, self.parts.pop(0)), context)

    async def _messages(self, upload_id: str, part: bytes) -> AsyncIterator[UploadFileRequest]:
        first = UploadFileRequest(upload_id=upload_id, offset_bytes=self.size_bytes, size_bytes=len(LARGE))
        first.body.data = part
        self.size_bytes += len(part)
        yield first


@pytest.fixture
def url(tmp_path: Path) -> str:
    return str(tmp_path / "results")


@pytest.fixture
def controller(url: str) -> Controller:
    return Controller(url)


@pytest.fixture
async def address(controller: Controller) -> AsyncIterator[str]:
    """A toy controller with a real one's uploads."""
    servicer: Any = FileServicer(None, Uploads(controller.url))  # type: ignore[arg-type]
    files = (add_FileServiceServicer_to_server, servicer, "triptych.v1.FileService")
    server = await rpc.start_server("127.0.0.1:0", [*controller.services, files])
    yield server.address
    await server.stop(0)


def fill(url: str) -> None:
    """Take all of the store with one upload, whose file is all hole."""
    folder = Path(url, at_rest.UPLOADS_FOLDER, OWNER, "0" * 32)
    folder.mkdir(parents=True)
    (folder / f"until-{2**33:x}").touch()
    with (folder / f"whole-{'0' * 64}").open("wb") as file:
        file.truncate(UPLOADS_BYTES_MAX)


async def test_what_is_large_is_named_and_the_rest_stays(address: str, url: str) -> None:
    request = build_request("a circle", media={"image": [LARGE, SMALL]})
    async with AsyncClient(address, QUICK) as client:
        uploads = client._uploads
        async with uploads.forms(request) as (lean, whole), uploads.forms(request) as (again, _):
            assert lean == again
            assert whole is request
            assert (lean.prompt, lean.media[1].data, lean.media[0].data) == ("a circle", SMALL, b"")
            assert request.media[0].data == LARGE, "the caller's request stays as it was"
            (stored,) = at_rest.find_all(url)
            assert stored.upload_id == lean.media[0].upload_id
            assert at_rest.read(url, stored) == LARGE


async def test_a_broken_line_costs_a_part_only(address: str, url: str) -> None:
    request = build_request("a circle", media={"image": LARGE})
    async with slow_line(address, 4e6) as line:
        line.breaks_after_up = 3 * 2**20
        async with AsyncClient(line.address, QUICK) as client, client._uploads.forms(request):
            (stored,) = at_rest.find_all(url)
            assert at_rest.read(url, stored) == LARGE
    assert line.connections >= 2
    assert line.up_bytes < len(LARGE) + 2.5 * 2**20, "what was there isn't sent again"


async def test_a_controller_without_uploads_gets_all_in_the_request() -> None:
    request = build_request("a circle", media={"image": LARGE})
    server = await rpc.start_server("127.0.0.1:0", [])
    async with AsyncClient(server.address, QUICK) as client, client._uploads.forms(request) as forms:
        assert forms[0] is request
    await server.stop(0)


async def test_without_a_place_files_go_in_the_request(address: str, controller: Controller, url: str) -> None:
    fill(url)
    async with AsyncClient(address, QUICK) as client, asyncio.timeout(20):
        await client.create_job("a circle", media={"image": LARGE})
    assert controller.requests[0].media[0].data == LARGE


async def test_an_upload_goes_with_its_last_job(address: str, controller: Controller, url: str) -> None:
    controller.full_count, controller.retry_after_s = 1, 1.0  # one of two waits for the backlog, the other is done
    async with AsyncClient(address, QUICK) as client:
        await asyncio.gather(*(client.create_job(name, media={"image": LARGE}) for name in ("first", "second")))
        assert (len(controller.jobs), controller.missed) == (2, 0)
        assert all(one.media[0].upload_id for one in controller.requests)
        assert at_rest.find_all(url) == []


@pytest.mark.parametrize("sizes", [[len(LARGE)], [2**20], [2**20, len(LARGE) - 2**20]])
async def test_who_is_overtaken_looks_again(tmp_path: Path, sizes: list[int]) -> None:
    rest, parts = LARGE, []
    for size in sizes:
        parts.append(rest[:size])
        rest = rest[size:]
    overtaken: Any = Overtaken(Uploads(str(tmp_path)), *parts)
    server = await rpc.start_server(
        "127.0.0.1:0", [(add_FileServiceServicer_to_server, overtaken, "triptych.v1.FileService")]
    )
    request = build_request("a circle", media={"image": LARGE})
    async with AsyncClient(server.address, QUICK) as client, client._uploads.forms(request) as forms:
        (stored,) = at_rest.find_all(str(tmp_path))
        assert (forms[0].media[0].upload_id, overtaken.parts) == (stored.upload_id, [])
        assert at_rest.read(str(tmp_path), stored) == LARGE
    await server.stop(0)


async def test_jobs_with_the_same_file_may_come_at_the_same_time(
    address: str, controller: Controller, url: str
) -> None:
    """As of several processes: each client knows of its own jobs only."""
    clients = [AsyncClient(address, QUICK) for _ in range(6)]
    async with asyncio.timeout(120):
        await asyncio.gather(*(client.create_job("a circle", media={"image": LARGE}) for client in clients))
    assert len(controller.jobs) == len(clients)
    for client in clients:
        await client.close()


@pytest.mark.parametrize("count", [1, subject.UPLOAD_ATTEMPTS_MAX])
async def test_an_upload_that_is_gone_is_sent_anew_and_at_last_in_the_request(
    address: str, controller: Controller, count: int
) -> None:
    controller.loses_uploads = count
    async with AsyncClient(address, QUICK) as client:
        await client.create_job("a circle", media={"image": LARGE})
    is_whole = controller.requests[0].media[0].data == LARGE
    assert (controller.missed, is_whole) == (count, count == subject.UPLOAD_ATTEMPTS_MAX)


@pytest.mark.parametrize("is_full_first", [True, False])
async def test_a_request_id_counts_whichever_way_the_files_go(
    address: str, controller: Controller, url: str, is_full_first: bool
) -> None:
    async def create(is_full: bool) -> str:
        if is_full:
            fill(url)
        async with AsyncClient(address, QUICK) as client:
            job = await client.create_job("a circle", request_id="mine", media={"image": LARGE})
        for stored in at_rest.find_all(url):
            at_rest.remove(url, OWNER, stored.upload_id)
        return job.job_id

    assert await create(is_full_first) == await create(not is_full_first)
    async with AsyncClient(address, QUICK) as client:
        with pytest.raises(AlreadyExists):
            await client.create_job("a square", request_id="mine", media={"image": LARGE})


async def test_an_upload_that_cannot_be_deleted_is_no_fault_of_its_job(address: str, url: str) -> None:
    client = AsyncClient(address, QUICK)
    async with asyncio.timeout(30), client._uploads.forms(build_request("a circle", media={"image": LARGE})):
        await client.close()
    assert len(at_rest.find_all(url)) == 1
