"""Tables for people: rings, workers, jobs, models."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from datetime import UTC

from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from triptych.models import DIGEST_CHARS, named, waiting_sentence
from triptych.units import bytes_text
from triptych.v1 import job_pb2, model_pb2
from triptych.v1.dispatch_pb2 import Ring, Role
from triptych.v1.fleet_service_pb2 import GetFleetResponse
from triptych.v1.job_pb2 import Job
from triptych.v1.worker_pb2 import Worker, WorkerState
from triptych_client.jobs import is_over, state_name

STYLE_BY_STATE = {
    job_pb2.JOB_STATE_SUCCEEDED: "green",
    job_pb2.JOB_STATE_FAILED: "red",
    job_pb2.JOB_STATE_CANCELLED: "yellow",
    job_pb2.JOB_STATE_EXPIRED: "yellow",
}


def fleet_view(endpoint: str, fleet: GetFleetResponse) -> tuple[RenderableType, ...]:
    """Headline, what waits for other models, rings, workers, and which ways queues and tensors go."""
    counts = ", ".join(f"{count.count} {state_name(count.state)}" for count in fleet.job_counts if count.count)
    headline = Text(f"{endpoint} · epoch {fleet.epoch} · jobs: {counts or 'none'}", style="bold")
    waiting = (
        Text(waiting_sentence(one.job_count, one.model, one.model_digest), style="yellow")
        for one in fleet.waiting_models
    )
    return (
        headline,
        *waiting,
        _rings_table(fleet),
        _workers_table(fleet.workers),
        *_waits_tables(fleet.workers),
        _ways_table(fleet),
    )


def jobs_table(jobs: Iterable[Job], title: str) -> Table:
    """Jobs with state, progress, age, model and, where one failed, why."""
    table = _table(title, "job", "state", "step", "took", "ranks", "model", "note")
    for job in jobs:
        state = Text(state_name(job.state), style=STYLE_BY_STATE.get(job.state, ""))
        steps = f"{job.step}/{job.step_count}" if job.step_count else ""
        ranks = "·".join(
            str(rank) if rank else "-" for rank in (job.encoder_rank, job.transformer_rank, job.decoder_rank)
        )
        retried = f"{len(job.attempts)} undone: {job.attempts[-1].reason}" if job.attempts else ""
        model = f"{job.model.rstrip('/').rpartition('/')[2]} {job.model_digest[:DIGEST_CHARS]}".strip()
        table.add_row(job.job_id, state, steps, _took(job), ranks, Text(model), Text(job.error or retried))
    return table


def dead_letters_table(jobs: Iterable[Job], title: str) -> Table:
    """Dead letters, each with the reason of every attempt."""
    table = _table(title, "job", "client", "ended", "attempts")
    for job in jobs:
        reasons = "\n".join(f"{_role(attempt.role)} {attempt.rank}: {attempt.reason}" for attempt in job.attempts)
        table.add_row(job.job_id, job.client, _moment(job.end_time), Text(reasons))
    return table


def dead_letter_view(job: Job) -> tuple[RenderableType, ...]:
    """One dead letter, whole."""
    facts = _table("", "", "")
    for name, value in (
        ("error", job.error),
        ("client", job.client),
        ("request id", job.request_id),
        ("seed", str(job.seed)),
        ("model", named(job.model, job.model_digest) if job.model_digest else ""),
        ("accepted", _moment(job.create_time)),
        ("ended", _moment(job.end_time)),
        ("retry of", job.retry_of),
    ):
        if value:
            facts.add_row(name, Text(value))
    table = _table("attempts", "role", "rank", "time", "reason")
    for attempt in job.attempts:
        table.add_row(_role(attempt.role), str(attempt.rank), _moment(attempt.end_time), Text(attempt.reason))
    return Text(f"{job.job_id} · {state_name(job.state)}", style="bold"), facts, table


def model_view(model: model_pb2.ModelDescription) -> tuple[RenderableType, ...]:
    """Headline, inputs and components of a model."""
    rules = []
    if model.size_multiple:
        rules.append(f"height and width in multiples of {model.size_multiple}")
    if model.frame_multiple:
        rules.append(f"num_frames one more than a multiple of {model.frame_multiple}")
    if model.HasField("guidance_scale"):
        rules.append(f"guidance_scale {model.guidance_scale:g} unless told otherwise")
    name = f"{model.model}{'@' + model.revision if model.revision else ''}"
    headline = Text(f"{name} · {model.pipeline_class} · yields {', '.join(model.outputs)}", style="bold")
    return headline, Text("; ".join(rules)), _inputs_table(model), _components_table(model)


def _inputs_table(model: model_pb2.ModelDescription) -> Table:
    table = _table("inputs", "name", "kind", "default", "about")
    recommended = json.loads(model.defaults_json or "{}")
    for described in model.inputs:
        if described.kind == model_pb2.INPUT_KIND_INTERNAL:
            continue
        kind = model_pb2.InputKind.Name(described.kind).removeprefix("INPUT_KIND_").lower()
        default = "required" if described.required else described.default_json
        if described.name in recommended:
            default = json.dumps(recommended[described.name])
        about = " ".join(described.description.split())
        table.add_row(described.name, "any" if kind == "unspecified" else kind, Text(default), Text(about))
    return table


def _components_table(model: model_pb2.ModelDescription) -> Table:
    table = _table("components", "name", "class", "loaded by")
    for component in model.components:
        table.add_row(component.name, component.class_name, ", ".join(component.roles))
    return table


def _rings_table(fleet: GetFleetResponse) -> Table:
    table = _table("rings", "ring", "waiting", "held", "slots", "delivered again", "driver")
    for ring in fleet.rings:
        name = Ring.Name(ring.ring).removeprefix("RING_").lower()
        numbers = (ring.ready_count, ring.leased_count, ring.slot_count, ring.redelivered_count)
        table.add_row(name, *map(str, numbers), ring.driver)
    return table


def _workers_table(workers: Iterable[Worker]) -> Table:
    table = _table(
        "workers", "rank", "role", "state", "job", "step", "arena", "weights", "fetched by", "seen", "address"
    )
    for worker in sorted(workers, key=lambda w: (w.role, w.rank)):
        state = WorkerState.Name(worker.state).removeprefix("WORKER_STATE_").lower()
        table.add_row(
            str(worker.rank),
            _role(worker.role),
            state,
            worker.job_id,
            f"{worker.step}/{worker.step_count}" if worker.step_count else "",
            f"{bytes_text(worker.arena_used_bytes)} of {bytes_text(worker.arena_size_bytes)}",
            bytes_text(worker.parameter_bytes),
            _counts(worker.fetch_count_by_mover),
            _ago(worker.heartbeat_time) if worker.HasField("heartbeat_time") else "",
            f"{worker.address} ({worker.process_id})",
        )
    return table


def _waits_tables(workers: Iterable[Worker]) -> list[Table]:
    """What workers wait for, and why; no table where none does."""
    table = _table("waits", "rank", "for")
    for worker in sorted(workers, key=lambda w: w.rank):
        if worker.waiting_for:
            table.add_row(str(worker.rank), Text(worker.waiting_for))
    return [table] if table.row_count else []


def _ways_table(fleet: GetFleetResponse) -> Table:
    """What is in use and why, workers that agree in one line."""
    table = _table("ways", "what", "goes by", "because", "ranks")
    for driver, reason in sorted({(ring.driver, ring.driver_reason) for ring in fleet.rings}):
        table.add_row("rings", driver, Text(reason), "")
    ranks: dict[tuple[str, str, str], list[str]] = {}
    for worker in sorted(fleet.workers, key=lambda worker: worker.rank):
        for what, choice in (("claims", worker.rings), ("Mooncake", worker.mooncake)):
            ranks.setdefault((what, choice.name or "-", choice.reason), []).append(str(worker.rank))
    for (what, name, reason), agreeing in sorted(ranks.items()):
        table.add_row(what, name, Text(reason), ", ".join(agreeing))
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="dim")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))


def _took(job: Job) -> str:
    end_s = _seconds(job.end_time) if is_over(job) else time.time()
    return f"{max(end_s - _seconds(job.create_time), 0):.1f} s"


def _role(role: Role.ValueType) -> str:
    return Role.Name(role).removeprefix("ROLE_").lower()


def _moment(moment: Timestamp) -> str:
    return moment.ToDatetime(UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _ago(moment: Timestamp) -> str:
    return f"{max(time.time() - _seconds(moment), 0):.0f} s ago"


def _seconds(moment: Timestamp) -> float:
    return moment.seconds + moment.nanos * 1e-9
