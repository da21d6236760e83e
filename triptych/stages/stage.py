"""One role of a pipeline, loaded and ready: `run` takes a job one phase further.

A stage holds the role's models; everything else is made for the job. A process runs one stage at a time, because a job
has the process's global random generator to itself while it runs.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch

from triptych.errors import InvalidRequest, JobCancelled
from triptych.means.options import DTYPES, RoleMeans
from triptych.means.tables import LOSSY
from triptych.model.adapters import SETTING
from triptych.model.fields import GENERATOR, LATENT
from triptych.roles import ROLES, role_name
from triptych.stages import Place, Step, finite, guidance, handoff, objects, parallel, several
from triptych.stages.adapter_files import AdapterFiles
from triptych.stages.branches import Branches
from triptych.stages.describe import size_multiple
from triptych.stages.device import global_rng, open_device, rng_state, settings_of
from triptych.stages.engines import Engine
from triptych.stages.inputs import classes_of
from triptych.stages.library import ModularPipeline, PipelineState
from triptych.stages.library_errors import as_invalid_request, explained, is_refusal
from triptych.stages.lora import Adapters
from triptych.stages.means import StageMeans
from triptych.stages.observer import Observer, Stop, insert_observers
from triptych.stages.on_demand import OnDemand
from triptych.stages.options import unhooked
from triptych.stages.pipelines import Components, for_job, guiders_of
from triptych.stages.preview import Painter
from triptych.stages.preview_sources import DECODER_NAME, open_painter
from triptych.stages.tokens import TokensCut, TokenWatch
from triptych.stages.whole import Whole
from triptych.v1.dispatch_pb2 import ROLE_DECODER, ROLE_ENCODER, ROLE_TRANSFORMER, Role

log = logging.getLogger(__name__)

StandIn = Literal["", "whole", "shallow"]
"""Whether a stage has zeros for weights, in all of its blocks or in one of each kind."""


class Stage:
    """One role with its models. Make it with `Stage.load`."""

    def __init__(
        self,
        whole: Whole,
        role: Role.ValueType,
        pipeline: ModularPipeline,
        dtype: str,
        nonfinite: str,
        means: StageMeans,
    ) -> None:
        components = {name: pipeline._role_components.get(name) for name in pipeline._component_specs}
        self.role = role
        self._whole = whole
        self._pipeline = pipeline
        self._needs = whole.needs_after(role)
        self._outputs = whole.outputs() if role == ROLE_DECODER else []
        self._input_defaults = {one.name: one.default for one in whole.pipeline._blocks.inputs if one.name}
        self._classes = {
            one.name: classes_of(one, whole.pipeline._blocks) for one in whole.pipeline._blocks.inputs if one.name
        }
        self._required_negatives = guidance.required_negatives(whole.blocks[role])
        self._encodes_both = False
        """Whether the encoder's blocks have failed without the unconditional branch."""
        self._painter = Painter()
        self._engine: Engine | None = None
        self._means = means
        self.lossy = means.lossy(role)
        with means.running():
            self.settings = {**settings_of(pipeline.device, dtype), **means.settings()}
        if self.lossy:
            self.settings[LOSSY] = "\n".join(self.lossy)
        self._branches: Branches | None = None
        """The branches of guidance that other processes share."""
        self._checks_finite = nonfinite == "fail"
        self._watch = finite.Watch(components if role == ROLE_DECODER and self._checks_finite else {})
        self._tokens = TokenWatch(components if role == ROLE_ENCODER else {})
        self._adapters = Adapters(pipeline, {})
        self._on_demand = OnDemand(whole, pipeline._role_components, [], self._loaded)
        self.component_bytes: dict[str, int] = {}
        self._count_bytes()

    @classmethod
    def load(
        cls,
        whole: Whole,
        role: Role.ValueType,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        threads: int | None = None,
        nonfinite: str = "fail",
        engine: Engine | None = None,
        means: RoleMeans | None = None,
        stand_in: StandIn = "",
        adapters: Mapping[str, AdapterFiles] | None = None,
        adapter_bytes_max: int = 2**32,
    ) -> Stage:
        """Loads the components that the role's blocks expect, and no others; some of them later, see `on_demand`.

        `dtype` is one of `DTYPES`, for all models of the role; `threads` are torch's in this process, of its own choice
        where not given; `nonfinite` is `fail`, or `allow` for outputs with NaN and infinity; `engine` runs text
        encoders elsewhere; `means` say how each model is placed and run; `adapters` are those that jobs may use
        (`Registry.files`), see `lora`. A `stand_in` has zeros for weights, and computes nothing but shapes.

        Raises `InvalidRequest` for a role, device or dtype that doesn't exist, `ModelInvalid` for files that
        can't be loaded, `MissingExtra` where a package isn't installed that the role's code needs.
        """
        if role not in ROLES:
            raise InvalidRequest("role", role, ", ".join(Role.Name(known) for known in ROLES))
        if dtype not in DTYPES:
            raise InvalidRequest("dtype", dtype, ", ".join(DTYPES))
        place = open_device(device)
        if threads is not None:
            torch.set_num_threads(threads)
        whole.check_packages(role)
        declared = engine.open(whole.config_digest(), settings_of(place, dtype)) if engine is not None else {}
        blocks = copy.deepcopy(whole.blocks[role])
        held = whole.component_names(role)
        staged = StageMeans(means or RoleMeans(), list(whole.pipeline._component_specs), held, [blocks])
        components = whole.components(getattr(torch, dtype), place, staged)
        components.engine = engine
        waiting = _load_each(components, held, whole.waiting_names(role), stand_in)
        whole.check_uses(role, components)
        insert_observers(blocks)
        stage = cls(whole, role, components.pipeline(blocks, held), dtype, nonfinite, staged)
        if role == ROLE_TRANSFORMER and not stand_in:
            stage._painter = open_painter(whole, size_multiple(whole.inspection()), place)
        stage._adapters = Adapters(stage._pipeline, adapters or {}, adapter_bytes_max)
        if waiting:
            stage._on_demand = OnDemand(whole, components, waiting, stage._loaded)
        stage._count_bytes()
        if lossy := list(filter(None, (stage.settings.get(LOSSY), declared.get(LOSSY)))):
            declared = {**declared, LOSSY: "\n".join(lossy)}
        stage.settings |= declared
        stage._engine = engine
        return stage

    @property
    def waiting(self) -> list[str]:
        """The models that the role loads when a job first uses one."""
        return list(self._on_demand.waiting)

    @property
    def adapter_samples(self) -> list[str]:
        """Adapters that use all code of compiled models that is for adapters, each in a job of its own."""
        return self._adapters.samples

    def _loaded(self) -> None:
        """A model was loaded that waited."""
        self._adapters = self._adapters.renewed()
        self._count_bytes()

    def _count_bytes(self) -> None:
        components: Components = self._pipeline._role_components
        held = [name for name in self._pipeline._component_specs if name not in self.waiting]
        sizes = {name: _parameter_bytes(components.get(name)) for name in held}
        self.component_bytes = {name: size_bytes for name, size_bytes in sizes.items() if size_bytes}
        if self._painter.decoder is not None:
            self.component_bytes[DECODER_NAME] = self._painter.decoder.parameter_bytes

    def share(self, kind: str, place: Place) -> None:
        """Compute every job from now on together with other processes, which do the same; `parallel` has the kinds.

        Returns when all are there; models that wait are loaded first. Raises InvalidRequest where the role's models
        can't be divided so.
        """
        self._on_demand.load_all()
        held = {name: self._pipeline._role_components.get(name) for name in self._pipeline._component_specs}
        parallel.join(place, self._pipeline.device)
        self._branches = parallel.divide(kind, held, self._pipeline.device)
        self.settings["parallel"] = f"{kind} {place.size}"

    @property
    def tokens_cut(self) -> list[TokensCut]:
        """What the encoder's tokenizers cut off in the last job."""
        return self._tokens.cuts

    @property
    def device_memory_bytes(self) -> int:
        """Memory of the CUDA device that this process has taken; 0 on CPU."""
        device = self._pipeline.device
        return torch.cuda.memory_reserved(device) if device.type == "cuda" else 0

    @property
    def device_uuid(self) -> str:
        """The UUID of the CUDA device, without NVML's prefix; empty on CPU."""
        device = self._pipeline.device
        return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else ""

    def run(
        self,
        inputs: Mapping[str, object],
        on_step: Callable[[Step], None],
        cancelled: Callable[[], bool],
    ) -> dict[str, object]:
        """Runs the role for one job.

        `inputs` are for the encoder what `Inputs.for_encoder` returns, for later roles what the role before returned;
        they aren't changed. `on_step` is called after each denoising step, in this thread; `cancelled` is asked before
        the role and after each step.

        Returns what the next role takes (state values and keys under `handoff.RESERVED_PREFIX`), or from the decoder
        the final outputs by name; where a job makes several results one after another, see `several`.

        Raises `JobCancelled` within one step of `cancelled()` turning true, and `InvalidRequest` where a block
        refuses a value (see `library_errors`), `NotFinite` for outputs with NaN or infinity, unless these are allowed.
        """
        if cancelled():
            raise JobCancelled("the job was cancelled before this stage began")
        if runs := several.runs_of(inputs):
            return several.run_each(runs, lambda one, on_own_step: self.run(one, on_own_step, cancelled), on_step)
        if self._engine is not None:
            self._engine.begin(cancelled)
        return self._on_demand.run(inputs, lambda own: self._run(own, on_step, cancelled))

    def _run(
        self, inputs: Mapping[str, object], on_step: Callable[[Step], None], cancelled: Callable[[], bool]
    ) -> dict[str, object]:
        """`run`, for one result. Raises `Touched` where a model is used that waits."""
        settings: Any = inputs.get(handoff.SETTINGS, {})
        seed = int(settings.get("seed", 0))

        def step_done(step: Step) -> None:
            self._means.next_step()
            on_step(step)

        observer = Observer(step_done, cancelled, int(settings.get("preview_every_steps", 0)), self._painter)
        pipeline = for_job(self._pipeline, settings.get("overrides", {}), observer)
        if self._branches is not None:
            self._branches.watch(guiders_of(pipeline).values())
        if self.role == ROLE_DECODER and inputs.get("output_type") == LATENT:
            return self._finite(handoff.latents(handoff.unpack(inputs, pipeline.device), pipeline._blocks))
        run_blocks = self._encode if self.role == ROLE_ENCODER else self._continue
        with self._adapters.applied(settings.get(SETTING, ()), inputs):
            state, rng = run_blocks(pipeline, inputs, seed)
        if self.role == ROLE_DECODER:
            made = {name: state.values.get(name) for name in self._outputs}
            return self._finite({name: value for name, value in made.items() if value is not None})
        return {
            **self._finite(handoff.pack(state, self._needs)),
            handoff.SETTINGS: dict(settings),
            handoff.RNG: rng,
            handoff.DEVICE_TYPE: pipeline.device.type,
        }

    def _finite(self, outputs: dict[str, object]) -> dict[str, object]:
        if self._checks_finite:
            finite.check(role_name(self.role), outputs)
            self._watch.check(role_name(self.role), outputs)
        return outputs

    def _encode(self, pipeline: ModularPipeline, inputs: Mapping[str, object], seed: int) -> tuple[PipelineState, Any]:
        """The encoder's blocks, with the unconditional branch that guidance needs, or that they don't run without."""
        guiders = guiders_of(pipeline)
        on = guidance.is_on(guiders.values())
        if guiders and not guiders.keys() & {spec.name for spec in pipeline._blocks.expected_components}:
            inputs = guidance.with_negative_prompt(inputs, self._input_defaults, on)
        if on or self._encodes_both:
            _switch_on(pipeline, guiders)
        try:
            return self._seeded(pipeline, self._initial_state(inputs, pipeline.device), seed, None)
        except InvalidRequest:
            if on or self._encodes_both or not guiders:
                raise
        _switch_on(pipeline, guiders)
        result = self._seeded(pipeline, self._initial_state(inputs, pipeline.device), seed, None)
        self._encodes_both = True
        return result

    def _continue(
        self, pipeline: ModularPipeline, inputs: Mapping[str, object], seed: int
    ) -> tuple[PipelineState, Any]:
        """The later roles' blocks, on what the role before made."""
        state = handoff.unpack(inputs, pipeline.device)
        guiders = guiders_of(pipeline)
        if guiders and not guidance.is_on(guiders.values()):
            for name, value in guidance.stand_ins(state.values, self._required_negatives).items():
                state.set(name, value)
        return self._seeded(pipeline, state, seed, inputs.get(handoff.RNG))

    def _seeded(
        self, pipeline: ModularPipeline, state: PipelineState, seed: int, rng: Any
    ) -> tuple[PipelineState, Any]:
        """Runs the blocks with the process's random numbers as the role before left them; returns theirs, too."""
        self._check_held(state)
        self._watch.begin()
        self._tokens.begin(state.values)
        with self._means.running(), global_rng(pipeline.device, seed, rng):
            state = self._call(pipeline, state)
            return state, rng_state(pipeline.device, rng)

    def _check_held(self, state: PipelineState) -> None:
        """Where only some workflows were loaded, the job must be one of them."""
        if not self._whole.workflows:
            return
        execution = self._whole.blocks[self.role].get_execution_blocks(**state.values)
        expected = {spec.name for spec in execution.expected_components}
        if missing := expected.intersection(self._whole.unloaded_names(self.role)):
            accepted = f"inputs of the loaded workflows {', '.join(self._whole.workflows)}"
            raise InvalidRequest("request", f"a job that needs {', '.join(sorted(missing))}", accepted)

    def _initial_state(self, inputs: Mapping[str, object], device: torch.device) -> PipelineState:
        """The whole pipeline's inputs with the whole pipeline's defaults; roles' own defaults differ for some."""
        given = {name: value for name, value in inputs.items() if not name.startswith(handoff.RESERVED_PREFIX)}
        state = PipelineState()
        for parameter in self._whole.pipeline._blocks.inputs:
            name = parameter.name
            if name == GENERATOR:
                state.set(name, given.pop(name, None) or _generators(inputs))
            elif name in given:
                classes = self._classes.get(name, ())
                value = objects.ready(given.pop(name), device, classes, f"inputs.{name}")
                state.set(name, value, parameter.kwargs_type)
            elif name is not None:
                state.set(name, parameter.default, parameter.kwargs_type)
        if given:
            raise InvalidRequest("inputs", sorted(given), "inputs of the pipeline")
        return state

    def _call(self, pipeline: ModularPipeline, state: PipelineState) -> PipelineState:
        values = dict(state.values)
        held = (getattr(pipeline, name, None) for name in pipeline._component_specs)
        models = [component for component in held if isinstance(component, torch.nn.Module)]
        try:
            with unhooked(guiders_of(pipeline).values(), models):
                return pipeline(state=state)
        except Stop as stop:
            raise JobCancelled("the job was cancelled while this stage ran") from stop
        except ImportError as error:
            if (missing := explained(error, "this combination of inputs")) is None:
                raise
            raise InvalidRequest("request", "a combination of inputs", f"others here, since {missing}") from error
        except (ValueError, TypeError, UnboundLocalError) as error:
            if not is_refusal(error):
                raise
            raise as_invalid_request(error, values) from error


