"""The models of a text-encoder process, and the one thread that runs them."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from triptych.config import TextEncoderConfig
from triptych.errors import InvalidRequest, NotFound
from triptych.stages import parts
from triptych.stages.device import open_device, settings_of
from triptych.stages.handed_over import can_be_handed
from triptych.stages.library import Cache, ModelOutput
from triptych.stages.whole import Whole
from triptych.transport import calls, codec
from triptych.v1.dispatch_pb2 import ROLE_ENCODER

from .batching import ALWAYS, Arguments, Batching, kind_of

log = logging.getLogger(__name__)


class Models:
    """The encoder's components of transformers. `run` belongs to one thread; what else there is, is read only."""

    def __init__(self, whole: Whole, config: TextEncoderConfig) -> None:
        """Loads them. Raises as `Stage.load` does, and `InvalidRequest` for a model that has none."""
        device = open_device(config.device)
        if config.threads:
            torch.set_num_threads(config.threads)
        components = whole.components(getattr(torch, config.dtype), device)
        specs = whole.pipeline._component_specs
        names = [name for name in whole.component_names(ROLE_ENCODER) if can_be_handed(specs[name].type_hint)]
        if not names:
            raise InvalidRequest("model", whole.model, "a pipeline whose encoder has a model of transformers")
        self._device = device
        self._held: dict[str, torch.nn.Module] = {}
        for number, name in enumerate(names, 1):
            log.info("loading %s, component %d of %d", name, number, len(names))
            self._held[name] = components.load(name)
        self.names = names
        self.config_digest = whole.config_digest()
        self.settings = settings_of(device, config.dtype)
        if config.batching == ALWAYS:
            self.settings["text_encoder_batching"] = ALWAYS
        told = json.dumps([self.config_digest, self.settings], sort_keys=True)
        self.identity = hashlib.sha256(told.encode()).hexdigest()
        self._batching = Batching(config.batching)
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="text-encoder")

    def module(self, component: str, path: str) -> torch.nn.Module:
        """A module that a caller names. Raises NotFound."""
        try:
            return self._held[component].get_submodule(path)
        except (KeyError, AttributeError) as error:
            raise NotFound(f"there is no module {path!r} of a component {component!r} here") from error

    def run(self, module: torch.nn.Module, arguments: Arguments) -> Any:
        """What the module returns for arguments as they came, without what never crosses: caches of generation."""
        args, kwargs = parts.each_tensor(list(arguments), lambda tensor: tensor.to(self._device))
        with torch.no_grad():
            output = module(*args, **kwargs)
        if isinstance(output, ModelOutput):
            output = type(output)(**{name: value for name, value in output.items() if not isinstance(value, Cache)})
        return output

    def answers(
        self, component: str, path: str, asked: Sequence[tuple[bytes, Sequence[str]]]
    ) -> tuple[list[codec.Encoded], int]:
        """What rooms hold for calls of one module, in their order, and how many of them ran as one at most.

        A call is its arguments' bytes and the paths of the parts that are wanted of its output.
        """
        module = self.module(component, path)
        kinds: dict[Any, list[int]] = {}
        arguments = [calls.unpack(inputs) for inputs, _wanted in asked]
        for index, ((data, _wanted), one) in enumerate(zip(asked, arguments, strict=True)):
            kinds.setdefault(kind_of(data, one), []).append(index)
        outputs: dict[int, Any] = {}
        together = 1
        for kind, places in kinds.items():
            run = functools.partial(self.run, module)
            made, count = self._batching.run((component, path, kind), [arguments[place] for place in places], run)
            outputs |= dict(zip(places, made, strict=True))
            together = max(together, count)
        wanted = [parts.chosen(outputs[index], paths) for index, (_inputs, paths) in enumerate(asked)]
        return [codec.encode({"output": output}, "") for output in wanted], together
