"""Large files of a request go ahead of it, once, and on where they broke."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from services.controller.file_service import FileServicer
from services.controller.uploads import Uploads
from tests.slow_line import slow_line
from triptych import rpc
from triptych.media import uploads as at_rest
from triptych.v1.file_service_pb2_grpc import FileServiceStub, add_FileServiceServicer_to_server
from triptych_client.request import build_request
from triptych_client.retry import RetryPolicy
from triptych_client.uploading import UPLOADED_FROM_BYTES, upload_files

LARGE = bytes(range(251)) * (UPLOADED_FROM_BYTES // 250)
SMALL = b"a small one"
QUICK = RetryPolicy(delay_s_initial=0.02, delay_s_max=0.05)


@pytest.fixture
async def address(tmp_path: Path) -> AsyncIterator[str]:
    """A controller's uploads, and nothing else of it."""
    servicer: Any = FileServicer(None, Uploads(str(tmp_path)))  # type: ignore[arg-type]
    server = await rpc.start_server(
        "127.0.0.1:0", [(add_FileServiceServicer_to_server, servicer, "triptych.v1.FileService")]
    )
    yield server.address
    await server.stop(0)


async def test_what_is_large_is_named_and_the_rest_stays(address: str, tmp_path: Path) -> None:
    request = build_request("a circle", media={"image": [LARGE, SMALL]})
    async with rpc.open_channel(address) as channel:
        lean = await upload_files(FileServiceStub(channel), request, QUICK, address)
        again = await upload_files(FileServiceStub(channel), request, QUICK, address)
    assert lean == again
    assert (lean.prompt, lean.media[1].data, lean.media[0].data) == ("a circle", SMALL, b"")
    assert request.media[0].data == LARGE, "the caller's request stays as it was"
    (stored,) = at_rest.find_all(str(tmp_path))
    assert stored.upload_id == lean.media[0].upload_id
    assert at_rest.read(str(tmp_path), stored) == LARGE


async def test_a_broken_line_costs_a_part_only(address: str, tmp_path: Path) -> None:
    request = build_request("a circle", media={"image": LARGE})
    async with slow_line(address, 4e6) as line:
        line.breaks_after_up = 3 * 2**20
        async with rpc.open_channel(line.address) as channel:
            await upload_files(FileServiceStub(channel), request, QUICK, line.address)
    (stored,) = at_rest.find_all(str(tmp_path))
    assert at_rest.read(str(tmp_path), stored) == LARGE
    assert line.connections >= 2
    assert line.up_bytes < len(LARGE) + 2.5 * 2**20, "what was there isn't sent again"


async def test_a_controller_without_uploads_gets_all_in_the_request() -> None:
    request = build_request("a circle", media={"image": LARGE})
    server = await rpc.start_server("127.0.0.1:0", [])
    async with rpc.open_channel(server.address) as channel:
        assert await upload_files(FileServiceStub(channel), request, QUICK, server.address) is request
    await server.stop(0)
