"""A stage without a model, for load tests: it takes a given time, and what it makes follows from the request alone.

Everything around it is real: inputs cross through the codec, the arena and the rings as those of a model do. The
numbers are unsigned 32-bit integers, whose arithmetic is the same on every machine, so a request's result is known to
the bit (`expected_outputs`). Imports no torch.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from triptych.errors import InvalidRequest, JobCancelled
from triptych.media.tensor_files import Tensor
from triptych.model.inputs import SETTINGS, resolve
from triptych.roles import ROLES
from triptych.stages import Step, several
from triptych.v1 import job_pb2, model_pb2
from triptych.v1.dispatch_pb2 import ROLE_DECODER, ROLE_ENCODER, ROLE_TRANSFORMER, Role
from triptych.v1.model_pb2 import InputDescription

SIDE_SHARE = 0.1
"""Encoder and decoder take this share of the transformer's time: about what they take of a real video's."""
CHANNELS = 3
EMBEDDING_WORDS = 64
"""Length of the stand-in for a prompt's embedding."""
_MULTIPLIER = np.uint32(1664525)
_INCREMENT = np.uint32(1013904223)
"""The linear congruential generator of Numerical Recipes: each step changes every word, and all later words with it."""
Words = npt.NDArray[np.uint32]


def _input(name: str, kind: model_pb2.InputKind.ValueType, default_json: str = "", about: str = "") -> InputDescription:
    return InputDescription(name=name, kind=kind, default_json=default_json, description=about)


FAKE_MODEL = model_pb2.ModelDescription(
    model="fake",
    pipeline_class="FakeStage",
    config_digest=hashlib.sha256(b"triptych fake stage 2").hexdigest(),
    inputs=[
        InputDescription(name="prompt", kind=model_pb2.INPUT_KIND_TEXT, required=True),
        _input("height", model_pb2.INPUT_KIND_INTEGER, "64"),
        _input("width", model_pb2.INPUT_KIND_INTEGER, "64"),
        _input("num_inference_steps", model_pb2.INPUT_KIND_INTEGER, "8"),
        InputDescription(name="image", kind=model_pb2.INPUT_KIND_IMAGE, default_json="null", takes_several=True),
        _input("video", model_pb2.INPUT_KIND_VIDEO, "null"),
        InputDescription(
            name="conditions",
            kind=model_pb2.INPUT_KIND_OBJECT,
            arity=model_pb2.INPUT_ARITY_LIST,
            description="Pictures with their strengths, as pipelines take them that bind frames.",
            fields=[
                InputDescription(name="image", kind=model_pb2.INPUT_KIND_IMAGE, required=True),
                _input("strength", model_pb2.INPUT_KIND_NUMBER, "1.0"),
            ],
        ),
        InputDescription(
            name="embeds", kind=model_pb2.INPUT_KIND_TENSOR, tensor_dtypes=["F32"], tensor_shape=["n", "4"]
        ),
        _input("refuse", model_pb2.INPUT_KIND_BOOLEAN, "false", "Have the encoder refuse the job, as blocks do."),
        _input("fail", model_pb2.INPUT_KIND_BOOLEAN, "false", "Have the transformer fail the job, as a bug would."),
    ],
    outputs=["images"],
    defaults_json='{"height": 64, "num_inference_steps": 8, "width": 64}',
)
"""The model of a fleet of fake stages that was given no other name."""


def fake_model(name: str) -> model_pb2.ModelDescription:
    """A fake model by its name."""
    model = model_pb2.ModelDescription()
    model.CopyFrom(FAKE_MODEL)
    if name != FAKE_MODEL.model:
        model.model = name
        model.config_digest = hashlib.sha256(f"triptych fake stage 2 {name}".encode()).hexdigest()
    return model


