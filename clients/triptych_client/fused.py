"""All three stages in one process: the parity reference, the benchmark's baseline, and the shortest way to a file.

The only module of the client that imports torch.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from triptych import errors
from triptych.config import WorkerConfig
from triptych.means import options
from triptych.means.options import RoleMeans
from triptych.media import encoding
from triptych.model import rates
from triptych.model.fields import check_deadline
from triptych.model.inputs import resolve
from triptych.model.outputs import metadata_json, sampling_rate_hz
from triptych.roles import ROLES, role_name
from triptych.stages import Step
from triptych.v1 import job_pb2
from triptych.v1.dispatch_pb2 import ROLE_ENCODER
from triptych.v1.generation_service_pb2 import WatchJobResponse
from triptych.v1.job_pb2 import GenerationRequest, Job, TokensCut
from triptych.v1.model_pb2 import AdapterDescription
from triptych_client.fleet_plan import RolePlan, threads_default
from triptych_client.result_files import spare_paths, write_file

try:
    from triptych.stages.adapters import Registry
    from triptych.stages.describe import describe
    from triptych.stages.stage import Stage
    from triptych.stages.whole import Whole
except ModuleNotFoundError as error:
    raise errors.MissingExtra(error.name or "torch", "serve", "running the stages in this process") from error

_STATES = (job_pb2.JOB_STATE_ENCODING, job_pb2.JOB_STATE_DENOISING, job_pb2.JOB_STATE_DECODING)


class FusedModel:
    """A model with all its stages loaded. Used by one thread at a time."""

    def __init__(self, whole: Whole, stages: list[Stage], adapters: Sequence[AdapterDescription] = ()) -> None:
        self._description = describe(whole, adapters)
        self._stages = stages
        self.tokens_cut: list[TokensCut] = []
        """What tokenizers cut off of the last request's texts."""

    @classmethod
    def load(cls, config: WorkerConfig, roles: Mapping[str, RolePlan] | None = None) -> FusedModel:
        """Load a model as workers with these settings would. Raises ModelInvalid and InvalidRequest as they do.

        `roles` may give a role another device, dtype and means than the settings do. There are no warm-ups.
        """
        whole = Whole.open(config.model, config.revision, config.variant, config.workflow_names)
        registry = Registry.open(whole, config.adapters, config.adapter_ids)
        stages = []
        for role in ROLES:
            plan = (roles or {}).get(role_name(role), RolePlan())
            stages.append(
                Stage.load(
                    whole,
                    role,
                    device=plan.device or config.device,
                    dtype=plan.dtype or config.dtype,
                    threads=config.threads or threads_default(),
                    nonfinite=str(plan.settings.get("nonfinite", config.nonfinite)),
                    means=means_of(config, plan),
                    adapters=registry.files,
                    adapter_bytes_max=config.adapter_bytes_max,
                )
            )
        return cls(whole, stages, registry.described)

    @property
    def lossy(self) -> list[str]:
        """Lossy means in use, as a job names them."""
        return [one for stage in self._stages for one in stage.lossy]

    def run(
        self, request: GenerationRequest, on_update: Callable[[WatchJobResponse], None] | None = None
    ) -> dict[str, object]:
        """Run the three stages and return what the decoder yields.

        Raises InvalidRequest for what the model can't take, DeadlinePassed when the request's deadline is over, and
        JobFailed, in one sentence, for anything else that a stage raises.
        """
        notify = on_update or (lambda _update: None)
        check_deadline(request, time.time())
        values = resolve(request, self._description).for_encoder()
        for stage, state in zip(self._stages, _STATES, strict=True):
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
                raise errors.JobFailed(_sentence(role_name(stage.role), error)) from error
            if stage.role == ROLE_ENCODER:
                self.tokens_cut = [TokensCut(input=i, tokenizer=t, token_count=n) for i, t, n in stage.tokens_cut]
        return values

    def generate(
        self, request: GenerationRequest, path: Path, on_update: Callable[[WatchJobResponse], None] | None = None
    ) -> tuple[Path, ...]:
        """Run the stages and write the files that the services would store, to the same bytes.

        What is at `path` is overwritten, and nothing else is.
        """
        outputs = self.run(request, on_update)
        fps = rates.frames_per_second(request, self._description)
        artifacts = encoding.encode_outputs(
            outputs,
            request.output_format,
            fps,
            request.output,
            sampling_rate_hz=sampling_rate_hz(self._description),
            metadata_json=metadata_json(request, self._description),
        )
        paths = spare_paths(path, [artifact.name for artifact in artifacts])
        for target, artifact in zip(paths, artifacts, strict=True):
            write_file(target, artifact.data, overwrites=target == path)
        return paths


def means_of(config: WorkerConfig, plan: RolePlan) -> RoleMeans:
    """The means of a role: its own, or else those of all."""
    return options.of_json("means", str(plan.settings.get("means", config.means)))


def _sentence(role: str, error: Exception) -> str:
    """What a stage raised, in one line, and where."""
    said = " ".join(str(error).split())[: errors.FAILURE_CHARS_MAX]
    where = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(where.filename).stem}.{where.name}"
    return f"the {role} failed: {type(error).__name__} in {place}{': ' if said else ''}{said}"


def _is_expired(request: GenerationRequest) -> bool:
    return request.HasField("deadline_time") and request.deadline_time.ToNanoseconds() <= time.time_ns()
