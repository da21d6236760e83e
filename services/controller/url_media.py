"""Media by URL: fetched before the job is accepted, so that the job holds their bytes and needs the URL no more."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator

from triptych import limits
from triptych.config import ControllerConfig
from triptych.errors import ChecksFull, InvalidRequest
from triptych.media import fetching
from triptych.media.fetching import Deadline
from triptych.media.urls import UrlRules
from triptych.model import trees
from triptych.v1.job_pb2 import GenerationRequest, Media

from .shares import FairThreads, counted

FETCH_THREADS = 4
"""Files fetched at a time; a client that has a name has half."""
FETCHES_MAX = 64
"""Calls that fetch or wait for a turn."""
FETCH_SHARES = 2
"""One client may have this part of them: half."""
FETCH_WAIT_S_MAX = 20.0
"""Longest wait for a turn. Then the caller is told to come again."""


class UrlMedia:
    """Used on the event loop."""

    def __init__(self, config: ControllerConfig) -> None:
        """Raises InvalidRequest for settings that name no schemes of this machine."""
        self._rules = rules_of(config)
        self._seconds = config.media_url_s
        self._threads = FairThreads("urls", FETCH_THREADS, FETCH_THREADS // 2)
        self._calls: Counter[str] = Counter()

    async def fill(self, client: str, request: GenerationRequest, size_bytes: int) -> int:
        """Put the bytes of its URLs into a request of `size_bytes`, and return how many bytes these are.

        Raises InvalidRequest for what can't be fetched, ChecksFull. All URLs are checked before the first is fetched.
        """
        wanted = by_url(request)
        if not wanted:
            return 0
        for place, media in wanted:
            self._rules.check(f"{place}.url", media.url)
        added = 0
        with self._place(client):
            deadline = Deadline(self._seconds)
            found: dict[str, bytes] = {}
            for place, media in wanted:
                if media.url not in found:
                    left = limits.REQUEST_BYTES_MAX + limits.LARGE_BYTES - size_bytes - added
                    found[media.url] = await self._fetch(client, f"{place}.url", media.url, left, deadline)
                data = found[media.url]
                added += len(data)
                if size_bytes + added > limits.REQUEST_BYTES_MAX + limits.LARGE_BYTES:
                    shown = f"{added} bytes by URLs in a request of {size_bytes} bytes"
                    raise InvalidRequest(f"{place}.url", shown, f"at most {limits.REQUEST_BYTES_MAX} bytes in all")
                media.data = data
        return added

    async def _fetch(self, client: str, field: str, url: str, bytes_max: int, deadline: Deadline) -> bytes:
        def work() -> bytes:
            return fetching.fetch(field, url, self._rules, bytes_max, deadline)

        try:
            return await self._threads.run(client, work, wait_s=FETCH_WAIT_S_MAX)
        except TimeoutError as error:
            raise ChecksFull(f"URLs wait to be fetched for {FETCH_WAIT_S_MAX:g} s; try again later") from error

    @contextlib.contextmanager
    def _place(self, client: str) -> Iterator[None]:
        shares = FETCH_SHARES if client else 1
        for who, count, share in (
            ("all clients", self._calls.total(), 1),
            (f"client {client!r}", self._calls[client], shares),
        ):
            if count >= FETCHES_MAX // share:
                raise ChecksFull(f"the URLs of {count} requests of {who} are being fetched; try again later")
        with counted(self._calls, client):
            yield


def rules_of(config: ControllerConfig) -> UrlRules:
    """The rules that the settings say. Raises InvalidRequest for schemes that can't be fetched here."""
    rules = UrlRules.parse(
        config.media_url_schemes, config.media_url_hosts, takes_private=config.media_url_private == "allow"
    )
    fetching.check_schemes(rules)
    return rules


def by_url(request: GenerationRequest) -> list[tuple[str, Media]]:
    """The media by URL of a request of checked size, with their fields. Raises InvalidRequest for two ways at once."""
    found = []
    for place, leaf in trees.file_leaves(request):
        if isinstance(leaf, Media) and leaf.url:
            if leaf.data or leaf.upload_id:
                raise InvalidRequest(f"{place}.url", leaf.url, "one of data, upload_id and url")
            found.append((place, leaf))
    return found
