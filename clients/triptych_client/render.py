"""What people are shown of fleets, jobs and models."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from datetime import UTC

from google.protobuf.timestamp_pb2 import Timestamp

from triptych.limits import bytes_text
from triptych.model.description import DIGEST_CHARS, Description, named, waiting_sentence
from triptych.v1 import model_pb2
from triptych.v1.dispatch_pb2 import Ring, Role
from triptych.v1.fleet_service_pb2 import GetFleetResponse
from triptych.v1.job_pb2 import AttemptKind, Job, Priority
from triptych.v1.worker_pb2 import StepProgress, Worker, WorkerState
from triptych_client.job_states import cut_sentences, enum_name, is_over, state_name
from triptych_client.tables import Headline, Table, View


def fleet_view(endpoint: str, fleet: GetFleetResponse) -> View:
    """Headline, what waits for other models, rings, workers, and which ways queues and tensors go."""
    counts = ", ".join(f"{count.count} {state_name(count.state)}" for count in fleet.job_counts if count.count)
    waiting = [
        Headline("waiting", (waiting_sentence(one.job_count, one.model, one.model_digest),), "yellow")
        for one in fleet.waiting_models
    ]
    return (
        Headline("fleet", (endpoint, f"epoch {fleet.epoch}", f"jobs: {counts or 'none'}")),
        *waiting,
        _rings_table(fleet),
        _workers_table(fleet.workers),
        *_waits_tables(fleet.workers),
        *_bounds_tables(fleet.workers),
        _ways_table(fleet),
    )


def jobs_table(jobs: Iterable[Job], title: str) -> Table:
    """Jobs with state, progress, age, model and, where one failed, why."""
    rows = []
    for job in jobs:
        retried = f"{len(job.attempts)} undone: {job.attempts[-1].reason}" if job.attempts else ""
        model = f"{job.model.rstrip('/').rpartition('/')[2]} {job.model_digest[:DIGEST_CHARS]}".strip()
        rows.append(
            (job.job_id, state_name(job.state), _steps(job), _took(job), _ranks(job), model, job.error or retried)
        )
    return Table(
        "jobs",
        ("job", "state", "step", "took", "ranks", "model", "note"),
        rows,
        title,
        prose=("model", "note"),
        minor=("ranks", "model", "took", "step"),
    )


def dead_letters_table(jobs: Iterable[Job], title: str) -> Table:
    """Dead letters, each with the reason of every attempt."""
    rows = [
        (
            job.job_id,
            job.client,
            _moment(job.end_time),
            tuple(f"{_role(attempt.role)} {attempt.rank}: {attempt.reason}" for attempt in job.attempts),
        )
        for job in jobs
    ]
    columns = ("job", "client", "ended", "attempts")
    return Table("dead", columns, rows, title, prose=("attempts",), minor=("client", "ended"))


def job_view(job: Job) -> View:
    """One job, whole."""
    facts = (
        ("error", job.error),
        ("step", _steps(job)),
        ("seed", ", ".join(map(str, job.seeds or [job.seed]))),
        ("latents", "x".join(map(str, job.latent_shape.dimensions))),
        ("texts cut", "; ".join(cut_sentences(job))),
        ("model", named(job.model, job.model_digest) if job.model_digest else ""),
        ("client", job.client),
        ("request id", job.request_id),
        ("priority", enum_name(Priority, job.priority, "PRIORITY_") if job.priority else ""),
        ("accepted", _moment(job.create_time)),
        ("deadline", _moment(job.deadline_time) if job.HasField("deadline_time") else ""),
        ("ended", _moment(job.end_time) if job.HasField("end_time") else ""),
        ("took", _took(job)),
        ("encoder", str(job.encoder_rank or "")),
        ("transformer", str(job.transformer_rank or "")),
        ("decoder", str(job.decoder_rank or "")),
        ("times sent back", str(job.generation or "")),
        ("dead letter", "yes; triptych jobs --dead --retry makes a new job of it" if job.dead_letter else ""),
        ("retry of", job.retry_of),
        ("trace id", job.trace_id),
    )
    files = [
        (str(index), one.name, one.media_type, bytes_text(one.size_bytes), one.url, one.sha256.hex())
        for index, one in enumerate(job.artifacts)
    ]
    file_columns = ("index", "name", "type", "size", "place", "sha256")
    return (
        Headline("job", (job.job_id, state_name(job.state))),
        Table("fact", ("", ""), [fact for fact in facts if fact[1]], prose=("",)),
        *([_attempts_table(job)] if job.attempts else []),
        *([Table("files", file_columns, files, minor=("sha256", "place", "type"))] if files else []),
    )


def _attempts_table(job: Job) -> Table:
    rows = [
        (
            _role(attempt.role),
            str(attempt.rank or ""),
            _moment(attempt.end_time),
            enum_name(AttemptKind, attempt.kind, "ATTEMPT_KIND_"),
            attempt.reason,
            attempt.place,
        )
        for attempt in job.attempts
    ]
    columns = ("role", "rank", "ended", "kind", "reason", "place")
    return Table("attempts", columns, rows, prose=("reason", "place"), minor=("place", "kind"))


def model_view(model: model_pb2.ModelDescription) -> View:
    """Headline, inputs and components of a model."""
    rules = []
    if model.size_multiple:
        rules.append(f"height and width in multiples of {model.size_multiple}")
    if model.frame_multiple:
        rules.append(f"num_frames one more than a multiple of {model.frame_multiple}")
    if model.HasField("guidance_scale"):
        rules.append(f"guidance_scale {model.guidance_scale:g} unless told otherwise")
    if model.without_guidance:
        rules.append("no guidance: guidance_scale at most 1")
    if not all(workflow.is_served for workflow in model.workflows):
        served = dict.fromkeys(workflow.name for workflow in model.workflows if workflow.is_served)
        rules.append(f"only the workflows {', '.join(served)}")
    name = f"{model.model}{'@' + model.revision if model.revision else ''}"
    headline = Headline("model", (name, model.pipeline_class, f"yields {', '.join(model.outputs)}"))
    if model.result.formats:
        rules.append(f"output as {', '.join(model.result.formats)}")
    ruled = [Headline("rules", ("; ".join(rules),), "")] if rules else []
    components = [(one.name, one.class_name, ", ".join(one.roles)) for one in model.components]
    columns = ("name", "class", "loaded by")
    loaded = Table("components", columns, components, prose=("loaded by",))
    return (headline, *ruled, _inputs_table(model, options=False), _inputs_table(model, options=True), loaded)


def _inputs_table(model: model_pb2.ModelDescription, *, options: bool) -> Table:
    """The inputs of the pipeline, or the options of its guiders and schedulers."""
    rows = []
    defaults = Description(model).defaults
    for described in model.inputs:
        if described.kind == model_pb2.INPUT_KIND_INTERNAL or ("." in described.name) is not options:
            continue
        default = "required" if described.required else described.default_json
        if described.name in defaults:
            default = json.dumps(defaults[described.name])
        about = described.description
        if described.choices:
            about = f"{about} One of {', '.join(described.choices)}.".strip()
        rows.append((described.name, kind_words(described), default, about))
    title = "options" if options else "inputs"
    return Table(title, ("name", "kind", "default", "about"), rows, prose=("kind", "default", "about"))


def kind_words(described: model_pb2.InputDescription) -> str:
    """What an input takes, for example `list of image or video`; an object with its fields."""
    kinds = described.item_kinds or [described.kind]
    words = [enum_name(model_pb2.InputKind, kind, "INPUT_KIND_") for kind in kinds]
    words = ["any" if word == "unspecified" else word for word in words]
    if described.kind in (model_pb2.INPUT_KIND_LIST, model_pb2.INPUT_KIND_MAPPING) and described.item_kinds:
        words = [f"{enum_name(model_pb2.InputKind, described.kind, 'INPUT_KIND_')} of {' or '.join(words)}"]
    found = " or ".join(words)
    if described.fields and described.kind == model_pb2.INPUT_KIND_OBJECT:
        found += f" ({', '.join(field.name for field in described.fields)})"
    if described.arity == model_pb2.INPUT_ARITY_LIST:
        return f"list of {found}"
    several = described.arity == model_pb2.INPUT_ARITY_ONE_OR_LIST or described.takes_several
    return f"{found}, or a list" if several else found


def _rings_table(fleet: GetFleetResponse) -> Table:
    rows = []
    for ring in fleet.rings:
        name = enum_name(Ring, ring.ring, "RING_")
        numbers = (ring.ready_count, ring.leased_count, ring.slot_count, ring.redelivered_count)
        rows.append((name, *map(str, numbers), ring.driver))
    return Table("rings", ("ring", "waiting", "held", "slots", "delivered again", "driver"), rows)


def _workers_table(workers: Iterable[Worker]) -> Table:
    rows = []
    for worker in sorted(workers, key=lambda w: (w.info.role, w.rank)):
        info = worker.info
        status = worker.status
        rows.append(
            (
                str(worker.rank),
                _role(info.role),
                enum_name(WorkerState, status.state, "WORKER_STATE_"),
                status.progress.job_id,
                _steps(status.progress),
                f"{bytes_text(status.arena_used_bytes)} of {bytes_text(info.arena_size_bytes)}",
                bytes_text(info.parameter_bytes),
                ", ".join(f"{mover} {count}" for mover, count in sorted(status.fetch_count_by_mover.items())),
                _ago(worker.heartbeat_time) if worker.HasField("heartbeat_time") else "",
                f"{info.address} ({info.process_id})",
            )
        )
    columns = ("rank", "role", "state", "job", "step", "arena", "weights", "fetched by", "seen", "address")
    minor = ("weights", "fetched by", "seen", "arena", "address")
    return Table("workers", columns, rows, prose=("arena", "fetched by", "address"), minor=minor)


def _waits_tables(workers: Iterable[Worker]) -> Sequence[Table]:
    """What workers wait for, and why; no table where none does."""
    rows = [
        (str(one.rank), one.status.waiting_for)
        for one in sorted(workers, key=lambda w: w.rank)
        if one.status.waiting_for
    ]
    return [Table("waits", ("rank", "for"), rows, prose=("for",))] if rows else []


def _bounds_tables(workers: Iterable[Worker]) -> Sequence[Table]:
    """Where memory runs out, by outputs x frames x height x width of a job; no table where it doesn't."""
    rows = [
        (str(one.rank), f"{one.status.pixels_failed_min:,.0f}", f"{one.status.pixels_done_max:,.0f}")
        for one in sorted(workers, key=lambda w: w.rank)
        if one.status.pixels_failed_min
    ]
    return [Table("out of memory", ("rank", "from pixels", "largest done"), rows)] if rows else []


