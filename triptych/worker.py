"""The loop of every worker, whatever its role: claim -> fetch -> run stage -> store -> publish -> ack.

It joins the three planes, which know nothing of each other: control (`link`), queue (`rings`), bulk (`transport`).

Thread rule: the loop lives on the event loop; the stage, the codec and everything else that touches tensors run in
one thread of their own. `Running` is what both see; each of its fields is written by one side only.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from triptych import codec, ids, media, results, telemetry
from triptych.config import WorkerConfig
from triptych.errors import (
    ArenaFull,
    DeadlinePassed,
    Fenced,
    InvalidRequest,
    JobCancelled,
    LeaseLost,
    RingFull,
    TransferFailed,
    TriptychError,
    Unavailable,
)
from triptych.link import Link
from triptych.rings.ring import Claimed, Ring
from triptych.roles import NEXT, RING_OF, ring_name, role_name
from triptych.running import PhaseReporter, Running
from triptych.stages import Stage, Step, request_inputs
from triptych.transport import room as rooms
from triptych.transport.arena import Arena
from triptych.transport.fetcher import Fetcher
from triptych.v1 import fleet_service_pb2, worker_pb2
from triptych.v1.dispatch_pb2 import ROLE_DECODER, ROLE_ENCODER, Dispatch
from triptych.v1.job_pb2 import Artifact, GenerationRequest
from triptych.v1.model_pb2 import ModelDescription
from triptych.v1.room_pb2 import Manifest, RoomRef

log = logging.getLogger(__name__)

CLAIM_WAIT_S = 30.0
"""One claim waits so long at the controller: twice a minute costs nothing, and a lost controller is noticed."""
RETRY_PAUSE_S = 0.2
"""Pause before asking a full ring or a missing controller again."""
SPACE_WAIT_S = 1.0
"""Bound of one wait for arena space; between two, the worker looks whether its job is still wanted."""
TENSORS_SHOWN_MAX = 8
"""Tensors named in a dispatch. The manifest has all; these are for people, and a slot is 4 KiB."""


Result = TypeVar("Result")


class Worker:
    """One stage, one arena, one job at a time."""

    def __init__(
        self,
        config: WorkerConfig,
        stage: Stage,
        model: ModelDescription,
        arena: Arena,
        fetcher: Fetcher,
        mooncake_session: str,
        address: str,
        metrics: telemetry.Metrics,
    ) -> None:
        self._config, self._stage, self._model = config, stage, model
        self._arena, self._fetcher, self._mooncake = arena, fetcher, mooncake_session
        self._address = address
        self._metrics = metrics
        self._instance_id = ids.new_instance_id()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="stage")
        self._room_counter = 0
        self._room_bytes_expected = 0
        self._running: Running | None = None
        self._direct: asyncio.Queue[Claimed] = asyncio.Queue()
        self._full = False
        self._fetch_count: dict[str, int] = {}
        self.draining = asyncio.Event()

    def connect(self, link: Link, source: Ring, sink: Ring | None) -> None:
        """Tie the worker to its controller and rings; `sink` is None for decoders."""
        self.link, self._source, self._sink = link, source, sink

    # -- what the link asks ---------------------------------------------------------------------------------------

    def describe(self) -> fleet_service_pb2.RegisterWorkerRequest:
        """See `link.Member`."""
        request = fleet_service_pb2.RegisterWorkerRequest(
            instance_id=self._instance_id,
            role=self._stage.role,
            address=self._address,
            host_id=self._arena.host_id,
            model=self._model,
            room_ids=self._arena.rooms(),
            arena_size_bytes=self._arena.size_bytes,
            process_id=os.getpid(),
            parameter_bytes=self._stage.parameter_bytes,
        )
        if self._running is not None and not self._running.lost:
            request.running.dispatch.CopyFrom(self._running.dispatch)
            request.running.lease.CopyFrom(self._running.claimed.lease)
        return request

    def report(self) -> fleet_service_pb2.HeartbeatRequest:
        """See `link.Member`."""
        report = fleet_service_pb2.HeartbeatRequest(
            state=self._state(),
            arena_used_bytes=self._arena.used_bytes,
            room_count=len(self._arena.rooms()),
        )
        if (running := self._running) is not None:
            report.progress.job_id = running.dispatch.job_id
            report.progress.generation = running.dispatch.generation
            report.progress.step, report.progress.step_count = running.step, running.step_count
            report.progress.preview_png, running.preview_png = running.preview_png, b""
        return report

    def registered(self, response: fleet_service_pb2.RegisterWorkerResponse) -> None:
        """See `link.Member`."""
        kept = 0
        if (running := self._running) is not None:
            if response.HasField("adopted_lease"):
                running.claimed = running.claimed._replace(lease=response.adopted_lease)
                running.epoch = response.epoch
                kept = running.room_id  # made, but the controller hasn't heard of it yet
            else:
                running.lost = running.stop = True
        for room_id in response.release_room_ids:
            if room_id != kept:
                self._arena.release(room_id)

    def obey(self, orders: fleet_service_pb2.HeartbeatResponse) -> None:
        """See `link.Member`."""
        for room_id in orders.release_room_ids:
            self._arena.release(room_id)
        if self._running is not None and self._running.dispatch.job_id in orders.cancel_job_ids:
            self._running.stop = True
        if orders.drain:
            self.draining.set()

    def snapshot(self) -> worker_pb2.Worker:
        """The worker for people."""
        worker = worker_pb2.Worker(
            rank=self.link.rank,
            role=self._stage.role,
            state=self._state(),
            address=self._address,
            host_id=self._arena.host_id,
            process_id=os.getpid(),
            model=self._model.model,
            arena_size_bytes=self._arena.size_bytes,
            arena_used_bytes=self._arena.used_bytes,
            room_count=len(self._arena.rooms()),
            parameter_bytes=self._stage.parameter_bytes,
            component_bytes=self._stage.component_bytes,
            fetch_count_by_mover=self._fetch_count,
        )
        if (running := self._running) is not None:
            worker.job_id = running.dispatch.job_id
            worker.step, worker.step_count = running.step, running.step_count
        return worker

    def _state(self) -> worker_pb2.WorkerState.ValueType:
        if self.draining.is_set():
            return worker_pb2.WORKER_STATE_DRAINING
        if self._full:
            return worker_pb2.WORKER_STATE_FULL
        return worker_pb2.WORKER_STATE_BUSY if self._running else worker_pb2.WORKER_STATE_IDLE

    # -- the loop -------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Work until `draining` is set and what is in hand is done."""
        while not self.draining.is_set():
            await self._wait_for_space(self._room_bytes_expected, self.draining.is_set)
            claimed = await self._next()
            if claimed is None:
                continue
            self._running = Running(claimed, self.link.epoch)
            self.link.notify()
            try:
                await self._run_phase(self._running)
            finally:
                self._running = None
                self.link.notify()

    async def drain(self) -> None:
        """Wait until others have read the rooms held here; for as long as the configuration gives."""
        deadline_s = time.monotonic() + self._config.drain_timeout_s
        while self._arena.rooms() and time.monotonic() < deadline_s:
            with contextlib.suppress(DeadlinePassed):
                await self._arena.wait_for_space(self._arena.largest_gap_bytes + 1, SPACE_WAIT_S)

    def hand_back(self) -> None:
        """Stop the job in hand, so that another worker gets it."""
        if self._running is not None:
            self._running.stop = True

    @property
    def is_free(self) -> bool:
        """Whether a direct job would start at once."""
        return self._running is None and self._direct.empty() and not self._full and not self.draining.is_set()

    def take_direct(self, claimed: Claimed) -> None:
        """Work on this next; its lease is ours already."""
        self._direct.put_nowait(claimed)

    async def _next(self) -> Claimed | None:
        """The next dispatch, from the ring or handed over directly; None when there was none for a while."""
        await self.link.wait_registered()
        claim = asyncio.create_task(self._claim())
        others = [asyncio.create_task(self._direct.get()), asyncio.create_task(self.draining.wait())]
        await asyncio.wait([claim, *others], return_when=asyncio.FIRST_COMPLETED)
        for task in (claim, *others):
            task.cancel()
        claimed, handed, _draining = await asyncio.gather(claim, *others, return_exceptions=True)
        if isinstance(claimed, Exception):
            raise claimed
        if isinstance(claimed, Claimed) and isinstance(handed, Claimed):
            self._direct.put_nowait(handed)  # both came at once: this one next time
        return next((c for c in (claimed, handed) if isinstance(c, Claimed)), None)

    async def _claim(self) -> Claimed | None:
        try:
            return await self._source.claim(self.link.rank, CLAIM_WAIT_S)
        except (Unavailable, Fenced, DeadlinePassed):
            await asyncio.sleep(RETRY_PAUSE_S)
            return None

    async def _run_phase(self, running: Running) -> None:
        """Everything from a claim to its ack or nack. Whatever the stage raises, the loop goes on."""
        reporter = PhaseReporter(self.link, self._stage.role, running)
        with self._observed(running):
            end = self._source.ack
            try:
                request = await reporter.start()
                await self._work(running, request, reporter)
            except LeaseLost as error:
                log.info("dropped: %s", error, extra={"job_id": running.dispatch.job_id})
            except Exception as error:  # noqa: BLE001  (a stage may raise anything; the job's owner is told)
                if isinstance(error, JobCancelled) and self.draining.is_set() and not running.is_expired():
                    end = self._source.nack
                else:
                    await reporter.fail(error)
            if not running.lost:
                # A lease that is lost, or a controller that is gone, has taken care of itself.
                with contextlib.suppress(LeaseLost, Unavailable, Fenced, DeadlinePassed):
                    await end(running.claimed.lease)

    @contextlib.contextmanager
    def _observed(self, running: Running) -> Iterator[None]:
        """The job's trace and logs: how long it waited in the ring, and a span for all that happens to it here."""
        lease, d = running.claimed
        ring, parent = ring_name(lease.ring), telemetry.extract(d.traceparent)
        if d.HasField("publish_time"):
            published_s = d.publish_time.ToNanoseconds() / 1e9
            with telemetry.span(
                "queue.wait", parent=parent, start_s=published_s, ring=ring, job_id=d.job_id, rank=lease.rank
            ):
                self._metrics.queue_waited(role_name(self._stage.role), max(0.0, time.time() - published_s))
        if lease.attempt:
            self._metrics.redelivered(ring)
        attempt, rank = lease.attempt, lease.rank
        claim = telemetry.span(
            f"claim {ring}", kind="consumer", parent=parent, ring=ring, attempt=attempt, job_id=d.job_id, rank=rank
        )
        with telemetry.log_context(job_id=d.job_id, rank=rank), claim:
            yield

    async def _work(self, running: Running, request: GenerationRequest, reporter: PhaseReporter) -> None:
        inputs: Mapping[str, object]
        if self._stage.role == ROLE_ENCODER:
            inputs = await self._in_thread(lambda: request_inputs(request, self._model))
        else:
            inputs = await self._fetch(running)
        loop = asyncio.get_running_loop()

        def on_step(step: Step) -> None:
            running.step, running.step_count = step.step, step.step_count
            running.preview_png = step.preview_png or running.preview_png
            span.add_event("step", {"step": step.step, "step_count": step.step_count})
            loop.call_soon_threadsafe(self.link.notify)

        started_s = time.monotonic()
        with telemetry.span("stage.run", job_id=running.dispatch.job_id, rank=self.link.rank) as span:
            outputs = await self._in_thread(lambda: self._stage.run(inputs, on_step, running.should_stop))
        self._metrics.stage_ran(role_name(self._stage.role), time.monotonic() - started_s)
        if self._stage.role == ROLE_DECODER:
            await reporter.complete(artifacts=await self._store_results(running, request, outputs))
            return
        dispatch = await self._store_room(running, request, outputs)
        try:
            await reporter.complete(dispatch)
        except TriptychError:
            if not running.lost:  # else the room was settled when the worker registered again
                self._arena.release(dispatch.room.room_id)
            raise
        await self._publish(running, dispatch)

    async def _fetch(self, running: Running) -> Mapping[str, object]:
        ref = running.dispatch.room
        with telemetry.span("room.fetch", job_id=running.dispatch.job_id, room_id=f"{ref.room_id:#x}") as span:
            try:
                fetched = await self._fetcher.fetch(ref)
            except InvalidRequest as error:  # a bad reference is its owner's fault, not the client's
                raise TransferFailed(str(error)) from error
            span.set_attribute("triptych.mover", fetched.mover)
            span.set_attribute("triptych.size_bytes", fetched.size_bytes)
            self._metrics.transferred(fetched.mover, fetched.size_bytes, fetched.seconds)
            if fetched.read_count > 1:
                self._metrics.checksum_failed(fetched.mover)
            self._fetch_count[fetched.mover] = self._fetch_count.get(fetched.mover, 0) + 1
            manifest = rooms.parse(fetched.buffer, ref.room_id)
            return await self._in_thread(lambda: codec.decode(manifest, fetched.buffer, self._config.device))

    # -- what is made ---------------------------------------------------------------------------------------------

    async def _store_room(
        self, running: Running, request: GenerationRequest, outputs: Mapping[str, object]
    ) -> Dispatch:
        job_id = running.dispatch.job_id
        with telemetry.span("room.store", job_id=job_id) as span:
            encoded = await self._in_thread(lambda: codec.encode(outputs, job_id))
            self._room_counter += 1
            room_id = ids.room_id(self.link.rank, self._room_counter)
            while True:
                try:
                    placement = await self._in_thread(
                        lambda: self._arena.put(room_id, encoded.manifest, encoded.buffers)
                    )
                    break
                except ArenaFull:
                    size_bytes = encoded.manifest.ByteSize() + sum(b.nbytes for b in encoded.buffers)
                    await self._wait_for_space(size_bytes, running.should_stop)
                    if running.should_stop():
                        raise JobCancelled("the job was cancelled while its tensors waited for space") from None
            running.room_id = room_id
            self._room_bytes_expected = max(self._room_bytes_expected, placement.size_bytes)
            span.set_attribute("triptych.room_id", f"{room_id:#x}")
            span.set_attribute("triptych.size_bytes", placement.size_bytes)
        ref = self._arena.ref(
            placement, owner_rank=self.link.rank, owner_address=self._address, mooncake=self._mooncake
        )
        return self._dispatch(running, request, ref, encoded.manifest)

    def _dispatch(self, running: Running, request: GenerationRequest, ref: RoomRef, manifest: Manifest) -> Dispatch:
        before, is_encoder = running.dispatch, self._stage.role == ROLE_ENCODER
        dispatch = Dispatch(
            job_id=before.job_id,
            generation=before.generation,
            role=NEXT[self._stage.role],
            room=ref,
            tensors=sorted(manifest.tensors, key=lambda t: -t.size_bytes)[:TENSORS_SHOWN_MAX],
            sender_rank=self.link.rank,
            receiver_rank=request.transformer_rank if is_encoder else before.decoder_rank,
            decoder_rank=request.decoder_rank if is_encoder else 0,
        )
        if before.HasField("deadline_time"):
            dispatch.deadline_time.CopyFrom(before.deadline_time)
        for tensor in manifest.tensors:
            if tensor.name == "latents":
                dispatch.latent_shape.name = tensor.name
                dispatch.latent_shape.dimensions.extend(tensor.shape)
                dispatch.latent_shape.dtype = tensor.dtype
        return dispatch

    async def _store_results(
        self, running: Running, request: GenerationRequest, outputs: Mapping[str, object]
    ) -> list[Artifact]:
        fps = request.frames_per_second or media.frames_per_second(self._model)

        def store() -> list[Artifact]:
            encoded = media.encode_outputs(outputs, request.output_format, fps)
            url, job_id = self.link.result_url, running.dispatch.job_id
            return [results.store(url, job_id, e.name, e.media_type, e.data) for e in encoded]

        with telemetry.span("result.store", job_id=running.dispatch.job_id) as span:
            artifacts = await self._in_thread(store)
            span.set_attribute("triptych.size_bytes", sum(a.size_bytes for a in artifacts))
            return artifacts

    async def _publish(self, running: Running, dispatch: Dispatch) -> None:
        """Hand the room to the next role. After a restart the controller does it, from its journal."""
        assert self._sink is not None
        ring = ring_name(RING_OF[dispatch.role])
        with telemetry.span(f"publish {ring}", kind="producer", job_id=dispatch.job_id, rank=self.link.rank):
            dispatch.traceparent = telemetry.inject()
            while self.link.epoch == running.epoch and not running.lost:
                dispatch.publish_time.GetCurrentTime()
                try:
                    await self._sink.publish(dispatch, dispatch.receiver_rank)
                    return
                except (RingFull, Unavailable, Fenced, DeadlinePassed) as error:
                    log.info("publish: %s; trying again", error, extra={"job_id": dispatch.job_id})
                    await asyncio.sleep(RETRY_PAUSE_S)
                    await self.link.wait_registered()

    async def _wait_for_space(self, size_bytes: int, give_up: Callable[[], bool]) -> None:
        """Wait until the arena has room. This is the back-pressure: nothing is claimed meanwhile."""
        while self._arena.largest_gap_bytes < size_bytes and not give_up():
            self._full = True
            self.link.notify()
            with contextlib.suppress(DeadlinePassed):
                await self._arena.wait_for_space(size_bytes, SPACE_WAIT_S)
        self._full = False

    async def _in_thread(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)
