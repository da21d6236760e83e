"""One job's way through one worker: start, fetch, run the stage, store, complete, publish, ack.

Here the three planes meet, which know nothing of each other: control (`link`), queue (`rings`), bulk (`transport`).

Thread rule: this lives on the event loop; the stage, the codec and everything else that touches tensors run in one
thread of their own. `Running` is what both see.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from triptych import codec, ids, memory_report, telemetry
from triptych.config import WorkerConfig
from triptych.decoding.pool import Decoders
from triptych.delivery import Delivery
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
    WorkerBroken,
    public_text,
)
from triptych.health import Health, is_ours, is_out_of_memory, is_poison
from triptych.link import PASSING, Link
from triptych.rings.ring import DISPATCH_BYTES_MAX, Ring
from triptych.roles import NEXT, RING_OF, ring_name, role_name
from triptych.running import PhaseReporter, Running, seconds_of
from triptych.self_check import SelfCheck, size_of
from triptych.stages import AnyStage, Step, request_inputs
from triptych.stages.inputs import texts_of
from triptych.transport import room as rooms
from triptych.transport.arena import Arena, Placement
from triptych.transport.fetcher import Fetcher
from triptych.v1.dispatch_pb2 import ROLE_DECODER, ROLE_ENCODER, Dispatch
from triptych.v1.job_pb2 import GenerationRequest
from triptych.v1.model_pb2 import ModelDescription
from triptych.v1.ring_service_pb2 import Lease
from triptych.v1.room_pb2 import Manifest, RoomRef
from triptych.v1.worker_pb2 import DriverChoice

log = logging.getLogger(__name__)

RETRY_PAUSE_S = 0.2
"""Pause before asking a full ring or a missing controller again."""
SPACE_WAIT_S = 1.0
"""Bound of one wait for arena space; between two, the worker looks whether its job is still wanted."""
TENSORS_SHOWN_MAX = 8
"""Tensors named in a dispatch. The manifest has all; these are for people, and a slot is 4 KiB."""
CLOCK_SKEW_MAX_S = 3600.0
"""How far another host's clock may be ahead for its times to be worth showing."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class Equipment:
    """What a worker works with, for as long as it lives."""

    config: WorkerConfig
    stage: AnyStage
    model: ModelDescription
    arena: Arena
    fetcher: Fetcher
    mooncake_session: str
    """Empty where Mooncake is off."""
    mooncake: DriverChoice
    """How Mooncake moves tensors, and why."""
    address: str
    """`host:port` of this worker's services."""
    metrics: telemetry.Metrics
    decoders: Decoders
    """Where the media of requests are decoded."""


