"""One job's way through one worker: start, fetch, run the stage, store, complete, publish, ack.

Here the three planes meet, which know nothing of each other: control (`link`), queue (`handover`), bulk (`rooms`).

Thread rule: this lives on the event loop; the stage, the codec and everything else that touches tensors run in one
thread of their own. Both see `Running`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping

from triptych import telemetry
from triptych.errors import AdapterMissing, JobCancelled, LeaseLost, TriptychError, WorkerBroken, public_text
from triptych.model import adapters
from triptych.model.inputs import resolve, texts_of
from triptych.rings.access import RingAccess
from triptych.roles import ring_name, role_name
from triptych.stages import Step
from triptych.v1.dispatch_pb2 import ROLE_DECODER, ROLE_ENCODER
from triptych.v1.fleet_service_pb2 import StartPhaseResponse
from triptych.v1.job_pb2 import GenerationRequest, TokensCut

from . import memory_report
from .capacity import Capacity
from .delivery import Delivery
from .equipment import Equipment, StageThread
from .handover import Handover, messaging, next_dispatch, shape_of
from .health import Health, is_ours, is_out_of_memory, is_poison
from .link import Link
from .report import PhaseReporter
from .rooms import Rooms
from .running import Running
from .self_check import SelfCheck, size_of

log = logging.getLogger(__name__)


class Phases:
    """Runs one claimed dispatch after another."""

    def __init__(self, equipment: Equipment, link: Link, access: RingAccess) -> None:
        self._equipment = equipment
        self._stage = equipment.stage
        self._metrics = equipment.metrics
        self._link = link
        self._in_thread = StageThread()
        self.rooms = Rooms(equipment, link, self._in_thread)
        self.health = Health()
        self.capacity = Capacity()
        self._handover = Handover(link, access, equipment.stage.role)
        self._delivery = Delivery(link, equipment.model, self._in_thread)
        self._self_check = SelfCheck(equipment, self._in_thread)

    async def run(self, running: Running, is_draining: Callable[[], bool]) -> None:
        """Everything from a claim to its ack or nack. Raises WorkerBroken for an error that has spoiled the process;
        the worker goes on after any other."""
        reporter = PhaseReporter(self._link, self._stage.role, running, self._equipment.config.device)
        broken = ""
        lease, dispatch = running.claimed
        with telemetry.log_context(job_id=dispatch.job_id, rank=lease.rank):
            end = self._handover.ack
            try:
                started = await self._begin(running, reporter)
                running.pixels = started.pixels
                with telemetry.within(started.traceparent or dispatch.traceparent):
                    await self._work(running, started, reporter)
                self.health.succeeded()
                self.capacity.done(running.pixels)
                self._self_check.succeeded()
            except LeaseLost as error:
                log.info("dropped: %s", error)
            except Exception as error:  # noqa: BLE001  (a stage may raise anything; the job's owner is told)
                if isinstance(error, JobCancelled) and is_draining():
                    end = self._handover.nack
                else:
                    broken = await self._failed(running, error, reporter)
            await end(running)
        if self.rooms.are_used_up:
            broken = broken or "its rank has no room ids left: it starts again under another"
        if broken:
            raise WorkerBroken(broken)

    async def _failed(self, running: Running, error: Exception, reporter: PhaseReporter) -> str:
        """Tell the controller, and note what it means for the worker. Returns why its process can't go on, if so."""
        failure = reporter.failure(error)
        if is_out_of_memory(error):  # freed before another worker begins, which may share the device
            await self._in_thread(lambda: memory_report.give_back(error))
            self.capacity.ran_out(running.pixels, time.monotonic())
        await reporter.fail(failure)
        if is_ours(error) and not running.lost:
            self.health.failed(running.dispatch.job_id)
        return f"an error has spoiled this process: {failure.message}" if is_poison(error) else ""

    async def check_health(self) -> None:
        """Run a small job of the worker's own. Raises WorkerBroken where that fails."""
        rank = self._link.membership.rank
        with telemetry.span("quarantine", rank=rank) as span:
            self._metrics.quarantined()
            room_id = self.rooms.new_id()
            try:
                await self._self_check.run(room_id, rank, self._link.result_url)
            except Exception as error:
                why = public_text(error)
                span.set_attribute("triptych.check", why)
                raise WorkerBroken(f"it fails every job, and its own check: {why}") from error
            span.set_attribute("triptych.check", "passed")
            self.health.passed()

    async def _begin(self, running: Running, reporter: PhaseReporter) -> StartPhaseResponse:
        """Tell the controller that the phase begins. Here belong the job's wait and its claim, in traces and metrics.

        Raises LeaseLost when the dispatch is to be dropped.
        """
        lease, dispatch = running.claimed
        job_id, rank, attempt, ring = dispatch.job_id, lease.rank, lease.attempt, ring_name(lease.ring)
        parent = telemetry.extract(dispatch.traceparent)
        claimed_ns = time.time_ns()
        if attempt:
            self._metrics.redelivered()
        also = messaging(ring, "claim", "receive")
        with telemetry.span(
            f"claim {ring}", kind="consumer", parent=parent, also=also, job_id=job_id, rank=rank, attempt=attempt
        ) as span:
            started = await reporter.start()
            telemetry.link(span, started.earlier_traceparent)
            wait_ns = started.wait.ToNanoseconds()
            if started.HasField("wait"):
                self._metrics.queue_waited(wait_ns / 1e9)
        if started.HasField("wait"):
            telemetry.record(
                "queue.wait",
                parent=dispatch.traceparent,
                start_ns=claimed_ns - wait_ns,
                end_ns=claimed_ns,
                job_id=job_id,
                rank=rank,
                ring=ring,
            )
        return started

    async def _work(self, running: Running, started: StartPhaseResponse, reporter: PhaseReporter) -> None:
        request = started.request
        inputs = await self._inputs(running, request, reporter)
        outputs = await self._run_stage(running, inputs, _size_of(request))
        if self._stage.role == ROLE_DECODER:
            await self._delivery.run(running, started, outputs, reporter)
            return
        tokens_cut = [TokensCut(input=i, tokenizer=t, token_count=n) for i, t, n in self._stage.tokens_cut]
        ref, manifest = await self.rooms.store(running, outputs)
        dispatch = next_dispatch(running.dispatch, request, ref, manifest, self._link.membership.rank)
        try:
            await reporter.complete(dispatch, tokens_cut=tokens_cut)
        except TriptychError:
            # A room that was named at registration is settled: it may be needed, where only the answer was lost.
            if not (running.lost and ref.room_id in running.declared_room_ids):
                self._equipment.arena.release(ref.room_id)
            raise
        await self._handover.publish(running, dispatch)

    async def _inputs(
        self, running: Running, request: GenerationRequest, reporter: PhaseReporter
    ) -> Mapping[str, object]:
        """What the stage is given: made of the request for an encoder, else read from the room before."""
        inputs: Mapping[str, object]
        if self._stage.role == ROLE_ENCODER:
            equipment = self._equipment
            if missing := adapters.missing(request, equipment.model):
                raise AdapterMissing(missing)
            inputs = await self._in_thread(
                lambda: resolve(request, equipment.model).for_encoder(equipment.decoders.decode)
            )
            size_bytes = size_of(inputs)
        else:
            inputs = await self.rooms.fetch(running)
            size_bytes = running.dispatch.room.size_bytes
            reporter.keep_private(texts_of(inputs))
        self._self_check.began(inputs, size_bytes)
        return inputs

    async def _run_stage(self, running: Running, inputs: Mapping[str, object], size: str) -> Mapping[str, object]:
        loop = asyncio.get_running_loop()

        def on_step(step: Step) -> None:
            running.step = step.step
            running.step_count = step.step_count
            running.preview_png = step.preview_png or running.preview_png
            span.add_event("step", {"step": step.step, "step_count": step.step_count})
            loop.call_soon_threadsafe(self._link.notify)

        dispatch = running.dispatch
        started_s = time.monotonic()
        with telemetry.span(
            "stage.run",
            also={"gen_ai.request.model": self._equipment.model.model},
            job_id=dispatch.job_id,
            rank=self._link.membership.rank,
            role=role_name(self._stage.role),
            size=size or None,
            latent_shape=shape_of(dispatch),
        ) as span:
            outputs = await self._in_thread(lambda: self._stage.run(inputs, on_step, running.should_stop))
            self._metrics.stage_ran(time.monotonic() - started_s)  # inside of the span, which it points to
            span.set_attribute("triptych.step_count", running.step_count)
        return outputs


def _size_of(request: GenerationRequest) -> str:
    """Width, height and frames that an encoder is asked for, as `832x480x81`; empty for what the request leaves open,
    and for other roles, which aren't told."""
    return "x".join(str(number) for number in (request.width, request.height, request.num_frames) if number)
