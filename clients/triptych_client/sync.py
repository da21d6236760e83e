"""The client for code without asyncio: `AsyncClient`, driven in a thread of its own."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TypeVar, Unpack

from triptych.config import ClientAccess
from triptych.v1 import fleet_service_pb2, generation_service_pb2, job_pb2, model_pb2
from triptych_client.client import PAGE_SIZE, AsyncClient, Watcher
from triptych_client.jobs import Generated
from triptych_client.loop_thread import LoopThread
from triptych_client.request import GenerationFields
from triptych_client.retry import RetryPolicy

Item = TypeVar("Item")


class Client:
    """A connection to a controller. Methods, results and errors are those of `AsyncClient`.

    May be used by several threads at once.
    """

    def __init__(self, endpoint: str, retry: RetryPolicy | None = None, access: ClientAccess | None = None) -> None:
        self._loop = LoopThread("triptych-client")
        try:
            self._client = self._loop.run(_open(endpoint, retry, access))
        except BaseException:
            self._loop.close()
            raise

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection and end the thread."""
        self._loop.run(self._client.close())
        self._loop.close()

    def create_job(self, prompt: str = "", *, request_id: str = "", **fields: Unpack[GenerationFields]) -> job_pb2.Job:
        """See `AsyncClient.create_job`."""
        return self._loop.run(self._client.create_job(prompt, request_id=request_id, **fields))

    def submit(self, request: job_pb2.GenerationRequest, request_id: str = "") -> job_pb2.Job:
        """See `AsyncClient.submit`."""
        return self._loop.run(self._client.submit(request, request_id))

    def get_job(self, job_id: str) -> job_pb2.Job:
        """See `AsyncClient.get_job`."""
        return self._loop.run(self._client.get_job(job_id))

    def list_jobs(
        self,
        states: Iterable[job_pb2.JobState.ValueType] = (),
        page_size: int = PAGE_SIZE,
        *,
        dead_letters_only: bool = False,
    ) -> Iterator[job_pb2.Job]:
        """See `AsyncClient.list_jobs`."""
        return self._iterate(self._client.list_jobs(states, page_size, dead_letters_only=dead_letters_only))

    def watch_job(
        self, job_id: str, timeout_s: float | None = None
    ) -> Iterator[generation_service_pb2.WatchJobResponse]:
        """See `AsyncClient.watch_job`."""
        return self._iterate(self._client.watch_job(job_id, timeout_s))

    def cancel_job(self, job_id: str) -> job_pb2.Job:
        """See `AsyncClient.cancel_job`."""
        return self._loop.run(self._client.cancel_job(job_id))

    def retry_job(self, job_id: str) -> job_pb2.Job:
        """See `AsyncClient.retry_job`."""
        return self._loop.run(self._client.retry_job(job_id))

    def discard_jobs(self, model_digest: str) -> int:
        """See `AsyncClient.discard_jobs`."""
        return self._loop.run(self._client.discard_jobs(model_digest))

    def download_result(self, job_id: str, path: Path | str, artifact_index: int = 0) -> Path:
        """See `AsyncClient.download_result`."""
        return self._loop.run(self._client.download_result(job_id, path, artifact_index))

    def download_results(self, job: job_pb2.Job, path: Path | str) -> tuple[Path, ...]:
        """See `AsyncClient.download_results`."""
        return self._loop.run(self._client.download_results(job, path))

    def describe_model(self) -> model_pb2.ModelDescription:
        """See `AsyncClient.describe_model`."""
        return self._loop.run(self._client.describe_model())

    def get_fleet(self) -> fleet_service_pb2.GetFleetResponse:
        """See `AsyncClient.get_fleet`."""
        return self._loop.run(self._client.get_fleet())

    def generate(
        self,
        prompt: str,
        path: Path | str,
        *,
        request_id: str = "",
        on_update: Watcher | None = None,
        **fields: Unpack[GenerationFields],
    ) -> Generated:
        """See `AsyncClient.generate`. `on_update` is called in the client's thread."""
        return self._loop.run(self._client.generate(prompt, path, request_id=request_id, on_update=on_update, **fields))

    def _iterate(self, items: AsyncGenerator[Item, None]) -> Generator[Item, None, None]:
        try:
            while True:
                try:
                    item = self._loop.run(_next(items))
                except StopAsyncIteration:
                    return
                yield item
        finally:
            self._loop.run(items.aclose())


async def _open(endpoint: str, retry: RetryPolicy | None, access: ClientAccess | None) -> AsyncClient:
    return AsyncClient(endpoint, retry, access)  # in the loop, because gRPC binds a channel to the running one


async def _next(items: AsyncGenerator[Item, None]) -> Item:
    return await anext(items)