class Phases:
    """Runs one claimed dispatch after another."""

    def __init__(self, equipment: Equipment, link: Link, source: Ring, sink: Ring | None) -> None:
        self._stage, self._model, self._arena = equipment.stage, equipment.model, equipment.arena
        self._equipment, self._metrics = equipment, equipment.metrics
        self._link, self._source, self._sink = link, source, sink
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="stage")
        self._room_counter = 0
        self.room_bytes_expected = 0
        """The largest room so far: what the next job may need."""
        self.waiting_for = ""
        """What work waits for: space for rooms, in a sentence; empty where it doesn't wait."""
        self.fetch_count_by_mover: dict[str, int] = {}
        self.health = Health()
        self._delivery = Delivery(link, equipment.model, self._in_thread)
        self._self_check = SelfCheck(equipment.stage, equipment.arena, equipment.fetcher, self._in_thread)

    async def run(self, running: Running, is_draining: Callable[[], bool]) -> None:
        """Everything from a claim to its ack or nack. Whatever the stage raises, the worker goes on, but for errors
        that spoil its process: these raise WorkerBroken."""
        reporter = PhaseReporter(self._link, self._stage.role, running, self._equipment.config.device)
        broken = ""
        with self._observed(running):
            end = self._source.ack
            try:
                request = await reporter.start()
                await self._work(running, request, reporter)
                self.health.succeeded()
                self._self_check.succeeded()
            except LeaseLost as error:
                log.info("dropped: %s", error)
            except Exception as error:  # noqa: BLE001  (a stage may raise anything; the job's owner is told)
                if isinstance(error, JobCancelled) and is_draining():
                    end = self._source.nack
                else:
                    broken = await self._failed(running, error, reporter)
            await self._end(running, end)
        if self._room_counter >= ids.ROOM_COUNTER_MAX - 1:  # one more for a check of its own
            broken = broken or "its rank has no room ids left: it starts again under another"
        if broken:
            raise WorkerBroken(broken)

    async def _failed(self, running: Running, error: Exception, reporter: PhaseReporter) -> str:
        """Tell the controller, and draw conclusions for ourselves. Returns why the process can't go on, or nothing."""
        message = await reporter.fail(error)
        if is_out_of_memory(error):
            await self._in_thread(lambda: memory_report.give_back(error))
        if is_ours(error) and not running.lost:
            self.health.failed(running.dispatch.job_id)
        return f"an error has spoiled this process: {message}" if is_poison(error) else ""

    async def check_health(self) -> None:
        """Run a small job of our own. Raises WorkerBroken where that fails."""
        with telemetry.span("quarantine", rank=self._link.rank) as span:
            self._metrics.quarantined(role_name(self._stage.role))
            self._room_counter += 1
            room_id = ids.room_id(self._link.rank, self._room_counter)
            try:
                await self._self_check.run(room_id, self._link.rank, self._equipment.address, self._link.result_url)
            except Exception as error:
                why = public_text(error)
                span.set_attribute("triptych.check", why)
                raise WorkerBroken(f"it fails every job, and its own check: {why}") from error
            span.set_attribute("triptych.check", "passed")
            self.health.passed()

    async def wait_for_space(self, size_bytes: int, give_up: Callable[[], bool]) -> None:
        """Wait until the arena has room. This is the back-pressure: nothing is claimed meanwhile."""
        while self._arena.largest_gap_bytes < size_bytes and not give_up():
            self._wait_for(f"space for a room of {size_bytes} bytes, before it claims more: the arena is full")
            await self._wait_for_gap(size_bytes)
        self._wait_for("")

    async def _wait_for_gap(self, size_bytes: int) -> None:
        with contextlib.suppress(DeadlinePassed):
            await self._arena.wait_for_space(size_bytes, SPACE_WAIT_S)

    def _wait_for(self, what: str) -> None:
        """Say what work waits for, in `status`, and in the log when it begins and ends."""
        if what and not self.waiting_for:
            log.warning("waits for %s", what)
        elif self.waiting_for and not what:
            log.info("waits no longer")
        if what != self.waiting_for:
            self.waiting_for = what
            self._link.notify()

    async def _end(self, running: Running, end: Callable[[Lease], Awaitable[None]]) -> None:
        """Ack or nack, until the ring has taken it or the lease is no longer ours."""
        while self._link.epoch == running.epoch and not running.lost:
            try:
                return await end(running.claimed.lease)
            except (LeaseLost, Fenced):
                return None
            except PASSING as error:
                log.info("ack: %s; trying again", error)
                await asyncio.sleep(RETRY_PAUSE_S)
                await self._link.wait_registered()
        return None

    @contextlib.contextmanager
    def _observed(self, running: Running) -> Iterator[None]:
        """The job's trace and logs: how long it waited in the ring, and a span for all that happens to it here."""
        lease, d = running.claimed
        ring, parent = ring_name(lease.ring), telemetry.extract(d.traceparent)
        published_s = seconds_of(d.publish_time)
        if 0.0 < published_s < time.time() + CLOCK_SKEW_MAX_S:
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
            decode = self._equipment.decoders.decode
            inputs = await self._in_thread(lambda: request_inputs(request, self._model, decode))
            size_bytes = size_of(inputs)
        else:
            inputs = await self._fetch(running)
            size_bytes = running.dispatch.room.size_bytes
            reporter.keep_private(texts_of(inputs))
        self._self_check.began(inputs, size_bytes)
        loop = asyncio.get_running_loop()

        def on_step(step: Step) -> None:
            running.step, running.step_count = step.step, step.step_count
            running.preview_png = step.preview_png or running.preview_png
            span.add_event("step", {"step": step.step, "step_count": step.step_count})
            loop.call_soon_threadsafe(self._link.notify)

        started_s = time.monotonic()
        with telemetry.span("stage.run", job_id=running.dispatch.job_id, rank=self._link.rank) as span:
            outputs = await self._in_thread(lambda: self._stage.run(inputs, on_step, running.should_stop))
        self._metrics.stage_ran(role_name(self._stage.role), time.monotonic() - started_s)
        if self._stage.role == ROLE_DECODER:
            await self._delivery.run(running, request, outputs, reporter)
            return
        dispatch = await self._store_room(running, request, outputs)
        try:
            await reporter.complete(dispatch)
        except TriptychError:
            # A room that was named at registration is settled: it may be needed, where only the answer was lost.
            if not (running.lost and dispatch.room.room_id in running.declared_room_ids):
                self._arena.release(dispatch.room.room_id)
            raise
        await self._publish(running, dispatch)

    async def _fetch(self, running: Running) -> Mapping[str, object]:
        ref = running.dispatch.room
        with telemetry.span("room.fetch", job_id=running.dispatch.job_id, room_id=f"{ref.room_id:#x}") as span:
            try:
                fetched = await self._equipment.fetcher.fetch(ref)
            except InvalidRequest as error:  # a bad reference is its owner's fault, not the client's
                raise TransferFailed(str(error)) from error
            span.set_attribute("triptych.mover", fetched.mover)
            span.set_attribute("triptych.protocol", fetched.protocol)
            span.set_attribute("triptych.size_bytes", fetched.size_bytes)
            self._metrics.transferred(fetched.mover, fetched.size_bytes, fetched.seconds)
            if fetched.read_count > 1:
                self._metrics.checksum_failed(fetched.mover)
            counts = self.fetch_count_by_mover
            counts[fetched.mover] = counts.get(fetched.mover, 0) + 1
            manifest = rooms.parse(fetched.buffer, ref.room_id)
            return await self._in_thread(lambda: codec.decode(manifest, fetched.buffer, self._equipment.config.device))

    async def _store_room(
        self, running: Running, request: GenerationRequest, outputs: Mapping[str, object]
    ) -> Dispatch:
        job_id = running.dispatch.job_id
        with telemetry.span("room.store", job_id=job_id) as span:
            encoded = await self._in_thread(lambda: codec.encode(outputs, job_id))
            self._room_counter += 1
            room_id = running.room_id = ids.room_id(self._link.rank, self._room_counter)
            placement = await self._put(running, room_id, encoded)
            self.room_bytes_expected = max(self.room_bytes_expected, placement.size_bytes)
            span.set_attribute("triptych.room_id", f"{room_id:#x}")
            span.set_attribute("triptych.size_bytes", placement.size_bytes)
        address, session = self._equipment.address, self._equipment.mooncake_session
        ref = self._arena.ref(placement, owner_rank=self._link.rank, owner_address=address, mooncake=session)
        return self._dispatch(running, request, ref, encoded.manifest)

    async def _put(self, running: Running, room_id: int, encoded: codec.Encoded) -> Placement:
        """Put a room into the arena as soon as there is space; it may be others who have it."""
        source = running.dispatch.room
        beside_bytes = source.size_bytes if source.host_id == self._arena.host_id else 0
        size_bytes = encoded.manifest.ByteSize() + sum(b.nbytes for b in encoded.buffers)
        try:
            while True:
                try:
                    return await self._in_thread(
                        lambda: self._arena.put(room_id, encoded.manifest, encoded.buffers, beside_bytes)
                    )
                except ArenaFull as error:
                    self._wait_for(f"space for the room of job {running.dispatch.job_id}, {size_bytes} bytes: {error}")
                    await asyncio.sleep(RETRY_PAUSE_S)  # /dev/shm itself may be full, which no release here ends
                    await self._wait_for_gap(size_bytes)
                    if running.should_stop():
                        raise JobCancelled("the job was cancelled while its tensors waited for space") from None
        finally:
            self._wait_for("")

    def _dispatch(self, running: Running, request: GenerationRequest, ref: RoomRef, manifest: Manifest) -> Dispatch:
        before, is_encoder = running.dispatch, self._stage.role == ROLE_ENCODER
        dispatch = Dispatch(
            job_id=before.job_id,
            generation=before.generation,
            role=NEXT[self._stage.role],
            room=ref,
            tensors=sorted(manifest.tensors, key=lambda t: -t.size_bytes)[:TENSORS_SHOWN_MAX],
            sender_rank=self._link.rank,
            model_digest=before.model_digest,
            receiver_rank=request.transformer_rank if is_encoder else before.decoder_rank,
            decoder_rank=request.decoder_rank if is_encoder else 0,
            traceparent=telemetry.inject(),
        )
        if before.HasField("deadline_time"):
            dispatch.deadline_time.CopyFrom(before.deadline_time)
        for tensor in manifest.tensors:
            if tensor.name == "latents":
                dispatch.latent_shape.name = tensor.name
                dispatch.latent_shape.dimensions.extend(tensor.shape)
                dispatch.latent_shape.dtype = tensor.dtype
        while dispatch.tensors and dispatch.ByteSize() > DISPATCH_BYTES_MAX:
            dispatch.tensors.pop()
        return dispatch

    async def _publish(self, running: Running, dispatch: Dispatch) -> None:
        """Hand the room to the next role. After a restart the controller does it, from its journal."""
        assert self._sink is not None
        ring = ring_name(RING_OF[dispatch.role])
        with telemetry.span(f"publish {ring}", kind="producer", job_id=dispatch.job_id, rank=self._link.rank):
            dispatch.traceparent = telemetry.inject()
            while self._link.epoch == running.epoch and not running.lost:
                dispatch.publish_time.GetCurrentTime()
                try:
                    await self._sink.publish(dispatch, dispatch.receiver_rank)
                    return
                except (*PASSING, RingFull, Fenced) as error:
                    log.info("publish: %s; trying again", error)
                    await asyncio.sleep(RETRY_PAUSE_S)
                    await self._link.wait_registered()

    async def _in_thread(self, work: Callable[[], Result]) -> Result:
        context = contextvars.copy_context()  # so that log lines and spans of the thread know their job
        return await asyncio.get_running_loop().run_in_executor(self._thread, context.run, work)
