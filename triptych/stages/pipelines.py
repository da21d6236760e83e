"""A role's pipeline: the whole pipeline, restricted to the role's blocks and components.

The class, component specs, config values and from-config components are the whole's, because a pipeline of a block list
alone differs silently: another class, another guider, another guidance scale. A component that the role doesn't hold is
made on first access: see `Components`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from triptych.errors import ModelInvalid
from triptych.means.options import Compile
from triptych.model.guidance import Options
from triptych.stages import guidance, on_demand
from triptych.stages.device import undisturbed
from triptych.stages.engines import Engine
from triptych.stages.folder import place_of
from triptych.stages.handed_over import can_be_handed, hand_over
from triptych.stages.library import (
    BaseGuidance,
    ComponentSpec,
    ConfigMixin,
    ModelMixin,
    ModularPipeline,
    ModularPipelineBlocks,
)
from triptych.stages.library_errors import loading
from triptych.stages.means import StageMeans
from triptych.stages.options import chosen
from triptych.stages.shells import build_shell, filled, keep_dtypes
from triptych.stages.weights import check_source


class RoleMixin:
    """What a role's pipeline adds to the whole pipeline's class: its device, and components made on access."""

    _component_specs: dict[str, ComponentSpec]
    _role_components: Components
    _role_device: torch.device
    _role_dtype: torch.dtype

    def __getattr__(self, name: str) -> Any:
        """Only reached for names without an attribute: components of other roles, and diffusers' own fallback."""
        made = self.__dict__.get("_role_components")
        if made is not None and name in made.specs:
            value = made.get(name)
            self.__dict__[name] = value
            return value
        return super().__getattr__(name)  # type: ignore[misc]

    @property
    def device(self) -> torch.device:
        """Set explicitly, because a role may hold no torch module at all."""
        return self._role_device

    @property
    def _execution_device(self) -> torch.device:
        return self._role_device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the first held module, as diffusers has it; the role's own where it holds none."""
        held = (self.__dict__.get(name) for name in self._component_specs)
        modules = (component for component in held if isinstance(component, torch.nn.Module))
        return getattr(next(modules, None), "dtype", self._role_dtype)


class Components:
    """Pristine components of the whole pipeline by name: held, made from config, or shells. Jobs get copies.

    A component without parameters (guider, scheduler, processor) holds per-job state, so every job gets a fresh one.
    """

    def __init__(
        self, whole: ModularPipeline, dtype: torch.dtype, device: torch.device, means: StageMeans | None = None
    ) -> None:
        self._whole = whole
        self._means = means
        self.specs: dict[str, ComponentSpec] = whole._component_specs
        self._dtype = dtype
        self._device = device
        self._pristine: dict[str, Any] = {}
        self.engine: Engine | None = None
        """Runs what it serves of the components that are loaded; None where all run here."""

    @property
    def guiders(self) -> list[str]:
        """Names of the components that are guiders."""
        return self.names_of(BaseGuidance)

    @property
    def input_names(self) -> set[str]:
        """Names of the whole pipeline's inputs."""
        return {one.name for one in self._whole._blocks.inputs if one.name}

    def names_of(self, base: type) -> list[str]:
        """Names of the components of this class or one made of it, whether the model has them or not."""
        kinds = {name: spec.type_hint for name, spec in self.specs.items()}
        return [name for name, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, base)]

    def pipeline(self, blocks: ModularPipelineBlocks, held: Sequence[str]) -> ModularPipeline:
        """A copy of the whole pipeline that runs only `blocks` and holds the components `held`, none made yet."""
        pipeline = copy.copy(self._whole)
        pipeline.__class__ = type(type(self._whole).__name__, (RoleMixin, type(self._whole)), {})
        for name in self.specs:
            pipeline.__dict__.pop(name, None)
        pipeline._blocks = blocks
        pipeline._component_specs = {name: self.specs[name] for name in held}
        pipeline._role_components = self
        pipeline._role_device = self._device
        pipeline._role_dtype = self._dtype
        return pipeline

    def load(self, name: str) -> Any:
        """Loads a component with its weights onto the device; None where the model has none of it.

        Raises `ModelInvalid` where its files can't be loaded.
        """
        spec = copy.copy(self.specs[name])
        if not comes_from_files(spec) or not is_model(spec):
            return self.get(name)
        if (engine := self._engine_of(spec)) is not None:
            if self._means is not None:
                self._means.check_elsewhere(name)
            with undisturbed():
                shell = build_shell(spec, self._dtype, self._device)
            component = hand_over(name, shell, self._device, engine, lambda: self._loaded(spec))
        else:
            component = self._loaded(spec)
        self._pristine[name] = component
        return component

    def load_later(self, name: str) -> bool:
        """In place of `load`: a stand-in for a model that a job may use, see `on_demand`. False where it must be
        loaded now: where another process runs it, or its means leave open where it will be."""
        spec = self.specs[name]
        place = self._means.place_of(name, self._device) if self._means is not None else self._device
        if self._engine_of(spec) is not None or place is None:
            return False
        with undisturbed():
            self._pristine[name] = on_demand.stand_in(name, self._shell_as_loaded(name, self._device), place)
        return True

    def put_back(self, name: str, component: Any) -> None:
        """Undo a `load`, or one that failed on its way."""
        self._pristine[name] = component

    def load_stand_in(self, name: str, *, shallow: bool) -> None:
        """In place of `load`: the component with zeros for weights, which take no memory on a CPU, for warm-ups."""
        spec = self.specs[name]
        if comes_from_files(spec) and is_model(spec):
            with undisturbed():
                self._pristine[name] = filled(build_shell(spec, self._dtype_of(name), self._device), shallow=shallow)

    def compile_of(self, name: str) -> Compile | None:
        """How a component is compiled; None where it isn't."""
        return self._means.compile_of(name) if self._means is not None else None

    def outline(self, name: str) -> torch.nn.Module:
        """The component on the CPU with the dtypes that it is loaded in, and zeros for weights, which take no memory
        there."""
        with undisturbed():
            return filled(self._shell_as_loaded(name, torch.device("cpu")), shallow=False)

    def _engine_of(self, spec: ComponentSpec) -> Engine | None:
        """What runs a model elsewhere; None where it runs here."""
        is_served = self.engine is not None and can_be_handed(spec.type_hint) and self.engine.serves([spec.name])
        return self.engine if is_served else None

    def _shell_as_loaded(self, name: str, device: torch.device) -> torch.nn.Module:
        dtype = self._dtype_of(name)
        return keep_dtypes(build_shell(self.specs[name], dtype, device), dtype)

    def _loaded(self, spec: ComponentSpec) -> Any:
        dtype = self._dtype_of(spec.name)
        told = f"{place_of(spec)}, on {self._device} as {str(dtype).removeprefix('torch.')},"
        with loading(told), undisturbed():
            if self._means is None:
                return load_model(spec, dtype).to(self._device)
            whole = self._means.single_file(spec, dtype)
            model = load_model(spec, dtype, **self._means.arguments(spec)) if whole is None else whole
            return self._means.place(spec.name, model, self._device)

    def _dtype_of(self, name: str) -> torch.dtype:
        return self._means.dtype_of(name, self._dtype) if self._means is not None else self._dtype

    def get(self, name: str) -> Any:
        """The component as a role that doesn't hold it sees it: a copy, a shell, or None where the model has none."""
        if name not in self._pristine:
            with undisturbed():
                self._pristine[name] = self._make(self.specs[name])
        pristine = self._pristine[name]
        if isinstance(pristine, ConfigMixin) and not isinstance(pristine, torch.nn.Module):
            return copy.deepcopy(pristine)
        return pristine

    def overridden(self, name: str, options: Mapping[str, object]) -> Any:
        """A fresh guider or scheduler with these options. Raises `InvalidRequest` where it refuses one."""
        return chosen(self.get(name) if name in self.specs else None, name, options)

    def _make(self, spec: ComponentSpec) -> Any:
        if is_made(spec):
            return self._whole.__dict__.get(spec.name)
        if not is_present(spec):
            return None
        if is_model(spec):
            return build_shell(spec, self._dtype_of(spec.name), self._device)
        with loading(place_of(spec)):
            return copy.copy(spec).load(**_cautions(spec))


