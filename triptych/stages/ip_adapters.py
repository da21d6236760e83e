"""IP-Adapters: adapters by which a picture speaks beside the prompt. On for a job, and off after it.

Diffusers loads one by putting processors of attention and a projection into the denoiser. Both are taken out after the
job and kept, and what the denoiser had before is put back, so that nothing of it is left for the next job. The
encoder's denoiser gets them too: diffusers reads the projection's kind and number there, and no weights of it.

All calls belong to the stage's thread.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file

from triptych.errors import InvalidRequest, ModelInvalid
from triptych.stages.library import ImageProjection, ModularPipeline

PICTURE_INPUT = "ip_adapter_image"
"""Diffusers' name of the input with a picture for each IP-Adapter."""
EMBEDS_INPUT = "ip_adapter_embeds"
"""And of what its image encoder makes of them, which a request may give instead."""
_ENCODER = "image_encoder"
_PARTS = ("image_proj", "ip_adapter")
"""The two parts of a file, as prefixes of its tensors' names."""


class _State(NamedTuple):
    """What a denoiser has of it."""

    processors: dict[str, Any]
    projection: Any
    kind: str | None


class IpAdapters:
    """The IP-Adapters of one role. A group of several at once is loaded as one, since diffusers does so."""

    def __init__(self, pipeline: ModularPipeline) -> None:
        """`pipeline` is the role's."""
        self._pipeline = pipeline
        self._name = component_of(pipeline)
        self._is_used = takes(pipeline) and self._name in {one.name for one in pipeline._blocks.expected_components}
        self._asks = self._is_used and PICTURE_INPUT in {one.name for one in pipeline._blocks.inputs}
        self._kept: dict[str, _State] = {}

    def touches(self, components: Iterable[str]) -> bool:
        """Whether an adapter of these components changes anything in this role."""
        return self._is_used and self._name in components

    def check(self, names: Sequence[str], inputs: Mapping[str, object]) -> None:
        """Raise `InvalidRequest` where the encoder's job has IP-Adapters and no picture for them, or the reverse."""
        if not self._asks:
            return
        is_given = any(inputs.get(name) is not None for name in (PICTURE_INPUT, EMBEDS_INPUT))
        if names and not is_given:
            raise InvalidRequest(f"inputs.{PICTURE_INPUT}", "nothing", f"a picture for each of {', '.join(names)}")
        if is_given and not names:
            raise InvalidRequest("adapters", "none", f"an IP-Adapter, because inputs.{PICTURE_INPUT} needs one")

    def bytes_of(self, key: str) -> int:
        """What a loaded group takes."""
        kept = self._kept[key]
        modules = [one for one in (*kept.processors.values(), kept.projection) if isinstance(one, torch.nn.Module)]
        return sum(parameter.nbytes for module in modules for parameter in module.parameters())

    def load(self, key: str, paths: Sequence[Path]) -> None:
        """Load a group of files under a key, and leave the model as it was."""
        model = self._model()
        before = _state_of(model)
        try:
            load_into(self._loader(model), [_parts(load_file(path)) for path in paths])
            self._kept[key] = _state_of(model)
        finally:
            _put(model, before)

    def forget(self, key: str) -> None:
        """Drop a group, if it is loaded."""
        self._kept.pop(key, None)

    @contextmanager
    def on(self, key: str, weights: Sequence[float]) -> Iterator[None]:
        """A loaded group for the length of the block, each of it with its weight."""
        model = self._model()
        before = _state_of(model)
        try:
            _put(model, self._kept[key])
            self._loader(model).set_ip_adapter_scale(list(weights))
            yield
        finally:
            _put(model, before)

    def _model(self) -> Any:
        return self._pipeline._role_components.get(self._name)

    def _loader(self, model: Any) -> Any:
        loader = copy.copy(self._pipeline)
        loader.__dict__[self._name] = model
        return loader


def takes(pipeline: Any) -> bool:
    """Whether diffusers loads IP-Adapters into this pipeline. Some classes say so, and their blocks take no picture."""
    return hasattr(type(pipeline), "load_ip_adapter") and PICTURE_INPUT in pipeline._role_components.input_names


def component_of(pipeline: Any) -> str:
    """The denoiser's name, as diffusers finds it."""
    return str(getattr(pipeline, "unet_name", "unet"))


def is_one(names: Iterable[str]) -> bool:
    """Whether a file with tensors of these names is an IP-Adapter."""
    return {name.partition(".")[0] for name in names} == set(_PARTS)


def load_into(loader: Any, parts: list[dict[str, dict[str, torch.Tensor]]]) -> None:
    """Load a group by diffusers' own loader. Its other arguments are for files that it looks up itself."""
    loader.load_ip_adapter(parts, subfolder=[""] * len(parts), weight_name=[""] * len(parts))


def attempt(pipeline: Any, tensors: Mapping[str, torch.Tensor]) -> str:
    """Load the file's tensors into a pipeline of shells; returns the component that it touches.

    Raises `ModelInvalid` where the model takes no such adapter, and whatever diffusers raises for one that doesn't fit.
    """
    if not takes(pipeline):
        raise ModelInvalid("it is an IP-Adapter, and this pipeline takes none")
    if any("_lora." in name for name in tensors):
        raise ModelInvalid("it is an IP-Adapter with a LoRA of its own (Face ID), which would stay in the model")
    encoder = getattr(pipeline, _ENCODER, None)
    if encoder is None:
        raise ModelInvalid(f"it is an IP-Adapter, and the model comes without its {_ENCODER}")
    name = component_of(pipeline)
    model = getattr(pipeline, name)
    before = _state_of(model)
    try:
        parts = _parts(tensors)
        load_into(pipeline, [parts])
        _check_shapes(_state_of(model), parts, encoder)
    finally:
        _put(model, before)
    return name


def _check_shapes(loaded: _State, parts: Mapping[str, Mapping[str, torch.Tensor]], encoder: Any) -> None:
    """Raise `ModelInvalid` where tensors are lacking or left over, or the image encoder's result doesn't fit.

    Diffusers turns some tensors into others, but never changes the number of all their elements.
    """
    (projection,) = loaded.projection.image_projection_layers
    added = [one for one in loaded.processors.values() if isinstance(one, torch.nn.Module)]
    for part, modules in zip(_PARTS, ([projection], added), strict=True):
        wanted = sum(parameter.numel() for module in modules for parameter in module.parameters())
        present = sum(tensor.numel() for tensor in parts[part].values())
        if wanted != present:
            raise ModelInvalid(f"it was made for another model: {part} has {present} numbers, and not {wanted}")
    is_plain = isinstance(projection, ImageProjection)
    width = encoder.config.projection_dim if is_plain else encoder.config.hidden_size
    shape = (1, width) if is_plain else (1, 2, width)
    try:
        projection(torch.empty(shape, device="meta"))
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ModelInvalid(f"it was made for another image encoder than one of width {width}") from error


def _parts(tensors: Mapping[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """The two parts of a file, as diffusers reads them."""
    parts: dict[str, dict[str, torch.Tensor]] = {part: {} for part in _PARTS}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = tensor
    return parts


def _state_of(model: Any) -> _State:
    kind = getattr(model.config, "encoder_hid_dim_type", None)
    return _State(dict(model.attn_processors), model.encoder_hid_proj, kind)


def _put(model: Any, state: _State) -> None:
    """Put a state into the model. `encoder_hid_proj` may be a projection of its own, whose attention isn't meant."""
    model.encoder_hid_proj = None
    model.set_attn_processor(dict(state.processors))
    model.encoder_hid_proj = state.projection
    model.config.encoder_hid_dim_type = state.kind
