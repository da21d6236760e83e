"""The client for code without asyncio: `AsyncClient`, driven in a thread of its own."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from concurrent.futures import CancelledError
from typing import Any, Concatenate, ParamSpec, TypeAlias, TypeVar

from triptych.environment import ClientAccess
from triptych_client.client import AsyncClient
from triptych_client.retry import RetryPolicy, closed

Item = TypeVar("Item")
Args = ParamSpec("Args")
_Method: TypeAlias = "Callable[Concatenate[Client, Args], Item]"


def _method(method: Callable[Concatenate[AsyncClient, Args], Coroutine[Any, Any, Item]]) -> _Method[Args, Item]:
    """The method for callers without a loop."""

    @functools.wraps(method)
    def run(client: Client, /, *args: Args.args, **named: Args.kwargs) -> Item:
        return client._loop.run(method(client._client, *args, **named))

    return run


def _iterator(
    method: Callable[Concatenate[AsyncClient, Args], AsyncGenerator[Item, None]],
) -> _Method[Args, Iterator[Item]]:
    """The same for a method that yields."""

    @functools.wraps(method)
    def run(client: Client, /, *args: Args.args, **named: Args.kwargs) -> Iterator[Item]:
        items = method(client._client, *args, **named)
        try:
            while True:
                try:
                    item = client._loop.run(_next(items))
                except StopAsyncIteration:
                    return
                yield item
        finally:
            client._loop.run(items.aclose())

    return run


class _LoopThread:
    """An event loop in a thread of its own. Contexts (and with them traces) follow the caller."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._lock = threading.Lock()
        self._is_closed = False
        """Under the lock, so that nothing is begun that `close` doesn't see."""
        self._thread = threading.Thread(target=self._loop.run_forever, name="triptych-client", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, Item]) -> Item:
        """Run a coroutine and return its result or raise its error. An interrupted caller cancels it."""
        with self._lock:
            if self._is_closed:
                coroutine.close()
                raise closed()
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except CancelledError as error:  # by `close`
            raise closed() from error
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """Stop the loop and wait for the thread. What other threads have run ends with WrongState."""
        with self._lock:
            self._is_closed = True
        asyncio.run_coroutine_threadsafe(_cancel_others(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class Client:
    """A connection to a controller. Methods, results and errors are those of `AsyncClient`.

    Several threads may use it at the same time. `on_update` of `generate` is called in the client's own thread.
    """

    def __init__(
        self,
        endpoint: str,
        retry: RetryPolicy | None = None,
        access: ClientAccess | None = None,
        proxy: str | None = None,
    ) -> None:
        self._loop = _LoopThread()
        try:
            self._client = self._loop.run(_open(endpoint, retry, access, proxy))
        except BaseException:
            self._loop.close()
            raise

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection and end the thread."""
        self._loop.run(self._client.close())
        self._loop.close()

    create_job = _method(AsyncClient.create_job)
    submit = _method(AsyncClient.submit)
    get_job = _method(AsyncClient.get_job)
    list_jobs = _iterator(AsyncClient.list_jobs)
    watch_job = _iterator(AsyncClient.watch_job)
    cancel_job = _method(AsyncClient.cancel_job)
    retry_job = _method(AsyncClient.retry_job)
    discard_jobs = _method(AsyncClient.discard_jobs)
    download_result = _method(AsyncClient.download_result)
    download_results = _method(AsyncClient.download_results)
    describe_model = _method(AsyncClient.describe_model)
    get_fleet = _method(AsyncClient.get_fleet)
    generate = _method(AsyncClient.generate)


async def _open(
    endpoint: str, retry: RetryPolicy | None, access: ClientAccess | None, proxy: str | None
) -> AsyncClient:
    return AsyncClient(endpoint, retry, access, proxy)  # in the loop, because gRPC binds a channel to the running one


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


async def _next(items: AsyncGenerator[Item, None]) -> Item:
    return await anext(items)