def _load_each(components: Components, held: list[str], later: list[str], stand_in: StandIn) -> list[str]:
    """Loads the role's components, or stand-ins. Returns those among `later` that wait for a job."""
    waiting = []
    for number, name in enumerate(held, 1):
        if stand_in:
            components.load_stand_in(name, shallow=stand_in == "shallow")
        elif name in later and components.load_later(name):
            waiting.append(name)
            log.info("%s, component %d of %d, waits for a job that uses it", name, number, len(held))
        else:
            log.info("loading %s, component %d of %d", name, number, len(held))
            components.load(name)
    return waiting


def _generators(inputs: Mapping[str, object]) -> torch.Generator | list[torch.Generator]:
    """The job's generator, or one for each result."""
    settings: Any = inputs.get(handoff.SETTINGS, {})
    if seeds := settings.get("seeds"):
        return [torch.Generator().manual_seed(seed) for seed in seeds]
    return torch.Generator().manual_seed(int(settings.get("seed", 0)))


def _switch_on(pipeline: ModularPipeline, guiders: Mapping[str, Any]) -> None:
    pipeline.__dict__.update({name: guidance.switched_on(guider) for name, guider in guiders.items()})


def _parameter_bytes(component: Any) -> int:
    if not isinstance(component, torch.nn.Module):
        return 0
    saved = {id(tensor): tensor for tensor in component.state_dict(keep_vars=True).values()}
    return sum(tensor.nbytes for tensor in saved.values() if not tensor.is_meta)
