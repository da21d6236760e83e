"""A job's adapters in a role's models: loaded once, switched on for the job, and off after it.

peft wraps the layers that an adapter touches and keeps its two small matrices beside the layer's own weights, which are
never changed. Between jobs all adapters are off, and a wrapped layer computes just what the bare one does. Adapters
stay loaded; when they take more than `bytes_max`, the least recently used goes, but none of the job in hand. Into a
compiled model they are swapped by `slots`, where its means say so.
IP-Adapters among them are another kind of file, and `ip_adapters` does the same for those.

All calls belong to the stage's thread.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import logging
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import torch

from triptych.errors import AdapterMissing, InvalidRequest
from triptych.model.adapters import Used, missing_sentence
from triptych.stages.adapter_files import AdapterFiles
from triptych.stages.device import undisturbed
from triptych.stages.ip_adapters import IpAdapters
from triptych.stages.library import (
    ModularPipeline,
    delete_adapter_layers,
    set_adapter_layers,
    set_weights_and_activate_adapters,
)
from triptych.stages.on_demand import is_absent
from triptych.stages.slots import open_slots
from triptych.stages.wrapped import bytes_of, has, ranks_of

log = logging.getLogger(__name__)


class Adapters:
    """The adapters of one role."""

    def __init__(self, pipeline: ModularPipeline, files: Mapping[str, AdapterFiles], bytes_max: int = 0) -> None:
        """`pipeline` is the role's; `files` are what it may load, by name."""
        self._pipeline = pipeline
        self._files = files
        self._bytes_max = bytes_max
        held = [name for name in loadable_names(pipeline) if name in pipeline._component_specs]
        engine = pipeline._role_components.engine
        self._handed = {name for name in held if engine is not None and engine.serves([name])}
        """Components whose weights another process holds."""
        models = {name: pipeline._role_components.get(name) for name in held if name not in self._handed}
        self._models: dict[str, torch.nn.Module] = {
            name: model for name, model in models.items() if model is not None and not is_absent(model)
        }
        self._slots = open_slots(pipeline, self._models, files)
        self._holders = [*self._models.values(), *(one.outline for one in self._slots.values())]
        """Where adapters are loaded."""
        self._pictures = IpAdapters(pipeline)
        self._loaded: OrderedDict[str, int] = OrderedDict()
        """Bytes of loaded adapters, and of groups of IP-Adapters, by key, the least recently used first."""

    def renewed(self) -> Adapters:
        """The role's adapters after one of its models was loaded: none is in any model until a job uses it."""
        for key in list(self._loaded):
            self._forget(key)
        return Adapters(self._pipeline, self._files, self._bytes_max)

    @property
    def loaded_bytes(self) -> int:
        """What the loaded adapters take."""
        return sum(self._loaded.values())

    @property
    def samples(self) -> list[str]:
        """Names of adapters that between them touch each component with slots: with them all their code is used."""
        usable = sorted(name for name, files in self._files.items() if not self._handed & files.pairs.keys())
        fitting = ([one for one in usable if self._is_swapped(one, name)][:1] for name in self._slots)
        return list(dict.fromkeys(itertools.chain.from_iterable(fitting)))

    def _is_swapped(self, adapter: str, component: str) -> bool:
        return component in self._slots and self._slots[component].fits(self._files[adapter])

    @contextmanager
    def applied(self, items: Sequence[Sequence[Any]], inputs: Mapping[str, object]) -> Iterator[None]:
        """Runs a job with its adapters (the items of `Used`, in order), and leaves the models as they were.

        Raises `AdapterMissing` where this role lacks one, or its files are others than the job was accepted with, and
        `InvalidRequest` for one that touches a component of an engine, or an IP-Adapter that has no picture in the
        role's `inputs`.
        """
        adapters = [Used(*item) for item in items]
        pictures = [one for one in adapters if self._is_ip_adapter(one)]
        if all(one.name in self._files for one in adapters):
            self._pictures.check([one.name for one in pictures], inputs)
        for one in adapters:
            if elsewhere := self._handed.intersection(one.components):
                accepted = f"adapters that leave {', '.join(sorted(elsewhere))} alone, which another process runs here"
                raise InvalidRequest("adapters", one.name, accepted)
        here = [one for one in adapters if one not in pictures and self._models.keys() & set(one.components)]
        pictures = [one for one in pictures if self._pictures.touches(one.components)]
        if not here and not pictures:
            yield
            return
        try:
            with ExitStack() as stack:
                with undisturbed():
                    self._switch_on(here)
                    if pictures:
                        key = self._group(pictures)
                        weights = [one.weight_of(one.components[0]) for one in pictures]
                        stack.enter_context(self._pictures.on(key, weights))
                yield
        finally:
            for model in self._models.values():
                set_adapter_layers(model, enabled=False)
            self._evict()

    def _switch_on(self, adapters: Sequence[Used]) -> None:
        keys = [self._kept(one) for one in adapters]
        for name, model in self._models.items():
            weights = {key: one.weight_of(name) for key, one in zip(keys, adapters, strict=True)}
            own = [key for key in keys if has(model, key)]
            taken = self._slots[name].take(weights) if name in self._slots else {}
            set_adapter_layers(model, enabled=bool(own or taken))
            if own:
                set_weights_and_activate_adapters(model, own, [weights[key] for key in own])
            if taken:
                cast(Any, model).set_adapter([taken.get(key, key) for key in keys if key in taken or key in own])

    def _is_ip_adapter(self, adapter: Used) -> bool:
        files = self._files.get(adapter.name)
        return files is not None and files.is_ip_adapter

    def _group(self, adapters: Sequence[Used]) -> str:
        """The key of a group of IP-Adapters that is loaded now."""
        key = "+".join(map(_key, adapters))
        if key not in self._loaded:
            self._pictures.load(key, [self._checked(one).parts[0][1] for one in adapters])
            self._loaded[key] = self._pictures.bytes_of(key)
        self._loaded.move_to_end(key)
        return key

    def _kept(self, adapter: Used) -> str:
        """The key of an adapter that is loaded now."""
        key = _key(adapter)
        if key not in self._loaded:
            self._load(key, self._checked(adapter))
        self._loaded.move_to_end(key)
        return key

    def _checked(self, adapter: Used) -> AdapterFiles:
        files = self._files.get(adapter.name)
        present = files.digest if files is not None else ""
        if files is None or present != adapter.digest:
            raise AdapterMissing(missing_sentence(adapter.name, adapter.digest, present))
        if not files.is_unchanged():
            raise AdapterMissing(
                f"the files of the adapter {adapter.name!r} were changed; this worker must start again"
            )
        return files

    def _load(self, key: str, files: AdapterFiles) -> None:
        try:
            for component, path in files.parts:
                load_into(self._loader(files.name), path, key, component)
        except BaseException:
            self._forget(key)
            raise
        self._loaded[key] = sum(bytes_of(model, key) for model in self._holders)
        for name, model in self._models.items():
            if self._pipeline._role_components.compile_of(name) is not None and has(model, key):
                log.warning("the compiled %s is compiled again for the adapter %r", name, files.name)

    def _loader(self, adapter: str) -> ModularPipeline:
        """The role's pipeline for diffusers' own loaders; of a component that it doesn't hold nothing is loaded."""
        loader = copy.copy(self._pipeline)
        for name in loadable_names(loader):
            if self._is_swapped(adapter, name):
                loader.__dict__[name] = self._slots[name].outline
            elif name in self._models:
                loader.__dict__[name] = self._models[name]
            elif name in loader._role_components.specs:
                shell = loader._role_components.get(name)
                loader.__dict__[name] = _Elsewhere(shell) if shell is not None else None
        return loader

    def _evict(self) -> None:
        while self._loaded and self.loaded_bytes > self._bytes_max:
            self._forget(next(iter(self._loaded)))

    def _forget(self, key: str) -> None:
        self._loaded.pop(key, None)
        self._pictures.forget(key)
        for model in self._holders:
            if has(model, key):
                delete_adapter_layers(model, key)


