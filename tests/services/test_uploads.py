"""Uploads: pieces become files, of their client's alone, bounded, and jobs keep their bytes."""

from __future__ import annotations

import asyncio
import hashlib
import io
import time
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import PIL.Image
import pytest

from services.controller import uploads as subject
from services.controller.journal_file import digest_of
from tests.services.conftest import Bench, OpenBench
from triptych.errors import (
    AlreadyExists,
    DeadlinePassed,
    InvalidRequest,
    NotFound,
    UploadBusy,
    UploadsFull,
    WrongState,
)
from triptych.media import uploads as at_rest
from triptych.security.identity import ANYONE, Identity, set_caller
from triptych.v1 import file_service_pb2 as pb
from triptych.v1 import generation_service_pb2 as generation_pb
from triptych.v1.job_pb2 import GenerationRequest, Media
from triptych.v1.model_pb2 import INPUT_KIND_IMAGE

ALICE, BOB = (Identity(f"token:{name}", frozenset({"submit", "read"})) for name in ("alice", "bob"))
ID = "0123456789abcdef" * 2
MIB = 2**20


async def stream(*pieces: bytes, end: BaseException | None = None, **first: Any) -> AsyncIterator[pb.UploadFileRequest]:
    """A call's messages, and how it breaks."""
    for number, piece in enumerate(pieces or (b"",)):
        message = pb.UploadFileRequest(**(first if number == 0 else {}))
        message.body.data = piece
        yield message
    if end is not None:
        raise end


async def upload(bench: Bench, *pieces: bytes, client: Identity = ALICE, **fields: Any) -> pb.Upload:
    set_caller(client)
    return (await bench.files.UploadFile(stream(*pieces, **fields), None)).upload


async def found(bench: Bench, upload_id: str, client: Identity = ALICE) -> pb.Upload:
    set_caller(client)
    return (await bench.files.GetUpload(pb.GetUploadRequest(upload_id=upload_id), None)).upload


