"""When a request's media are looked at: last, within the client's quota, once, and each client in turn."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from typing import Any

import psutil
import pytest
from google.protobuf.struct_pb2 import Struct
from PIL import Image

from services.controller.admission import REPEATED_CALLS_MAX
from services.controller.media_checks import CHECK_BYTES_MAX, CHECKS_MAX
from services.controller.shares import FairThreads
from tests.fleet.processes import wait_until
from tests.media.decoding import files
from tests.services.conftest import Bench, OpenBench
from triptych.errors import AlreadyExists, ChecksFull, InvalidRequest, QuotaFull
from triptych.security.identity import Identity
from triptych.v1.fleet_service_pb2 import StartDirectJobRequest
from triptych.v1.job_pb2 import Media
from triptych.v1.model_pb2 import INPUT_KIND_IMAGE, INPUT_KIND_INTEGER, INPUT_KIND_VIDEO

WAIT_S = 60.0
SLOW = files.jpeg_turned(8192)
"""Takes about a second."""


@pytest.fixture
async def bench(open_bench: OpenBench) -> AsyncIterator[Bench]:
    """A controller whose model takes pictures."""
    async with open_bench() as opened:
        opened.model.inputs.add(name="image", kind=INPUT_KIND_IMAGE, default_json="null")
        yield opened


def client(name: str, jobs_max: int = 0) -> Identity:
    return Identity(name, frozenset(("submit", "read")), jobs_max)


def media(*data: bytes) -> dict[str, Any]:
    return {"media": [Media(name="image", data=one) for one in data]}


def decoders() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "triptych.media.decoding.child" in child.cmdline()]


async def begun(bench: Bench) -> None:
    """Return when a check is in a child's hands."""

    def is_busy() -> bool:
        return any(child.cpu_times().user > 0.3 for child in decoders())

    await asyncio.to_thread(wait_until, is_busy, WAIT_S, "a child decodes")


async def test_nothing_is_decoded_of_what_is_refused_for_anything_else(bench: Bench) -> None:
    small = client("small", jobs_max=1)
    await bench.create(small)
    with pytest.raises(QuotaFull):
        await bench.create(small, **media(SLOW))
    with pytest.raises(InvalidRequest, match="prompt"):
        await bench.create(client("other"), prompt="", **media(SLOW))
    with pytest.raises(InvalidRequest, match="transformer_rank"):
        await bench.create(client("other"), transformer_rank=77, **media(SLOW))
    with pytest.raises(InvalidRequest, match="request_id"):
        await bench.create(client("other"), request_id="x" * 1000, **media(SLOW))
    assert decoders() == []


async def test_frames_count_as_large_as_the_request_wants_them(bench: Bench) -> None:
    """Small frames are little, until a pipeline brings each to the request's size."""
    bench.model.inputs.add(name="video", kind=INPUT_KIND_VIDEO, default_json="null")
    for side in ("height", "width"):
        bench.model.inputs.add(name=side, kind=INPUT_KIND_INTEGER, default_json="64")
    clip = [Media(name="video", data=files.mp4(frames=5))]
    await bench.create(client("a"), media=clip)
    with pytest.raises(InvalidRequest, match="as the request asks for"):
        await bench.create(client("a"), media=clip, height=8192, width=8192)


async def test_a_mask_that_a_pipeline_crops_to_shows_something(bench: Bench) -> None:
    """Else the crop has no size, and the job would fail at its encoder. Without a crop a black mask changes nothing."""
    bench.model.inputs.add(name="mask_image", kind=INPUT_KIND_IMAGE, default_json="null")
    bench.model.inputs.add(name="padding_mask_crop", kind=INPUT_KIND_INTEGER, default_json="null")
    crop = Struct()
    crop["padding_mask_crop"] = 4
    black = [Media(name="mask_image", data=files.png(8, 8))]
    await bench.create(client("a"), media=black)
    await bench.create(client("a"), media=[Media(name="image", data=black[0].data)], parameters=crop)
    with pytest.raises(InvalidRequest, match=r"media\.mask_image.*black.*padding_mask_crop"):
        await bench.create(client("a"), media=black, parameters=crop)
    shown = io.BytesIO()
    Image.new("L", (8, 8), 255).save(shown, "PNG")
    await bench.create(client("a"), media=[Media(name="mask_image", data=shown.getvalue())], parameters=crop)


async def test_a_known_request_id_needs_no_check(open_bench: OpenBench) -> None:
    async with open_bench() as first:
        first.model.inputs.add(name="image", kind=INPUT_KIND_IMAGE, default_json="null")
        job = await first.create(client("a"), "one", **media(SLOW))
    async with open_bench() as again:  # as after a restart
        again.model.inputs.add(name="image", kind=INPUT_KIND_IMAGE, default_json="null")
        assert (await again.create(client("a"), "one", **media(SLOW))).job_id == job.job_id
        with pytest.raises(AlreadyExists):
            await again.create(client("a"), "one", **media(b"another"))
        assert decoders() == []


