"""Media by URL: fetched before a job is accepted, as the controller's settings allow, from a real server."""

from __future__ import annotations

import asyncio
import http.server
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from services.controller.url_media import FETCH_THREADS, FETCHES_MAX
from tests.fleet.processes import wait_until
from tests.media.decoding import files
from tests.services.conftest import Bench, OpenBench
from triptych import limits
from triptych.errors import AlreadyExists, ChecksFull, InvalidRequest, QuotaFull
from triptych.security.identity import Identity
from triptych.v1.job_pb2 import InputList, InputValue, Media
from triptych.v1.model_pb2 import INPUT_KIND_IMAGE

PICTURE = files.png(8, 8)
HOST = "127.0.0.1"


class Server(http.server.ThreadingHTTPServer):
    """Callers that go away are no error."""

    def handle_error(self, *_arguments: object) -> None:
        """Nothing."""


class Web:
    """A server of one picture, which counts what is asked of it and can hold its answers back."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.body = PICTURE
        self.goes_on = threading.Event()
        self.goes_on.set()
        web = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                web.asked.append(self.path)
                web.goes_on.wait(60)
                self.send_response(200 if "missing" not in self.path else 404)
                self.send_header("Content-Length", str(len(web.body)))
                self.end_headers()
                self.wfile.write(web.body)

            def log_message(self, *_arguments: object) -> None:
                """Nothing."""

        self._server = Server((HOST, 0), Handler)
        self.place = f"{HOST}:{self._server.server_address[1]}"

    def media(self, path: str = "cat.png") -> dict[str, Any]:
        return {"media": [Media(name="image", url=f"http://{self.place}/{path}")]}

    @contextmanager
    def serving(self) -> Iterator[Web]:
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        with self._server:
            yield self
            self.goes_on.set()
            self._server.shutdown()
            thread.join()


@pytest.fixture
def web() -> Iterator[Web]:
    with Web().serving() as serving:
        yield serving


@pytest.fixture
async def bench(open_bench: OpenBench, web: Web) -> AsyncIterator[Bench]:
    """A controller that fetches from the server, and whose model takes a picture."""
    settings = {"media_url_schemes": "http", "media_url_hosts": web.place, "media_url_private": "allow"}
    async with open_bench(**settings) as opened:
        opened.model.inputs.add(name="image", kind=INPUT_KIND_IMAGE, default_json="null")
        yield opened


async def test_a_job_holds_the_bytes_that_its_url_gave(bench: Bench, web: Web) -> None:
    job = await bench.create(**web.media())
    request = await bench.journal.get_request(job.job_id)
    assert request is not None
    assert request.media[0].data == PICTURE
    assert web.asked == ["/cat.png"]


async def test_files_in_trees_come_by_url_too_and_each_url_once(bench: Bench, web: Web) -> None:
    bench.model.inputs.add(name="images", kind=INPUT_KIND_IMAGE, takes_several=True, default_json="null")
    file = InputValue(media=Media(url=f"http://{web.place}/cat.png"))
    job = await bench.create(inputs={"images": InputValue(list_value=InputList(items=[file, file]))})
    request = await bench.journal.get_request(job.job_id)
    assert request is not None
    assert [item.media.data for item in request.inputs["images"].list_value.items] == [PICTURE, PICTURE]
    assert web.asked == ["/cat.png"]


async def test_errors_name_the_files_url(bench: Bench, web: Web) -> None:
    with pytest.raises(InvalidRequest, match=r"^media.image.url is .*404"):
        await bench.create(**web.media("missing.png"))
    file = InputValue(media=Media(url="http://elsewhere.example/cat.png"))
    with pytest.raises(InvalidRequest, match=r"^inputs.image.url is .*accepted: a URL of 127.0.0.1"):
        await bench.create(inputs={"image": file})
    web.body = b"no picture"
    with pytest.raises(InvalidRequest, match=r"^media.image is .*the bytes of a whole picture"):
        await bench.create(**web.media())


async def test_one_way_to_give_a_file(bench: Bench, web: Web) -> None:
    both = Media(name="image", url=f"http://{web.place}/cat.png", data=PICTURE)
    with pytest.raises(InvalidRequest, match=r"^media.image.url is .*one of data, upload_id and url"):
        await bench.create(media=[both])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "this fleet fetches no URLs"),
        ({"media_url_schemes": "https"}, "a URL of the schemes https"),
        ({"media_url_schemes": "http"}, "at its scheme's own port"),
    ],
)
async def test_what_settings_do_not_allow_is_refused(
    open_bench: OpenBench, web: Web, settings: dict[str, str], said: str
) -> None:
    async with open_bench(**settings) as opened:
        opened.model.inputs.add(name="image", kind=INPUT_KIND_IMAGE, default_json="null")
        with pytest.raises(InvalidRequest, match=rf"^media.image.url is .*{said}"):
            await opened.create(**web.media())
    assert web.asked == []


async def test_an_address_that_is_not_public_needs_a_setting(open_bench: OpenBench, web: Web) -> None:
    async with open_bench(media_url_schemes="http", media_url_hosts=web.place) as opened:
        opened.model.inputs.add(name="image", kind=INPUT_KIND_IMAGE, default_json="null")
        with pytest.raises(InvalidRequest, match=r"^media.image.url is .*whose address isn't public"):
            await opened.create(**web.media())
    assert web.asked == []


async def test_nothing_is_fetched_of_what_is_refused_for_anything_else(bench: Bench, web: Web) -> None:
    small = Identity("small", frozenset(("submit", "read")), 1)
    await bench.create(small)
    with pytest.raises(QuotaFull):
        await bench.create(small, **web.media())
    with pytest.raises(InvalidRequest, match="prompt"):
        await bench.create(prompt="", **web.media())
    with pytest.raises(InvalidRequest, match="transformer_rank"):
        await bench.create(transformer_rank=77, **web.media())
    second = Media(name="image", url="ftp://example.org/cat.png")
    bench.model.inputs[-1].takes_several = True
    with pytest.raises(InvalidRequest, match="ftp"):
        await bench.create(media=[*web.media()["media"], second])
    assert web.asked == []


async def test_a_repeated_call_fetches_nothing_and_another_url_is_another_request(bench: Bench, web: Web) -> None:
    job = await bench.create(request_id="one", **web.media())
    web.body = files.png(9, 9)  # what the URL gives by now doesn't matter
    assert (await bench.create(request_id="one", **web.media())).job_id == job.job_id
    assert web.asked == ["/cat.png"]
    with pytest.raises(AlreadyExists):
        await bench.create(request_id="one", **web.media("dog.png"))


async def test_all_that_a_request_holds_is_bounded(bench: Bench, web: Web) -> None:
    web.body = bytes(limits.REQUEST_BYTES_MAX + limits.LARGE_BYTES)
    with pytest.raises(InvalidRequest, match=r"^media.image.url is .*at most"):
        await bench.create(**web.media())


async def test_fetched_bytes_count_for_a_clients_quota(open_bench: OpenBench, web: Web) -> None:
    settings = {"media_url_schemes": "http", "media_url_hosts": web.place, "media_url_private": "allow"}
    web.body = PICTURE + bytes(5000)  # what follows a PNG is no part of it
    async with open_bench(**settings, client_bytes_max=9000) as opened:
        opened.model.inputs.add(name="image", kind=INPUT_KIND_IMAGE, default_json="null")
        await opened.create(**web.media())
        with pytest.raises(QuotaFull, match="client_bytes_max"):
            await opened.create(**web.media("dog.png"))
    assert len(web.asked) == 2


async def test_a_server_that_is_too_slow_for_the_setting_is_left(open_bench: OpenBench, web: Web) -> None:
    web.goes_on.clear()
    settings = {"media_url_schemes": "http", "media_url_hosts": web.place, "media_url_private": "allow"}
    async with open_bench(**settings, media_url_s=0.3) as opened:
        opened.model.inputs.add(name="image", kind=INPUT_KIND_IMAGE, default_json="null")
        with pytest.raises(InvalidRequest, match=r"^media.image.url is .*within 0.3 s"):
            await opened.create(**web.media())


async def test_calls_that_fetch_are_bounded_in_all_and_for_each_client(bench: Bench, web: Web) -> None:
    """One client has half of the threads; more calls than there may be are told to come again."""
    web.goes_on.clear()
    one = Identity("one", frozenset(("submit", "read")), 0)
    calls = [asyncio.create_task(bench.create(one, **web.media(f"{n}.png"))) for n in range(FETCHES_MAX // 2)]
    await asyncio.to_thread(
        wait_until, lambda: len(web.asked) == FETCH_THREADS // 2, 60, "it fetches as much as it may"
    )
    with pytest.raises(ChecksFull, match="the URLs of 32 requests of client 'one'"):
        await bench.create(one, **web.media("more.png"))
    other = asyncio.create_task(bench.create(Identity("other", frozenset(("submit", "read")), 0), **web.media("x.png")))
    await asyncio.to_thread(wait_until, lambda: "/x.png" in web.asked, 60, "another client's file is fetched")
    assert len(web.asked) == FETCH_THREADS // 2 + 1
    web.goes_on.set()
    await asyncio.gather(other, *calls)