def _ways_table(fleet: GetFleetResponse) -> Table:
    """The drivers and transports in use, and why; workers that agree share a line."""
    choices = sorted({(ring.driver, ring.driver_reason) for ring in fleet.rings})
    rows = [("rings", driver, reason, "") for driver, reason in choices]
    ranks: dict[tuple[str, str, str], list[str]] = {}
    for worker in sorted(fleet.workers, key=lambda worker: worker.rank):
        for what, choice in (("claims", worker.status.rings), ("Mooncake", worker.info.mooncake)):
            ranks.setdefault((what, choice.name or "-", choice.reason), []).append(str(worker.rank))
    rows += [(*choice, ", ".join(agreeing)) for choice, agreeing in sorted(ranks.items())]
    return Table("ways", ("what", "goes by", "because", "ranks"), rows, prose=("because", "ranks"))


def _steps(job: Job | StepProgress) -> str:
    return f"{job.step}/{job.step_count}" if job.step_count else ""


def _ranks(job: Job) -> str:
    return "·".join(str(rank) if rank else "-" for rank in (job.encoder_rank, job.transformer_rank, job.decoder_rank))


def _took(job: Job) -> str:
    end_s = _seconds(job.end_time) if is_over(job) else time.time()
    return f"{max(end_s - _seconds(job.create_time), 0):.1f} s"


def _role(role: Role.ValueType) -> str:
    return enum_name(Role, role, "ROLE_")


def _moment(moment: Timestamp) -> str:
    return moment.ToDatetime(UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _ago(moment: Timestamp) -> str:
    return f"{max(time.time() - _seconds(moment), 0):.0f} s ago"


def _seconds(moment: Timestamp) -> float:
    return moment.seconds + moment.nanos * 1e-9