async def test_a_repeated_call_joins_the_check_that_is_under_way(bench: Bench) -> None:
    """Also of a client that may have one job only: it is one job."""
    calls = [bench.create(client("a", jobs_max=1), "one", **media(SLOW)) for _ in range(REPEATED_CALLS_MAX)]
    jobs = await asyncio.wait_for(asyncio.gather(*calls), WAIT_S)
    assert len({job.job_id for job in jobs}) == 1
    (child,) = decoders()
    with pytest.raises(QuotaFull):
        await bench.create(client("a", jobs_max=1), "two", **media(SLOW))
    calls = [bench.create(client("b"), "one", **media(b"broken")) for _ in range(REPEATED_CALLS_MAX + 1)]
    found = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), WAIT_S)
    assert {type(one) for one in found} == {InvalidRequest, ChecksFull}
    assert child.is_running()


async def test_what_was_found_is_remembered_for_the_same_client(bench: Bench) -> None:
    await bench.create(client("a"), **media(SLOW))
    (child,) = decoders()
    used_s = child.cpu_times().user
    jobs = [await bench.create(client("a"), **media(SLOW)) for _ in range(5)]
    assert len({job.job_id for job in jobs}) == 5
    assert child.cpu_times().user < used_s + 0.1
    for _ in range(2):
        with pytest.raises(InvalidRequest, match=r"media\.image"):
            await bench.create(client("a"), **media(files.png(16_000, 16_000)))


async def test_a_place_is_kept_while_files_are_checked(bench: Bench) -> None:
    slow = asyncio.create_task(bench.create(client("a", jobs_max=1), **media(SLOW)))
    await begun(bench)
    with pytest.raises(QuotaFull):
        await bench.create(client("a", jobs_max=1))
    await asyncio.wait_for(slow, WAIT_S)


async def test_one_client_has_one_of_two_places_and_half_of_those_who_wait(bench: Bench) -> None:
    """And others aren't held up: neither their files nor what has none."""
    pictures = [SLOW + bytes([number]) for number in range(CHECKS_MAX)]  # all of them are new
    flood = [asyncio.create_task(bench.create(client("a"), **media(one))) for one in pictures]
    await begun(bench)
    await asyncio.wait_for(bench.create(client("b")), WAIT_S)
    await asyncio.wait_for(bench.create(client("b"), **media(files.png(8, 8))), WAIT_S)
    assert sum(not call.done() for call in flood) > CHECKS_MAX // 2 - 5, "far from done"
    refused = [call for call in flood if call.done() and isinstance(call.exception(), ChecksFull)]
    assert len(refused) == CHECKS_MAX // 2
    assert len(decoders()) == 2
    bench.media.close()
    await asyncio.wait_for(asyncio.gather(*flood, return_exceptions=True), WAIT_S)


async def test_bytes_that_wait_are_bounded(bench: Bench) -> None:
    large = SLOW + bytes(CHECK_BYTES_MAX // 5)
    flood = [asyncio.create_task(bench.create(client("a"), **media(large + bytes([n])))) for n in range(3)]
    await begun(bench)
    refused = [call for call in flood if call.done() and isinstance(call.exception(), ChecksFull)]
    assert len(refused) == 1, "three fifths are more than half"
    await asyncio.wait_for(bench.create(client("b"), **media(files.png(8, 8))), WAIT_S)
    await asyncio.wait_for(asyncio.gather(*flood, return_exceptions=True), WAIT_S)


async def test_direct_jobs_are_checked_in_the_same_order(bench: Bench) -> None:
    rank = await bench.encoder()
    request = StartDirectJobRequest(rank=rank, request_id="one", client="a", jobs_max=1)
    request.request.prompt = ""
    request.request.media.add(name="image", data=SLOW)
    who = client("a", jobs_max=1)
    with pytest.raises(InvalidRequest, match="prompt"):
        await bench.controller.lifecycle.start_direct(rank, "one", request.request, who)
    assert decoders() == []
    request.request.prompt = "a circle"
    calls = [bench.controller.lifecycle.start_direct(rank, "one", request.request, who) for _ in range(3)]
    answers = await asyncio.wait_for(asyncio.gather(*calls), WAIT_S)
    assert len({job.job_id for job in answers}) == 1


async def test_threads_are_shared_by_turns_and_waits_are_bounded() -> None:
    """One client's work takes its share; another's goes on beside it."""
    threads = FairThreads("test", 2, 1)
    gate = asyncio.Event()
    loop = asyncio.get_running_loop()

    def held() -> None:
        asyncio.run_coroutine_threadsafe(gate.wait(), loop).result(WAIT_S)

    waiting = [asyncio.create_task(threads.run("a", held)) for _ in range(5)]
    assert await asyncio.wait_for(threads.run("b", lambda: 7), WAIT_S) == 7
    with pytest.raises(TimeoutError):
        await threads.run("a", lambda: 7, wait_s=0.05)
    gate.set()
    await asyncio.wait_for(asyncio.gather(*waiting), WAIT_S)
    assert await threads.run("a", lambda: 7) == 7
    threads.close()
