"""A job of a given size without weights: what each role's models take beside them, and what it hands on.

Every model is made of its configuration alone, on the `meta` device. When a block calls one, the tensors that go in are
put there, the call is followed by `lifetimes`, and zeros of the result's shape come back. All else, blocks,
schedulers, guiders and processors, runs as in any job. So what crosses between roles has its real sizes.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from triptych.errors import InvalidRequest, ModelInvalid
from triptych.means.options import RoleMeans
from triptych.model.inputs import resolve
from triptych.roles import ROLES, role_name
from triptych.stages.components import check_component
from triptych.stages.describe import describe
from triptych.stages.library import ComponentSpec, ModularPipeline, transformers
from triptych.stages.lifetimes import META, Lifetimes
from triptych.stages.means import StageMeans
from triptych.stages.observer import insert_observers
from triptych.stages.pipelines import Components, comes_from_files, is_model
from triptych.stages.sizes import as_loaded
from triptych.stages.stage import Stage
from triptych.stages.whole import Whole
from triptych.transport import codec
from triptych.v1.dispatch_pb2 import Role
from triptych.v1.job_pb2 import GenerationRequest

ENTRIES = ("forward", "encode", "decode", "generate")
"""Methods by which blocks call models."""
LONG_PROMPT = " ".join(["word"] * 512)
"""Longer than most models read: they cut it, and take as much memory as for any long prompt."""
TOKENS_MAX = 512
"""Tokens of the prompt where the model comes without its tokenizer's files, and its blocks name no bound."""


class DryRun(NamedTuple):
    """What one role took."""

    activation_bytes: int
    """Peak of the calls of its models: each call's own tensors, what goes in, and what comes out."""
    room_bytes: int
    called: Sequence[str] = ()
    """The components whose models were called."""


def dry_run(
    whole: Whole, request: GenerationRequest, dtypes: Mapping[Role.ValueType, torch.dtype]
) -> dict[Role.ValueType, DryRun]:
    """Run `request` through all roles.

    Raises `InvalidRequest` for what the model can't take, and `ModelInvalid` where files are missing that its blocks
    use, or a model's code needs values, which tensors on `meta` don't have.
    """
    found: dict[Role.ValueType, DryRun] = {}
    values = resolve(request, describe(whole)).for_encoder()
    for role in ROLES:
        stage, components = _stage(whole, role, dtypes[role])
        try:
            values = stage.run(values, lambda _step: None, lambda: False)
        except (InvalidRequest, ModelInvalid):
            raise
        except Exception as error:  # the models' own code, which nobody wrote for this
            said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            sentence = f"the {role_name(role)} of {whole.model!r} doesn't run without weights: {said}"
            raise ModelInvalid(sentence) from error
        found[role] = DryRun(
            components.peak_bytes, 0 if role == ROLES[-1] else room_bytes(values), sorted(components.called)
        )
    return found


def room_bytes(values: Mapping[str, object]) -> int:
    """Bytes of the tensors that a role hands on, as a room stores them."""
    return sum(buffer.nbytes for buffer in codec.encode(values, "plan").buffers)


def _stage(whole: Whole, role: Role.ValueType, dtype: torch.dtype) -> tuple[Stage, _DryComponents]:
    components = _DryComponents(whole.pipeline, dtype, torch.device("cpu"))
    blocks = copy.deepcopy(whole.blocks[role])
    insert_observers(blocks)
    held = whole.component_names(role)
    means = StageMeans(RoleMeans(), list(whole.pipeline._component_specs), held, [blocks])
    pipeline = components.pipeline(blocks, held)
    return Stage(whole, role, pipeline, str(dtype).removeprefix("torch."), "allow", means), components


class _DryComponents(Components):
    """Components whose models have no weights, and are watched."""

    def __init__(self, whole: ModularPipeline, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(whole, dtype, device)
        self.peak_bytes = 0
        self.called: set[str] = set()
        self._is_inside = False

    def _make(self, spec: ComponentSpec) -> Any:
        if not comes_from_files(spec):
            return super()._make(spec)
        if is_model(spec):
            return self._watched(spec.name, as_loaded(spec, self._dtype))
        if _is_tokenizer(spec) and not _has_files(spec):
            return _FullPrompts()
        return super()._make(spec)

    def _watched(self, component: str, model: torch.nn.Module) -> torch.nn.Module:
        cls = type(model)
        # Blocks put what they make where the model says that it is.
        model.__class__ = type(cls.__name__, (cls,), {"device": property(lambda _self: torch.device("cpu"))})
        for name in ENTRIES:
            if callable(original := getattr(model, name, None)):
                setattr(model, name, self._followed(component, model, original))
        return model

    def _followed(self, component: str, model: torch.nn.Module, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            if self._is_inside:  # one entry that calls another
                return original(*args, **kwargs)
            self.called.add(component)
            lifetimes = Lifetimes()
            lifetimes.ignore([*model.parameters(), *model.buffers()])
            self._is_inside = True
            try:
                inputs = _moved((args, kwargs), lambda tensor: lifetimes.count(tensor.to(META)))
                with torch.no_grad(), lifetimes:
                    result = original(*inputs[0], **inputs[1])
            finally:
                self._is_inside = False
            self.peak_bytes = max(self.peak_bytes, lifetimes.peak_bytes)
            return _moved(result, lambda tensor: torch.zeros(tensor.shape, dtype=tensor.dtype))

        return call


class _FullPrompts:
    """Stands in for a tokenizer whose files aren't there: every text has as many tokens as it may have."""

    def __call__(self, text: str | list[str], *, max_length: int = TOKENS_MAX, **_options: Any) -> Any:
        shape = (1 if isinstance(text, str) else len(text), max_length)
        ids = torch.ones(shape, dtype=torch.long)
        return transformers.BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})


def _is_tokenizer(spec: ComponentSpec) -> bool:
    return "Tokenizer" in getattr(spec.type_hint, "__name__", "")


def _has_files(spec: ComponentSpec) -> bool:
    if not Path(spec.pretrained_model_name_or_path).is_dir():
        return True  # on the hub
    try:
        check_component(spec, weights=False)
    except ModelInvalid:
        return False
    return True


def _moved(value: Any, move: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The value with `move` of each tensor in it: in lists, tuples, mappings, model outputs, and one object deep."""
    if isinstance(value, torch.Tensor):
        return move(value)
    if isinstance(value, dict):  # model outputs are dicts, too
        fresh = copy.copy(value)
        for key, item in value.items():
            fresh[key] = _moved(item, move)
        return fresh
    if isinstance(value, list | tuple):
        items = [_moved(item, move) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if any(isinstance(item, torch.Tensor) for item in getattr(value, "__dict__", {}).values()):
        fresh = copy.copy(value)
        for key, item in vars(value).items():
            if isinstance(item, torch.Tensor):
                setattr(fresh, key, move(item))
        return fresh
    return value
