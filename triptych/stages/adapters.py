"""The adapters of a fleet: which files there are, and what each would do to the model, without its weights.

Whether an adapter fits is tried on shells (`shells`) with `meta` tensors of its files' shapes, by the same calls of
diffusers that load it for a job (`lora`, `ip_adapters`).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open

from triptych.errors import FAILURE_CHARS_MAX, MissingExtra, ModelInvalid, TriptychError
from triptych.stages import ip_adapters
from triptych.stages.adapter_files import AdapterFiles, digest_of, in_folder, of_hub
from triptych.stages.library_errors import is_installed, said
from triptych.stages.lora import layer_count, load_into, loadable_names, shapes_of
from triptych.stages.whole import Whole
from triptych.stages.wrapped import Pair, pairs_of
from triptych.v1.model_pb2 import AdapterDescription

log = logging.getLogger(__name__)

_LAYER = re.compile(r"[._]lo(ra|kr)[._]")


class Registry(NamedTuple):
    """The adapters that a role may load, and what the fleet is told of them."""

    files: dict[str, AdapterFiles]
    """By name; those that fit the model."""
    described: tuple[AdapterDescription, ...]
    """By name; also those that can't be used."""

    @classmethod
    def open(cls, whole: Whole, folder: str = "", hub_ids: str = "") -> Registry:
        """The adapters of a folder and of the hub, each tried on the model. One that doesn't fit is told of as such.

        `hub_ids` are `OWNER/NAME[@REVISION][:FILE]`, with commas. Raises `InvalidRequest` for a folder that isn't there
        and ids that are none, `ModelInvalid` for files of the hub that can't be had, `MissingExtra` without peft.
        """
        found = {**in_folder(folder, loadable_names(whole.pipeline)), **of_hub(hub_ids)}
        if not found:
            return cls({}, ())
        if not is_installed("peft"):
            raise MissingExtra("peft", "serve", "adapters")
        trial = Trial(whole)
        described = tuple(trial.describe(name, parts) for name, parts in sorted(found.items()))
        for one in described:
            if one.unusable:
                log.warning("the adapter %r can't be used: %s", one.name, one.unusable)
            elif one.layers_left_out:
                log.warning("the adapter %r has %d layers that the model lacks", one.name, one.layers_left_out)
        fitting = [one for one in described if not one.unusable]
        files = {
            one.name: AdapterFiles(
                one.name,
                one.digest,
                tuple(found[one.name]),
                one.size_bytes,
                one.name in trial.ip_adapters,
                trial.pairs.get(one.name, {}),
            )
            for one in fitting
        }
        return cls(files, described)


class Trial:
    """Shells of the model's components, into which adapters are loaded to see whether they fit."""

    def __init__(self, whole: Whole) -> None:
        self._whole = whole
        self._pipeline = whole.inspection()
        self.ip_adapters: set[str] = set()
        """Names of those that are one."""
        self.pairs: dict[str, dict[str, dict[str, Pair]]] = {}
        """By name, what `AdapterFiles.pairs` has."""

    def describe(self, name: str, parts: Sequence[tuple[str, Path]]) -> AdapterDescription:
        """What an adapter is, or why it can't be used."""
        described = AdapterDescription(name=name)
        try:
            described.digest = digest_of(parts)
            described.size_bytes = sum(path.stat().st_size for _component, path in parts)
            self._try(described, parts)
        except Exception as error:  # noqa: BLE001 — libraries don't list what a file that lies makes them raise
            described.ClearField("components")
            described.unusable = _why(error)
            self._pipeline = self._whole.inspection()  # half of it may be in the shells
        return described

    def _try(self, described: AdapterDescription, parts: Sequence[tuple[str, Path]]) -> None:
        outlines = [(component, path, _outlines(path)) for component, path in parts]
        if any(ip_adapters.is_one(tensors) for _component, _path, tensors in outlines):
            if len(outlines) > 1:
                raise ModelInvalid("it has several files, one of which is an IP-Adapter: that needs a name of its own")
            described.components.append(ip_adapters.attempt(self._pipeline, outlines[0][2]))
            self.ip_adapters.add(described.name)
            return
        names = loadable_names(self._pipeline)
        if not names:
            raise ModelInvalid(f"diffusers loads no adapters into a {type(self._whole.pipeline).__name__}")
        before = shapes_of(self._pipeline)
        key = f"trial_{described.name.replace('.', '_').replace('/', '_')}"
        layers = 0
        for component, path, tensors in outlines:
            layers += _layers_in(self._pipeline, tensors, path)
            load_into(self._pipeline, tensors, key, component)
        touched = [name for name in names if key in self._pipeline.get_list_adapters().get(name, ())]
        if shapes_of(self._pipeline) != before:
            raise ModelInvalid("it changes the shapes of the model's own weights, which other jobs use, too")
        if unused := [component for component, _path in parts if component and component not in touched]:
            raise ModelInvalid(f"nothing of it is for the component {unused[0]!r}")
        if not touched:
            raise ModelInvalid(
                f"nothing of it is for a component of this model that takes adapters: {', '.join(names)}"
            )
        described.components.extend(touched)
        found = {name: pairs_of(getattr(self._pipeline, name), key) for name in touched}
        self.pairs[described.name] = {name: pairs for name, pairs in found.items() if pairs}
        described.layers_left_out = max(0, layers - layer_count(self._pipeline, key))


def _outlines(path: Path) -> dict[str, torch.Tensor]:
    """A file's tensors without their numbers; single numbers, which are scales, with them."""
    with safe_open(path, framework="pt") as file:
        outlines = {}
        for name in file.keys():  # noqa: SIM118 — it is no mapping
            part = file.get_slice(name)
            shape = part.get_shape()
            is_number = all(side == 1 for side in shape) and len(shape) <= 1
            outlines[name] = file.get_tensor(name) if is_number else torch.empty(shape, device="meta")
    return outlines


def _layers_in(pipeline: Any, tensors: dict[str, torch.Tensor], path: Path) -> int:
    """Layers that a file is for, by diffusers' names. Raises `ModelInvalid` where it is more than an adapter."""
    converted = type(pipeline).lora_state_dict(dict(tensors))
    names = list(converted[0] if isinstance(converted, tuple) else converted)
    others = [name for name in names if _LAYER.search(name) is None]
    if not names:
        raise ModelInvalid(f"{path.name} holds nothing")
    if others:
        raise ModelInvalid(
            f"{path.name} holds other weights than an adapter's, for example {others[0]}: they would stay in the model"
        )
    return len({_LAYER.split(name)[0] for name in names})


def _why(error: Exception) -> str:
    """One sentence. torch lists each tensor that doesn't fit in a line of its own."""
    if isinstance(error, TriptychError):
        return str(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    misfits = [line for line in lines if line.startswith("size mismatch")]
    if misfits:
        first = re.sub(r"\.trial_\w+", "", misfits[0])
        return f"it was made for another model: {len(misfits)} of its tensors don't fit, for example {first}"
    if type(error).__name__ == "NoMatchingPeftModuleError":
        return "it was made for another model: this one has none of its layers"
    return f"diffusers can't load it: {said(error)}"[:FAILURE_CHARS_MAX]