def picture() -> bytes:
    noise = np.random.default_rng(3).integers(0, 256, (1300, 1300, 3), np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(noise).save(file, "PNG")
    return file.getvalue()


async def test_pieces_become_one_file(open_bench: OpenBench) -> None:
    data = bytes(range(256)) * 16_000
    async with open_bench() as bench:
        made = await upload(bench, data[:100], data[100 : 2 * MIB], data[2 * MIB :])
        assert (made.size_bytes, made.complete, made.sha256) == (len(data), True, hashlib.sha256(data).digest())
        assert await found(bench, made.upload_id) == made
        (stored,) = at_rest.find_all(bench.core.result_url)
        assert at_rest.read(bench.core.result_url, stored) == data
    async with open_bench() as bench:  # after a restart
        assert await found(bench, made.upload_id) == made


async def test_a_call_that_broke_goes_on_where_it_was(open_bench: OpenBench) -> None:
    data = bytes(range(256)) * 12_000
    async with open_bench() as bench:
        set_caller(ALICE)
        broken = stream(data[:MIB], data[MIB : MIB + 100], end=ConnectionError("cut"), upload_id=ID)
        with pytest.raises(ConnectionError):
            await bench.files.UploadFile(broken, None)
        there = await found(bench, ID)
        assert (there.size_bytes, there.complete) == (MIB, False)
        for offset in (0, MIB + 1):
            with pytest.raises(InvalidRequest, match=f"offset_bytes is {offset}; accepted: {MIB}"):
                await upload(bench, data, upload_id=ID, offset_bytes=offset)
    async with open_bench() as bench:
        part = await upload(bench, data[MIB:-1], upload_id=ID, offset_bytes=MIB, size_bytes=len(data))
        assert (part.size_bytes, part.complete) == (len(data) - 1, False)
        made = await upload(bench, data[-1:], upload_id=ID, offset_bytes=len(data) - 1, size_bytes=len(data))
        assert (made.complete, made.sha256) == (True, hashlib.sha256(data).digest())
        with pytest.raises(AlreadyExists):
            await upload(bench, data, upload_id=ID)


async def test_one_broken_while_it_was_made_whole_is_made_whole(open_bench: OpenBench) -> None:
    async with open_bench() as bench:
        url, owner = bench.core.result_url, at_rest.owner_of(ALICE.name)
        stored = at_rest.append(url, at_rest.begin(url, owner, ID, 2**33), b"all of it")
        made = await upload(bench, b"", upload_id=ID, offset_bytes=stored.size_bytes)
        assert (made.complete, made.sha256) == (True, hashlib.sha256(b"all of it").digest())


async def test_another_client_s_are_not_found(open_bench: OpenBench) -> None:
    async with open_bench() as bench:
        bench.model.inputs.add(name="image", kind=INPUT_KIND_IMAGE)
        await upload(bench, b"mine", upload_id=ID)
        for other in (BOB, ANYONE):
            with pytest.raises(NotFound, match=ID):
                await found(bench, ID, other)
            with pytest.raises(NotFound, match=ID):
                await bench.files.DeleteUpload(pb.DeleteUploadRequest(upload_id=ID), None)
            with pytest.raises(NotFound, match=ID):
                await bench.create(other, media=[Media(name="image", upload_id=ID)])
        await upload(bench, b"bob's", client=BOB, upload_id=ID)
        assert (await found(bench, ID)).size_bytes == 4


async def test_a_job_keeps_its_bytes(open_bench: OpenBench) -> None:
    data = picture()
    assert len(data) > 4 * MIB
    async with open_bench() as bench:
        bench.model.inputs.add(name="image", kind=INPUT_KIND_IMAGE)
        await bench.encoder()
        made = await upload(bench, *(data[at : at + MIB] for at in range(0, len(data), MIB)))
        media = [Media(name="image", upload_id=made.upload_id)]
        job = await bench.create(ALICE, "mine", media=media)
        set_caller(ALICE)
        await bench.files.DeleteUpload(pb.DeleteUploadRequest(upload_id=made.upload_id), None)
        request = await bench.journal.get_request(job.job_id)
        assert request.media[0].data == data
        assert (await bench.create(ALICE, "mine", media=media)).job_id == job.job_id, "a repeated call needs no upload"
        with pytest.raises(NotFound):
            await bench.create(ALICE, "another", media=media)


async def test_uploads_are_checked_as_other_media_are(open_bench: OpenBench) -> None:
    async with open_bench() as bench:
        bench.model.inputs.add(name="image", kind=INPUT_KIND_IMAGE)
        await bench.encoder()
        made = await upload(bench, b"no picture")
        with pytest.raises(InvalidRequest, match=r"media\.image"):
            await bench.create(ALICE, media=[Media(name="image", upload_id=made.upload_id)])
        part = await upload(bench, b"x", size_bytes=2)
        with pytest.raises(WrongState, match="isn't complete"):
            await bench.create(ALICE, media=[Media(name="image", upload_id=part.upload_id)])
        with pytest.raises(InvalidRequest, match="either data or upload_id"):
            await bench.create(ALICE, media=[Media(name="image", upload_id=made.upload_id, data=b"x")])
        largest = await upload(bench, *[bytes(2 * MIB)] * 8)
        with pytest.raises(InvalidRequest, match="at most 16777216 bytes in all"):
            await bench.create(ALICE, media=[Media(name="image", upload_id=largest.upload_id)] * 2)


async def test_bounds(open_bench: OpenBench) -> None:
    async with open_bench() as bench:
        for wrong in ("x", ID.upper(), "../" + ID[3:]):
            with pytest.raises(InvalidRequest, match="upload_id"):
                await upload(bench, b"", upload_id=wrong)
        with pytest.raises(InvalidRequest, match="size_bytes"):
            await upload(bench, b"", size_bytes=subject.UPLOAD_BYTES_MAX + 1)
        with pytest.raises(InvalidRequest, match="at most 16777216 bytes in all"):
            await upload(bench, *[bytes(4 * MIB)] * 5)
        with pytest.raises(InvalidRequest, match="at most 3 bytes"):
            await upload(bench, b"four", size_bytes=3)


async def test_a_client_has_a_share(open_bench: OpenBench) -> None:
    async with open_bench() as bench:
        url, owner = bench.core.result_url, at_rest.owner_of(ALICE.name)
        count = subject.UPLOADS_BYTES_MAX // subject.UPLOAD_SHARES // subject.UPLOAD_BYTES_MAX
        for number in range(count):  # each might become as large as the largest
            at_rest.begin(url, owner, f"{number:032x}", 2**33)
        with pytest.raises(UploadsFull, match="'token:alice'"):
            await upload(bench, b"one more")
        await upload(bench, b"another's", client=BOB)
        await upload(bench, b"whole, it takes what it has", upload_id=f"{0:032x}")
        await bench.files.DeleteUpload(pb.DeleteUploadRequest(upload_id=f"{1:032x}"), None)
        await upload(bench, b"one more")


async def test_one_call_writes_an_upload(open_bench: OpenBench) -> None:
    async with open_bench() as bench:
        begun, go_on = asyncio.Event(), asyncio.Event()

        async def slow() -> AsyncIterator[pb.UploadFileRequest]:
            async for message in stream(b"first", upload_id=ID):
                yield message
            begun.set()
            await go_on.wait()

        set_caller(ALICE)
        first = asyncio.create_task(bench.files.UploadFile(slow(), None))
        await begun.wait()
        with pytest.raises(UploadBusy, match="another call"):
            await upload(bench, b"second", upload_id=ID)
        go_on.set()
        assert (await first).upload.complete


async def test_old_ones_go(open_bench: OpenBench) -> None:
    async with open_bench() as bench:
        kept = await upload(bench, b"new")
        at_rest.begin(bench.core.result_url, at_rest.owner_of(ALICE.name), ID, 1)
        with pytest.raises(NotFound):
            await found(bench, ID)
        await bench.core.uploads.prune()
        assert [one.upload_id for one in at_rest.find_all(bench.core.result_url)] == [kept.upload_id]
        assert (await upload(bench, b"again", upload_id=ID)).complete


def test_a_repeated_request_is_told_by_its_upload() -> None:
    by_id = GenerationRequest(prompt="x", media=[Media(name="image", upload_id=ID)])
    filled = GenerationRequest(prompt="x", media=[Media(name="image", upload_id=ID, data=b"bytes")])
    assert digest_of(by_id) == digest_of(filled)
    assert filled.media[0].data == b"bytes"
    assert generation_pb.CreateJobRequest(request=filled).request == filled


async def test_many_mentions_are_refused_before_anything_is_looked_for(open_bench: OpenBench) -> None:
    async with open_bench() as bench:
        with pytest.raises(InvalidRequest, match="media is '24000 files or more'; accepted: at most 64"):
            await bench.create(ALICE, media=[Media(name="image", upload_id=ID)] * 24_000)


async def test_a_trickle_keeps_its_place_no_longer_than_the_upload_is_kept(open_bench: OpenBench) -> None:
    async with open_bench() as bench:
        url, owner = bench.core.result_url, at_rest.owner_of(ALICE.name)
        at_rest.begin(url, owner, ID, int(time.time()) + 2)

        async def trickle() -> AsyncIterator[pb.UploadFileRequest]:
            yield pb.UploadFileRequest(upload_id=ID)
            for _ in range(200):
                await asyncio.sleep(0.05)
                message = pb.UploadFileRequest()
                message.body.data = b"x"
                yield message

        set_caller(ALICE)
        with pytest.raises(DeadlinePassed, match="GetUpload"):
            await bench.files.UploadFile(trickle(), None)
        await bench.core.uploads.prune()
        assert at_rest.find_all(url) == []


def test_a_call_has_the_time_that_its_bytes_take_on_the_slowest_line() -> None:
    begun = at_rest.Stored("owner", ID, 0, b"", 10_000)
    whole_s = subject.call_s_max(begun, subject.UPLOAD_BYTES_MAX, 0.0)
    assert whole_s == pytest.approx(60 + 16 * MIB / 125_000)
    assert subject.call_s_max(begun._replace(size_bytes=8 * MIB), 8 * MIB, 0.0) == 60
    assert subject.call_s_max(begun, subject.UPLOAD_BYTES_MAX, 9_990.0) == 10


async def test_the_refusal_says_how_many_are_written_and_by_whom(open_bench: OpenBench) -> None:
    async with open_bench() as bench:
        go_on = asyncio.Event()

        async def slow() -> AsyncIterator[pb.UploadFileRequest]:
            yield pb.UploadFileRequest()
            await go_on.wait()

        def start(client: Identity, count: int) -> list[asyncio.Task[pb.UploadFileResponse]]:
            set_caller(client)
            return [asyncio.create_task(bench.files.UploadFile(slow(), None)) for _ in range(count)]

        calls = start(ALICE, 16)
        await until_written(bench, 16)
        with pytest.raises(UploadsFull, match=r"16 uploads of client 'token:alice' are being written"):
            await upload(bench, b"one more")
        calls += start(BOB, 16)
        await until_written(bench, 32)
        with pytest.raises(UploadsFull, match=r"32 uploads of all clients are being written"):
            await upload(bench, b"one more", client=Identity("token:carol", frozenset({"submit"})))
        go_on.set()
        await asyncio.gather(*calls)
        made = await upload(bench, b"a place again")
        set_caller(ALICE)
        await bench.files.DeleteUpload(pb.DeleteUploadRequest(upload_id=made.upload_id), None)


async def until_written(bench: Bench, count: int) -> None:
    """Wait until so many uploads are begun."""
    async with asyncio.timeout(60):
        while len(at_rest.find_all(bench.core.result_url)) < count:  # noqa: ASYNC110  (files)
            await asyncio.sleep(0.02)