class _Elsewhere:
    """Stands for a model that another role holds, and takes no adapter."""

    def __init__(self, shell: torch.nn.Module) -> None:
        self._shell = shell

    def __getattr__(self, name: str) -> Any:
        return getattr(self._shell, name)

    def load_lora_adapter(self, *_args: object, **_options: object) -> None:
        """diffusers' models take an adapter by this."""

    load_adapter = load_lora_adapter

    def to(self, *_args: object, **_options: object) -> _Elsewhere:
        return self


def loadable_names(pipeline: Any) -> list[str]:
    """Components that diffusers loads adapters into, by its own table; none for pipelines without one."""
    return list(getattr(type(pipeline), "_lora_loadable_modules", []))


def load_into(pipeline: Any, source: Path | dict[str, torch.Tensor], key: str, component: str, **options: Any) -> None:
    """Load an adapter's file by diffusers' own loader of the family. `component` is empty where the file names its own;
    `options` are that loader's.

    A file for one of two denoisers looks like one for the first: diffusers has an option for the other.
    """
    if component and component != loadable_names(pipeline)[0]:
        options[f"load_into_{component}"] = True
    if isinstance(source, Path):
        options.update(weight_name=source.name, use_safetensors=True, local_files_only=True)
    pipeline.load_lora_weights(str(source.parent) if isinstance(source, Path) else source, adapter_name=key, **options)


def shapes_of(pipeline: Any) -> dict[str, torch.Size]:
    """The shapes of the weights that the model itself has, by component and name."""
    return {
        f"{component}.{name.replace('.base_layer', '')}": parameter.shape
        for component in loadable_names(pipeline)
        if isinstance(model := getattr(pipeline, component, None), torch.nn.Module)
        for name, parameter in model.named_parameters()
        if ".lora_" not in name and ".lokr_" not in name
    }


def layer_count(pipeline: Any, key: str) -> int:
    """How many layers an adapter touches."""
    models = (getattr(pipeline, name, None) for name in loadable_names(pipeline))
    return sum(
        key in ranks_of(module) for model in models if isinstance(model, torch.nn.Module) for module in model.modules()
    )


def _key(adapter: Used) -> str:
    """peft's name of an adapter: unlike ours, without dots, and another for other files."""
    return "adapter_" + hashlib.sha256(f"{adapter.name}\0{adapter.digest}".encode()).hexdigest()[:16]
