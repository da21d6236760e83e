"""A controller without workers, on a real port: jobs pass through their states by themselves.

What a job does follows from its prompt: `fail` fails, `evil` fails with an error that is meant for the terminal, `dead`
fails as a dead letter, `wordy` loses tokens, `forever` goes on until it is cancelled, `late` expires, `spoilt` succeeds
with a file that never comes whole, anything else succeeds with `num_outputs` files. Also a program:
`python toy_controller.py --address 127.0.0.1:0`.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from services import process
from triptych import rpc
from triptych.errors import BacklogFull, InvalidRequest, NotFound, WatchesFull, WrongState
from triptych.v1 import (
    dispatch_pb2,
    fleet_service_pb2_grpc,
    generation_service_pb2_grpc,
    job_pb2,
    model_pb2,
    worker_pb2,
)
from triptych.v1 import fleet_service_pb2 as fleet_pb
from triptych.v1 import generation_service_pb2 as pb

STEPS = 3
WAIT_S = 20.0
SEED = 77
"""What is drawn where none is given."""
LATENTS = (1, 16, 2, 4, 8)
"""The shape of every job's latents."""
EVIL = "\x1b]0;yours\x07\x1b[2J[bold red]off[/bold red]\r\nsecond line \u202egnp.exe\x9b5n"
"""A title, a cleared screen, rich's markup, a line of its own, a turned name, and a C1 control."""