def load_model(spec: ComponentSpec, dtype: torch.dtype, **means: Any) -> Any:
    """A model with its weights, loaded by these `means`. diffusers fills weights that are missing with noise; here that
    is an error.

    Models of transformers are not checked, because their checkpoints leave out tied weights under changing names.
    """
    check_source(spec)
    if not issubclass(spec.type_hint, ModelMixin):
        return spec.load(dtype=dtype, use_safetensors=True, **means)
    where = {"subfolder": spec.subfolder, "variant": spec.variant, "revision": spec.revision}
    path = spec.pretrained_model_name_or_path
    model, info = spec.type_hint.from_pretrained(
        path, **where, **means, dtype=dtype, use_safetensors=True, output_loading_info=True
    )
    if missing := info["missing_keys"]:
        some = ", ".join(sorted(missing)[:3])
        raise ModelInvalid(f"the weights of component {spec.name!r} lack {len(missing)} tensors, for example {some}")
    return model


def _cautions(spec: ComponentSpec) -> dict[str, object]:
    """What classes that choose another class by the model's own files are told: no pickles, no code from there."""
    cautions: dict[str, object] = {}
    if spec.type_hint.__name__.startswith("AutoModel"):
        check_source(spec)
        cautions["use_safetensors"] = True
    if spec.type_hint.__name__.startswith("Auto") and not issubclass(spec.type_hint, ConfigMixin):
        cautions["trust_remote_code"] = False
    return cautions


def is_model(spec: ComponentSpec) -> bool:
    """Whether the component has weights. One whose class isn't named is loaded by `AutoModel`, so it has."""
    return spec.type_hint is None or issubclass(spec.type_hint, torch.nn.Module)


def is_made(spec: ComponentSpec) -> bool:
    """Whether the component is made of its configuration, and no file."""
    return bool(spec.default_creation_method == "from_config")


def comes_from_files(spec: ComponentSpec) -> bool:
    """Whether the component is loaded from files that the model comes with."""
    return not is_made(spec) and is_present(spec)


def is_present(spec: ComponentSpec) -> bool:
    """Whether the model comes with this component; optional ones may be absent.

    In `model_index.json` an absent one is `[null, null]`; in the modular index it has no path.
    """
    return bool(spec.pretrained_model_name_or_path) and spec.type_hint is not None


def for_job(pipeline: ModularPipeline, overrides: Options, observer: object) -> ModularPipeline:
    """A copy of a role's pipeline for one job: shared models, fresh guiders and schedulers, the job's observer."""
    job = copy.copy(pipeline)
    components: Components = pipeline._role_components
    for name in components.specs:
        job.__dict__.pop(name, None)
    for name in job._component_specs:
        job.__dict__[name] = components.get(name)
    for name, options in overrides.items():
        job.__dict__[name] = components.overridden(name, options)
    for name in components.guiders:
        job.__dict__[name] = guidance.settled(getattr(job, name), job)
    job.__dict__["_role_observer"] = observer
    return job


def guiders_of(job: ModularPipeline) -> dict[str, BaseGuidance]:
    """The job's own guiders by component name, without those that the model doesn't have."""
    found = {name: getattr(job, name) for name in job._role_components.guiders}
    return {name: guider for name, guider in found.items() if guider is not None}
