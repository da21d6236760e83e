"""One role of a pipeline, loaded and ready: `run` takes a job one phase further.

A stage holds the role's models; everything else is made for the job. A process runs one stage at a time, because a job
has the process's global random generator to itself while it runs.
"""

from __future__ import annotations

import copy
import platform
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from triptych.errors import InvalidRequest, JobCancelled
from triptych.roles import ROLES
from triptych.stages import handoff
from triptych.stages.interface import Step
from triptych.stages.library import ModularPipeline, PipelineState
from triptych.stages.observer import Observer, Stop, insert_observers
from triptych.stages.refusal import as_invalid_request, is_refusal
from triptych.stages.roles import Components, for_job, restrict
from triptych.stages.whole import Whole
from triptych.v1.dispatch_pb2 import ROLE_DECODER, ROLE_ENCODER, ROLE_TRANSFORMER, Role

DTYPES = ("float32", "bfloat16", "float16")
"""Accepted names of dtypes, as in torch."""


class Stage:
    """One role with its models. Make it with `Stage.load`."""

    def __init__(
        self,
        whole: Whole,
        role: Role.ValueType,
        pipeline: ModularPipeline,
        components: Components,
        dtype: str,
        workflows: Sequence[str] = (),
    ) -> None:
        self.role = role
        self._workflows = tuple(workflows)
        self._held = whole.component_names(role, workflows)
        self._whole = whole
        self._pipeline = pipeline
        self._needs = whole.needs_after(role)
        self._outputs = whole.outputs() if role == ROLE_DECODER else []
        self._token_pixels = whole.describe().size_multiple if role == ROLE_TRANSFORMER else 0
        self.settings = _settings(pipeline.device, dtype)
        self.component_bytes = {
            name: size_bytes for name in self._held if (size_bytes := _parameter_bytes(components.get(name)))
        }

    @classmethod
    def load(
        cls,
        whole: Whole,
        role: Role.ValueType,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        threads: int | None = None,
        workflows: Sequence[str] = (),
    ) -> Stage:
        """Loads the components that the role's blocks expect, and no others.

        Args:
            whole: The opened pipeline.
            role: `ROLE_ENCODER`, `ROLE_TRANSFORMER` or `ROLE_DECODER` of `triptych.v1.dispatch_pb2`.
            device: torch's name of the device, for example `cuda:0`.
            dtype: One of `DTYPES`, for all models of the role.
            threads: CPU threads of torch in this process; torch's own choice where not given.
            workflows: Names of the pipeline's workflows; only what they run is loaded, and other jobs are refused. By
                default all.

        Raises `InvalidRequest` for a role, device, dtype or workflow that doesn't exist, `ModelInvalid` for files that
        can't be loaded.
        """
        if role not in ROLES:
            raise InvalidRequest("role", role, ", ".join(Role.Name(known) for known in ROLES))
        if dtype not in DTYPES:
            raise InvalidRequest("dtype", dtype, ", ".join(DTYPES))
        place, torch_dtype = _device(device), getattr(torch, dtype)
        if threads is not None:
            torch.set_num_threads(threads)
        components = whole.components(torch_dtype, place)
        blocks = copy.deepcopy(whole.blocks[role])
        held = whole.component_names(role, workflows)
        for name in held:
            components.load(name)
        insert_observers(blocks)
        pipeline = restrict(whole.pipeline, blocks, held, components, torch_dtype, place)
        return cls(whole, role, pipeline, components, dtype, workflows)

    @property
    def parameter_bytes(self) -> int:
        """Bytes of parameters and saved buffers that this role holds."""
        return sum(self.component_bytes.values())

    @property
    def device_memory_bytes(self) -> int:
        """Memory of the CUDA device that this process has taken; 0 on CPU."""
        device = self._pipeline.device
        return torch.cuda.memory_reserved(device) if device.type == "cuda" else 0

    def run(
        self,
        inputs: Mapping[str, object],
        on_step: Callable[[Step], None],
        cancelled: Callable[[], bool],
    ) -> dict[str, object]:
        """Runs the role for one job.

        Args:
            inputs: For the encoder what `request_inputs` returns; for later roles what the role before returned.
                Not changed.
            on_step: Called after each denoising step, in this thread.
            cancelled: Asked before the role and after each step.

        Returns what the next role takes (state values and keys under `handoff.RESERVED_PREFIX`), or from the decoder
        the final outputs by name.

        Raises `JobCancelled` within one step of `cancelled()` turning true, and `InvalidRequest` where a block
        refuses a value (see `refusal`).
        """
        if cancelled():
            raise JobCancelled("the job was cancelled before this stage began")
        settings: Any = inputs.get(handoff.SETTINGS, {})
        rng: Any = inputs.get(handoff.RNG)
        seed = int(settings.get("seed", 0))
        observer = Observer(on_step, cancelled, int(settings.get("preview_every_steps", 0)), self._token_pixels)
        pipeline = for_job(self._pipeline, settings.get("overrides", {}), observer)
        is_first = self.role == ROLE_ENCODER
        state = self._initial_state(inputs, seed) if is_first else handoff.unpack(inputs, pipeline.device)
        self._check_held(state)
        with handoff.global_rng(pipeline.device, seed, rng):
            state = self._call(pipeline, state)
            rng = handoff.rng_state(pipeline.device, rng)
        if self.role == ROLE_DECODER:
            return {name: state.values[name] for name in self._outputs if state.values.get(name) is not None}
        outputs = handoff.pack(state, self._needs)
        return {
            **outputs,
            handoff.SETTINGS: dict(settings),
            handoff.RNG: rng,
            handoff.DEVICE_TYPE: pipeline.device.type,
        }

    def _check_held(self, state: PipelineState) -> None:
        """Where only some workflows were loaded, the job must be one of them."""
        if not self._workflows:
            return
        execution = self._whole.blocks[self.role].get_execution_blocks(**state.values)
        expected = {spec.name for spec in execution.expected_components}
        if missing := expected.intersection(self._whole.component_names(self.role)).difference(self._held):
            accepted = f"inputs of the loaded workflows {', '.join(self._workflows)}"
            raise InvalidRequest("request", f"a job that needs {', '.join(sorted(missing))}", accepted)

    def _initial_state(self, inputs: Mapping[str, object], seed: int) -> PipelineState:
        """The whole pipeline's inputs with the whole pipeline's defaults; roles' own defaults differ for some."""
        given = {name: value for name, value in inputs.items() if not name.startswith(handoff.RESERVED_PREFIX)}
        state = PipelineState()
        for parameter in self._whole.pipeline._blocks.inputs:
            name = parameter.name
            if name == "generator":
                state.set(name, given.pop(name, None) or torch.Generator().manual_seed(seed))
            elif name is not None:
                state.set(name, given.pop(name, parameter.default), parameter.kwargs_type)
        if given:
            raise InvalidRequest("inputs", sorted(given), "inputs of the pipeline")
        return state

    def _call(self, pipeline: ModularPipeline, state: PipelineState) -> PipelineState:
        values = dict(state.values)
        try:
            return pipeline(state=state)
        except Stop as stop:
            raise JobCancelled("the job was cancelled while this stage ran") from stop
        except (ValueError, TypeError, UnboundLocalError) as error:
            if not is_refusal(error):
                raise
            raise as_invalid_request(error, values) from error


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InvalidRequest("device", name, "a device of torch, for example cpu or cuda:0") from error
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise InvalidRequest("device", name, "cpu, because torch finds no CUDA device here")
        device = torch.device("cuda", device.index or 0)
    return device


def _settings(device: torch.device, dtype: str) -> dict[str, str]:
    """See `AnyStage.settings`. Torch's kernels differ between its builds; on a CPU some sum by threads."""
    settings = {
        "device": device.type,
        "dtype": dtype,
        "torch": torch.__version__,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
    }
    if device.type == "cuda":
        return {**settings, "hardware": torch.cuda.get_device_name(device)}
    hardware = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return {**settings, "threads": str(torch.get_num_threads()), "hardware": hardware}


def _parameter_bytes(component: Any) -> int:
    if not isinstance(component, torch.nn.Module):
        return 0
    saved = {id(tensor): tensor for tensor in component.state_dict(keep_vars=True).values()}
    return sum(tensor.nbytes for tensor in saved.values() if not tensor.is_meta)
