"""Options of a pipeline's guiders and schedulers: as inputs named `component.option`, and as a job's own component.

A guider may be of another class that diffusers publishes; it then starts from that class's defaults. A scheduler keeps
its class and the rest of its configuration. Both are made anew for each job, and by every role alike.
"""

from __future__ import annotations

import contextlib
import inspect
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from triptych.errors import InvalidRequest
from triptych.model.guidance import CLASS
from triptych.stages import hints
from triptych.stages.device import undisturbed
from triptych.stages.library import BaseGuidance, SchedulerMixin, diffusers
from triptych.v1 import model_pb2
from triptych.v1.model_pb2 import InputDescription

GUIDERS: Mapping[str, type[BaseGuidance]] = {
    name: kind
    for name, kind in vars(diffusers.guiders).items()
    if isinstance(kind, type) and issubclass(kind, BaseGuidance) and kind is not BaseGuidance
}
"""Classes of guiders by name, as diffusers publishes them."""
_REFUSALS = (ValueError, TypeError, NotImplementedError, AssertionError)
"""What classes raise for options that they can't use."""


def guider_inputs(name: str, guider: BaseGuidance, *, is_first: bool) -> list[InputDescription]:
    """A guider's options and its class as inputs. The first guider's scale is the request's own field."""
    described = _described(f"{name}.", type(guider), guider.config)
    choice = InputDescription(
        name=f"{name}.{CLASS}",
        kind=model_pb2.INPUT_KIND_TEXT,
        description="Another class of guider in place of the model's own, with its own options and defaults.",
        type_hint="str",
        choices=sorted(GUIDERS),
        fields=[
            InputDescription(name=kind, kind=model_pb2.INPUT_KIND_OBJECT, fields=_described("", GUIDERS[kind], {}))
            for kind in sorted(GUIDERS)
        ],
    )
    return [choice, *(one for one in described if not (is_first and one.name == f"{name}.guidance_scale"))]


def scheduler_inputs(name: str, scheduler: SchedulerMixin) -> list[InputDescription]:
    """A scheduler's options as inputs."""
    return _described(f"{name}.", type(scheduler), scheduler.config)


def chosen(component: Any, name: str, options: Mapping[str, object]) -> Any:
    """A fresh guider or scheduler with these options. Raises `InvalidRequest` where its class refuses one."""
    values = {option: value for option, value in options.items() if option != CLASS}
    if isinstance(component, BaseGuidance):
        kind = GUIDERS.get(str(options[CLASS])) if CLASS in options else type(component)
        if kind is None:
            raise InvalidRequest(f"{name}.{CLASS}", options[CLASS], ", ".join(sorted(GUIDERS)))
    elif isinstance(component, SchedulerMixin) and CLASS not in options:
        kind = type(component)
    else:
        raise InvalidRequest(name, dict(options), "options of a guider or scheduler that the pipeline has")
    known = _hints_of(kind)
    if unknown := sorted(set(values) - set(known)):
        raise InvalidRequest(f"{name} options", unknown, ", ".join(sorted(known)))
    try:
        with undisturbed():
            return kind(**values) if CLASS in options else kind.from_config(component.config, **values)
    except _REFUSALS as error:
        raise InvalidRequest(name, dict(options), " ".join(str(error).split()) or "other options") from error


@contextlib.contextmanager
def unhooked(guiders: Iterable[BaseGuidance], models: Iterable[torch.nn.Module]) -> Iterator[None]:
    """Take off what guiders have hooked into models that other jobs use, where the job fails: it doesn't itself."""
    try:
        yield
    except BaseException:
        for guider in guiders:
            for model in models:
                guider.cleanup_models(model)
        raise


def _hints_of(kind: Any) -> dict[str, tuple[Any, object]]:
    """Hint and default of each argument of a class."""
    found = typing.get_type_hints(kind.__init__)
    parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]
    named = (one for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY))
    return {one.name: (found.get(one.name), None if one.default is one.empty else one.default) for one in named}


def _described(prefix: str, kind: type, config: Mapping[str, Any]) -> list[InputDescription]:
    described = []
    for option, (hint, default) in _hints_of(kind).items():
        meant = hints.meaning(option, hint) if hint is not None else hints.Meaning(model_pb2.INPUT_KIND_UNSPECIFIED)
        if model_pb2.INPUT_KIND_TENSOR in meant.items:  # numpy's arrays, beside lists of numbers
            meant = hints.Meaning(model_pb2.INPUT_KIND_LIST)
        described.append(
            InputDescription(
                name=prefix + option,
                kind=meant.kind,
                item_kinds=meant.items,
                arity=meant.arity,
                default_json=hints.json_or_empty(config.get(option, default)),
                description=f"Option {option} of {kind.__name__}.",
                type_hint=hints.shown(hint),
                choices=hints.choices_of(hint),
            )
        )
    return described