class FakeStage:
    """Stands for `stage.Stage`. `seconds` is the transformer's time; see `SIDE_SHARE` for the other roles.

    Each role of another `model` gives other bits.
    """

    def __init__(self, role: Role.ValueType, seconds: float, model: str = FAKE_MODEL.model) -> None:
        self.role = role
        self.settings: dict[str, str] = {}
        self._salt = np.uint32(0) if model == FAKE_MODEL.model else _words(f"model {model} {role}", (1,))[0]
        self.component_bytes: dict[str, int] = {}
        self.device_memory_bytes = 0
        self.device_uuid = ""
        self.tokens_cut: list[tuple[str, str, int]] = []
        self._seconds = seconds if role == ROLE_TRANSFORMER else seconds * SIDE_SHARE

    def run(
        self,
        inputs: Mapping[str, object],
        on_step: Callable[[Step], None],
        cancelled: Callable[[], bool],
    ) -> dict[str, object]:
        """As `Stage.run`: checks `cancelled` before the role and after each step."""
        if cancelled():
            raise JobCancelled("the job was cancelled before this stage began")
        if runs := several.runs_of(inputs):
            return several.run_each(runs, lambda one, on_own_step: self.run(one, on_own_step, cancelled), on_step)
        values: dict[str, Any] = dict(inputs)
        if self.role == ROLE_DECODER:
            values["latents"] = values["latents"] ^ self._salt
        if self.role == ROLE_TRANSFORMER:
            outputs = self._denoise(values, on_step, cancelled)
        else:
            _take(self._seconds)
            outputs = encode(values) if self.role == ROLE_ENCODER else decode(values)
        if "latents" in outputs:
            outputs["latents"] = outputs["latents"] ^ self._salt
        return outputs

    def _denoise(
        self, values: dict[str, Any], on_step: Callable[[Step], None], cancelled: Callable[[], bool]
    ) -> dict[str, Any]:
        latents = values["latents"]
        step_count = values["num_inference_steps"]
        if values["fail"]:
            raise RuntimeError("the job asks for a failure")
        for step in range(1, step_count + 1):
            _take(self._seconds / step_count)
            latents = denoise_step(latents, values["prompt_embeds"])
            on_step(Step(step, step_count, b""))
            if cancelled():
                raise JobCancelled("the job was cancelled while this stage ran")
        return {"latents": latents}


def encode(values: Mapping[str, Any]) -> dict[str, Any]:
    """The encoder's outputs. Raises InvalidRequest for a job that asks to be refused."""
    if values.get("refuse"):
        raise InvalidRequest("refuse", True, "false, for a job that is to succeed")
    shape = (values["height"], values["width"], CHANNELS)
    return {
        "prompt_embeds": _words(f"prompt {values['prompt']}{_media_text(values)}", (EMBEDDING_WORDS,)),
        "latents": _words(f"seed {values[SETTINGS].get('seeds', values[SETTINGS]['seed'])}", shape),
        "num_inference_steps": values["num_inference_steps"],
        "fail": bool(values.get("fail")),
    }


def denoise_step(latents: Words, prompt_embeds: Words) -> Words:
    """One step: each word depends on itself, its neighbour and the prompt."""
    flat = latents.reshape(-1)
    mixed = flat * _MULTIPLIER + np.roll(flat, 1) + _INCREMENT + np.resize(prompt_embeds, flat.shape)
    return mixed.astype(np.uint32).reshape(latents.shape)


def decode(values: Mapping[str, Any]) -> dict[str, Any]:
    """The decoder's outputs: one picture, the words' highest bytes."""
    pixels_HWC = (values["latents"] >> np.uint32(24)).astype(np.uint8)
    return {"images": pixels_HWC[None]}


def expected_outputs(request: job_pb2.GenerationRequest, model: str = FAKE_MODEL.model) -> dict[str, object]:
    """What a fleet of fake stages makes of a request that has a seed."""
    values: dict[str, object] = resolve(request, fake_model(model)).for_encoder()
    for role in ROLES:
        values = FakeStage(role, 0.0, model).run(values, lambda _step: None, lambda: False)
    return values


def _media_text(values: Mapping[str, Any]) -> str:
    """A text that stands for the pixels of a request's pictures and videos; empty where there are none."""
    digest = hashlib.sha256()
    nothing = digest.digest()
    for name in ("image", "video", "conditions", "embeds"):
        for piece in _pieces(name, values.get(name)):  # one at a time: a piece may be the largest picture there is
            digest.update(piece)
    return f" with {digest.hexdigest()}" if digest.digest() != nothing else ""


def _pieces(place: str, value: Any) -> Iterator[bytes]:
    """What an input holds, piece by piece: pixels, tensors, plain values."""
    if isinstance(value, list):
        for item in value:
            yield from _pieces(place, item)
    elif isinstance(value, dict):
        for name, item in sorted(value.items()):
            yield from _pieces(f"{place}.{name}", item)
    elif hasattr(value, "tobytes"):
        yield f"{place} {value.size} {value.mode} ".encode() + value.tobytes()
    elif isinstance(value, Tensor):
        yield f"{place} {value.dtype} {value.shape} ".encode() + value.data
    elif value is not None:
        yield f"{place} {value!r} ".encode()


def _words(text: str, shape: tuple[int, ...]) -> Words:
    size_bytes = 4 * int(np.prod(shape))
    return np.frombuffer(hashlib.shake_128(text.encode()).digest(size_bytes), "<u4").astype(np.uint32).reshape(shape)


def _take(seconds: float) -> None:
    """Spend time without work."""
    if seconds > 0:
        threading.Event().wait(seconds)  # nobody sets it: the stage's thread has only this job
