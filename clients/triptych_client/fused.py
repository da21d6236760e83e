"""All three stages in one process: the parity reference, the benchmark's baseline, and the shortest way to a file.

The only module of the client that imports torch.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

from triptych import errors, media
from triptych.v1 import job_pb2
from triptych.v1.dispatch_pb2 import ROLE_DECODER, ROLE_ENCODER, ROLE_TRANSFORMER, Role
from triptych.v1.generation_service_pb2 import WatchJobResponse
from triptych.v1.job_pb2 import GenerationRequest, Job
from triptych_client.files import output_paths, write_file
from triptych_client.fleet import RolePlan

try:
    from triptych.stages import Stage, Step, Whole, request_inputs
except ModuleNotFoundError as error:
    raise errors.MissingExtra(error.name or "torch", "serve", "running the stages in this process") from error

ROLE_NAMES: Mapping[str, Role.ValueType] = {
    "encoder": ROLE_ENCODER,
    "transformer": ROLE_TRANSFORMER,
    "decoder": ROLE_DECODER,
}
"""Roles by name, in the order in which a job passes them."""

_STATES = (job_pb2.JOB_STATE_ENCODING, job_pb2.JOB_STATE_DENOISING, job_pb2.JOB_STATE_DECODING)


class FusedModel:
    """A model with all its stages loaded. Used by one thread at a time."""

    def __init__(self, whole: Whole, stages: list[Stage]) -> None:
        self._description = whole.describe()
        self._stages = stages

    @classmethod
    def load(cls, model: str, revision: str, roles: Mapping[str, RolePlan], threads: int) -> FusedModel:
        """Load a model on the roles' devices. Raises ModelInvalid and InvalidRequest as `Whole` and `Stage` do."""
        whole = Whole.open(model, revision)
        stages = [
            Stage.load(whole, role, device=roles[name].device, dtype=roles[name].dtype, threads=threads)
            for name, role in ROLE_NAMES.items()
        ]
        return cls(whole, stages)

    def run(
        self, request: GenerationRequest, on_update: Callable[[WatchJobResponse], None] | None = None
    ) -> dict[str, object]:
        """Run the three stages and return what the decoder yields.

        Raises InvalidRequest for what the model can't take, DeadlinePassed when the request's deadline is over, and
        JobFailed, in one sentence, for whatever else a stage raises.
        """
        notify = on_update or (lambda _update: None)
        values = request_inputs(request, self._description)
        for (name, stage), state in zip(zip(ROLE_NAMES, self._stages, strict=True), _STATES, strict=True):
            notify(WatchJobResponse(job=Job(job_id="job", state=state)))

            def on_step(step: Step, state: job_pb2.JobState.ValueType = state) -> None:
                job = Job(job_id="job", state=state, step=step.step, step_count=step.step_count)
                notify(WatchJobResponse(job=job, preview_png=step.preview_png))

            try:
                values = stage.run(values, on_step, lambda: _is_expired(request))
            except errors.JobCancelled as error:
                raise errors.DeadlinePassed("the job did not end before its deadline") from error
            except errors.TriptychError:
                raise
            except Exception as error:
                raise errors.JobFailed(_sentence(name, error)) from error
        return values

    def generate(
        self, request: GenerationRequest, path: Path, on_update: Callable[[WatchJobResponse], None] | None = None
    ) -> tuple[Path, ...]:
        """Run the stages and write the files that the services would store, to the same bytes."""
        outputs = self.run(request, on_update)
        fps = request.frames_per_second or media.frames_per_second(self._description)
        artifacts = media.encode_outputs(outputs, request.output_format, fps)
        paths = output_paths(path, [artifact.name for artifact in artifacts])
        for target, artifact in zip(paths, artifacts, strict=True):
            write_file(target, artifact.data)
        return paths


def _sentence(role: str, error: Exception) -> str:
    """What a stage raised, in one line, and where."""
    said = " ".join(str(error).split())[: errors.FAILURE_CHARS_MAX]
    where = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(where.filename).stem}.{where.name}"
    return f"the {role} failed: {type(error).__name__} in {place}{': ' if said else ''}{said}"


def _is_expired(request: GenerationRequest) -> bool:
    return request.HasField("deadline_time") and request.deadline_time.ToNanoseconds() <= time.time_ns()