class ToyController(generation_service_pb2_grpc.GenerationServiceServicer, fleet_service_pb2_grpc.FleetServiceServicer):
    """Both services of a controller. Public attributes change how it behaves."""

    def __init__(self, step_s: float = 0.01) -> None:
        self.step_s = step_s
        self.full_count = 0
        """Refuse so many CreateJob calls for a full backlog."""
        self.watches_full_count = 0
        """Refuse so many WatchJob calls."""
        self.retry_after_s: float | None = 0.05
        """What it then says when to come back; None for the error's own default."""
        self.created_s: list[float] = []
        """When CreateJob was called."""
        self.knows_offsets = True
        """Whether downloads go on where they were; older controllers begin anew."""
        self.corrupt_count = 0
        """Send so many downloads with a wrong byte."""
        self.requests: list[job_pb2.GenerationRequest] = []
        self.create_count = 0
        self.jobs: dict[str, job_pb2.Job] = {}
        self.content = b"film " * 500_000
        self._changed = asyncio.Condition()
        self._running: dict[str, asyncio.Task[None]] = {}

    @property
    def services(self) -> list[Any]:
        """For `rpc.start_server`."""
        return [
            (
                generation_service_pb2_grpc.add_GenerationServiceServicer_to_server,
                self,
                "triptych.v1.GenerationService",
            ),
            (fleet_service_pb2_grpc.add_FleetServiceServicer_to_server, self, "triptych.v1.FleetService"),
        ]

    async def CreateJob(self, request: pb.CreateJobRequest, context: Any) -> pb.CreateJobResponse:
        self.create_count += 1
        self.created_s.append(time.monotonic())
        if self.full_count:
            self.full_count -= 1
            raise BacklogFull("the backlog is full", self.retry_after_s)
        if not request.request.prompt:
            raise InvalidRequest("prompt", request.request.prompt, "text that is not empty")
        for job in self.jobs.values():
            if job.request_id == request.request_id:
                return pb.CreateJobResponse(job=job)
        job = job_pb2.Job(job_id=f"job-{len(self.jobs)}", request_id=request.request_id, state=job_pb2.JOB_STATE_QUEUED)
        job.seed = request.request.seed if request.request.HasField("seed") else SEED
        job.latent_shape.dimensions.extend(LATENTS)
        job.create_time.GetCurrentTime()
        self.jobs[job.job_id] = job
        self.requests.append(request.request)
        self._running[job.job_id] = asyncio.create_task(self._run(job, request.request))
        return pb.CreateJobResponse(job=job)

    async def _run(self, job: job_pb2.Job, request: job_pb2.GenerationRequest) -> None:
        for state in range(job_pb2.JOB_STATE_QUEUED, job_pb2.JOB_STATE_SUCCEEDED):
            await self._set(job, state=state)
            if state == job_pb2.JOB_STATE_DENOISING:
                for step in range(1, STEPS + 1):
                    await asyncio.sleep(self.step_s)
                    await self._set(job, step=step, step_count=STEPS)
                if request.prompt == "forever":
                    await asyncio.Event().wait()
        if request.prompt == "dead":
            for rank in (3, 5):
                job.attempts.add(role=dispatch_pb2.ROLE_TRANSFORMER, rank=rank, reason=f"rank {rank} was silent")
                job.attempts[-1].end_time.GetCurrentTime()
            await self._set(job, state=job_pb2.JOB_STATE_FAILED, error="gave up after 2 attempts", dead_letter=True)
        elif request.prompt == "fail":
            await self._set(job, state=job_pb2.JOB_STATE_FAILED, error="encoder: it was asked to fail")
        elif request.prompt == "evil":
            job.model, job.model_digest = f"evil{EVIL}", "e" * 64
            await self._set(job, state=job_pb2.JOB_STATE_FAILED, error=EVIL)
        elif request.prompt == "late":
            await self._set(job, state=job_pb2.JOB_STATE_EXPIRED)
        else:
            suffix = request.output_format or "mp4"
            if request.prompt == "wordy":
                job.tokens_cut.add(input="prompt", tokenizer="tokenizer_2", token_count=3)
            for index in range(max(request.num_outputs, 1)):
                digest = hashlib.sha256(self.content + request.prompt.encode() * (request.prompt == "spoilt")).digest()
                job.artifacts.add(name=f"{index}.{suffix}", size_bytes=len(self.content), sha256=digest)
            await self._set(job, state=job_pb2.JOB_STATE_SUCCEEDED)

    async def _set(self, job: job_pb2.Job, **fields: Any) -> None:
        async with self._changed:
            for name, value in fields.items():
                setattr(job, name, value)
            if job.state >= job_pb2.JOB_STATE_SUCCEEDED:
                job.end_time.GetCurrentTime()
            self._changed.notify_all()

    def _job(self, job_id: str) -> job_pb2.Job:
        if job_id not in self.jobs:
            raise NotFound(f"no job {job_id}")
        return self.jobs[job_id]

    async def GetJob(self, request: pb.GetJobRequest, context: Any) -> pb.GetJobResponse:
        return pb.GetJobResponse(job=self._job(request.job_id))

    async def ListJobs(self, request: pb.ListJobsRequest, context: Any) -> pb.ListJobsResponse:
        found = [job for job in reversed(self.jobs.values()) if not request.states or job.state in request.states]
        found = [job for job in found if job.dead_letter or not request.dead_letters_only]
        found = [job for job in found if job.job_id.startswith(request.job_id_prefix)]
        start = int(request.page_token or 0)
        end = start + (request.page_size or 50)
        return pb.ListJobsResponse(jobs=found[start:end], next_page_token=str(end) if end < len(found) else "")

    async def WatchJob(self, request: pb.WatchJobRequest, context: Any) -> AsyncIterator[pb.WatchJobResponse]:
        if self.watches_full_count:
            self.watches_full_count -= 1
            raise WatchesFull("too many watches", self.retry_after_s)
        job = self._job(request.job_id)
        sent = None
        while True:
            if job != sent:
                sent = job_pb2.Job()
                sent.CopyFrom(job)
                preview = b"a picture" if job.step == 1 else b""
                yield pb.WatchJobResponse(job=sent, preview_png=preview)
            if job.state >= job_pb2.JOB_STATE_SUCCEEDED:
                return
            async with self._changed:
                if job == sent:
                    await asyncio.wait_for(self._changed.wait(), WAIT_S)

    async def CancelJob(self, request: pb.CancelJobRequest, context: Any) -> pb.CancelJobResponse:
        job = self._job(request.job_id)
        if job.state < job_pb2.JOB_STATE_SUCCEEDED:
            self._running[job.job_id].cancel()
            await self._set(job, state=job_pb2.JOB_STATE_CANCELLED)
        return pb.CancelJobResponse(job=job)

    async def RetryJob(self, request: pb.RetryJobRequest, context: Any) -> pb.RetryJobResponse:
        job = self._job(request.job_id)
        if not job.dead_letter:
            raise WrongState(f"job {job.job_id} is no dead letter")
        again = pb.CreateJobRequest(request_id=f"retry of {job.job_id}")
        again.request.prompt = "a circle"
        created = (await self.CreateJob(again, context)).job
        created.retry_of = job.job_id
        return pb.RetryJobResponse(job=created)

    async def DownloadResult(
        self, request: pb.DownloadResultRequest, context: Any
    ) -> AsyncIterator[pb.DownloadResultResponse]:
        job = self._job(request.job_id)
        if request.artifact_index >= len(job.artifacts):
            raise NotFound(f"no file {request.artifact_index}")
        content = self.content
        if self.corrupt_count:
            self.corrupt_count -= 1
            content = content[:-1] + b"!"
        offset = request.offset_bytes if self.knows_offsets else 0
        yield pb.DownloadResultResponse(artifact=job.artifacts[request.artifact_index], offset_bytes=offset)
        for start in range(offset, len(content), 2**20):
            yield pb.DownloadResultResponse(chunk=content[start : start + 2**20])

    async def DiscardJobs(self, request: pb.DiscardJobsRequest, context: Any) -> pb.DiscardJobsResponse:
        return pb.DiscardJobsResponse(job_count=3 if "abcdef012345".startswith(request.model_digest) else 0)

    async def DescribeModel(self, request: pb.DescribeModelRequest, context: Any) -> pb.DescribeModelResponse:
        model = model_pb2.ModelDescription(
            model="toy", pipeline_class="ToyPipeline", outputs=["videos"], size_multiple=8
        )
        model.inputs.add(name="prompt", kind=model_pb2.INPUT_KIND_TEXT, required=True, description="What to make.")
        model.inputs.add(name="latents", kind=model_pb2.INPUT_KIND_INTERNAL)
        model.components.add(name="vae", class_name="ToyVae", roles=["decoder"])
        return pb.DescribeModelResponse(model=model)

    async def GetFleet(self, request: fleet_pb.GetFleetRequest, context: Any) -> fleet_pb.GetFleetResponse:
        now = Timestamp()
        now.GetCurrentTime()
        info = worker_pb2.WorkerInfo(role=dispatch_pb2.ROLE_TRANSFORMER)
        status = worker_pb2.WorkerStatus(state=worker_pb2.WORKER_STATE_IDLE)
        worker = worker_pb2.Worker(rank=7, info=info, status=status, heartbeat_time=now)
        ring = fleet_pb.RingStatus(ring=dispatch_pb2.RING_PHASE1, slot_count=128, ready_count=3, driver="memory")
        return fleet_pb.GetFleetResponse(epoch=4, workers=[worker], rings=[ring])


async def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--address", default="127.0.0.1:0")
    parser.add_argument("--step-s", type=float, default=0.01)
    args = parser.parse_args()
    stop = process.on_signals(0).now
    server = await rpc.start_server(args.address, ToyController(args.step_s).services)
    process.announce(server.address)
    await stop.wait()
    await server.stop(0)


if __name__ == "__main__":
    process.run(main)
