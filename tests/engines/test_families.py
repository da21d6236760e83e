"""Every family's encoder gives the same bits when its models of transformers run elsewhere.

The calls take the way of a text-encoder process (`Models.answers`), without gRPC between.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch

from services.text_encoder.models import Models
from tests.stages.conftest import picture
from triptych.config import TextEncoderConfig
from triptych.errors import InvalidRequest
from triptych.model.inputs import resolve
from triptych.stages.describe import describe
from triptych.stages.engines import WAIT_FOR_IT, Answer, Call
from triptych.stages.stage import Stage
from triptych.stages.whole import Whole
from triptych.transport import calls, codec, room
from triptych.v1.dispatch_pb2 import ROLE_ENCODER
from triptych_client.request import build_request

SMALL = {"height": 32, "width": 32, "num_inference_steps": 2, "num_frames": 5}


class Direct:
    """Models of a text-encoder process as an engine in this process."""

    name, absent = "direct", WAIT_FOR_IT

    def __init__(self, whole: Whole) -> None:
        self.models = Models(whole, TextEncoderConfig(model=whole.model))
        self.called: list[tuple[str, str]] = []
        self.sent_bytes = 0

    def open(self, config_digest: str, settings: Mapping[str, str]) -> dict[str, str]:
        assert (self.models.config_digest, self.models.settings) == (config_digest, settings)
        return {}

    def serves(self, names: Sequence[str]) -> list[str]:
        return [name for name in names if name in self.models.names]

    def begin(self, cancelled: Callable[[], bool]) -> None:
        assert not cancelled()

    def call(self, call: Call) -> Answer:
        inputs = calls.pack(call.args, call.kwargs)
        (encoded,), _ = self.models.answers(call.component, call.module, [(inputs, call.wanted)])
        self.called.append((call.component, call.module))
        self.sent_bytes += sum(one.nbytes for one in encoded.buffers)
        pieces, _size_bytes = room.lay_out(1, encoded.manifest, encoded.buffers)
        buffer = memoryview(bytearray(b"".join(pieces)))
        return Answer(codec.decode(room.parse(buffer, 1), buffer)["output"], call.wanted or None)


def values_of(whole: Whole) -> dict[str, object]:
    """Inputs of a job of the family's plainest workflow: a prompt, and a picture where it can't do without."""
    description = describe(whole)
    names = {one.name for one in description.inputs}
    request = build_request("a red circle", seed=7)
    for name in SMALL.keys() & names:
        setattr(request, name, SMALL[name])
    try:
        return resolve(request, description).for_encoder()
    except InvalidRequest as error:
        if error.field != "media.image":
            raise
    png = io.BytesIO()
    picture().save(png, "png")
    request.media.add(name="image", data=png.getvalue())
    return resolve(request, description).for_encoder()


FAMILIES = (
    *("wan", "wan-i2v", "qwenimage", "stable-diffusion-3", "ltx2", "flux2", "z-image"),
    *("minimax-h3", "qwenimage21"),
)
"""Of each way in which blocks use their text encoders; docs/engines.md has all families."""
LEAST_SHARE = {"qwenimage": 6, "stable-diffusion-3": 1.5, "ltx2": 2, "minimax-h3": 50, "flux2": 10, "z-image": 5}
"""How many times fewer bytes a second job asks for, of some; Wan's blocks read all that their text encoders return."""
RUN_HERE = {"qwenimage21"}
"""Its blocks put a hook on a module inside the text encoder."""


@pytest.mark.parametrize("family", FAMILIES)
def test_the_encoders_outputs_are_equal(family: str, family_folder: Callable[[str], str]) -> None:
    whole = Whole.open(family_folder(family))
    values = values_of(whole)
    engine = Direct(whole)
    handed = Stage.load(whole, ROLE_ENCODER, engine=engine)
    assert not set(handed.component_bytes) & set(engine.models.names)
    expected = Stage.load(whole, ROLE_ENCODER).run(values, lambda _step: None, lambda: False)
    jobs = []
    for _ in range(2):  # the second job asks only for what the first one read
        engine.sent_bytes = 0
        engine.called.clear()
        assert same(handed.run(values, lambda _step: None, lambda: False), expected)
        jobs.append((engine.sent_bytes, len(engine.called)))
    (first_bytes, first_calls), (second_bytes, second_calls) = jobs
    assert second_bytes * LEAST_SHARE.get(family, 1) <= first_bytes, jobs
    assert second_calls <= first_calls
    runs_here = any(next(one.parameters()).device.type == "cpu" for one in held(handed, engine.models.names))
    assert runs_here == (family in RUN_HERE)


def held(stage: Stage, names: Sequence[str]) -> list[torch.nn.Module]:
    """The stage's own objects for components that an engine runs."""
    return [stage._pipeline._role_components.get(name) for name in names]


def test_a_model_without_an_encoder_of_transformers_is_refused(family_folder: Callable[[str], str]) -> None:
    whole = Whole.open(family_folder("cosmos3-omni"))
    with pytest.raises(InvalidRequest, match="a pipeline whose encoder has a model of transformers"):
        Direct(whole)


def test_a_part_that_was_not_sent_comes_by_a_repeated_call(family_folder: Callable[[str], str]) -> None:
    """Also where the caller has changed the arguments meanwhile."""
    whole = Whole.open(family_folder("qwenimage"))
    own, handed = whole.components().load("text_encoder"), whole.components()
    handed.engine = engine = Direct(whole)
    shell = handed.load("text_encoder")
    tokens = torch.tensor([[5, 9, 33, 7]])
    with torch.no_grad():
        expected = own(input_ids=tokens, output_hidden_states=True)
        for _ in range(2):
            output = shell(input_ids=tokens, output_hidden_states=True)
            assert torch.equal(output.hidden_states[-1], expected.hidden_states[-1])
        tokens.zero_()
        assert torch.equal(output.logits, expected.logits)
        assert torch.equal(output.hidden_states[0], expected.hidden_states[0])
    assert len(engine.called) == 3, "one more for all that is left"
    assert next(shell.parameters()).is_meta, "nothing was loaded here"


def test_a_model_that_writes_text_is_loaded_for_it(family_folder: Callable[[str], str]) -> None:
    """Its cache goes from call to call, and can't be sent."""
    whole = Whole.open(family_folder("qwenimage"))
    plain, handed = whole.components(), whole.components()
    handed.engine = Direct(whole)
    tokens = torch.tensor([[5, 9, 33, 7]])
    given = {"attention_mask": torch.ones_like(tokens), "max_new_tokens": 4, "do_sample": False}
    expected = plain.load("text_encoder").generate(tokens, **given)
    assert torch.equal(handed.load("text_encoder").generate(tokens, **given), expected)
    assert expected.shape == (1, 8)
    assert handed.get("text_encoder").device.type == "cpu"


def same(made: Any, expected: Any) -> bool:
    """Equality of all that an encoder hands on, tensors by their bits."""
    if isinstance(expected, torch.Tensor):
        return made.dtype == expected.dtype and torch.equal(made, expected)
    if isinstance(expected, torch.Generator):
        return torch.equal(made.get_state(), expected.get_state())
    if isinstance(expected, Mapping):
        return made.keys() == expected.keys() and all(same(made[key], expected[key]) for key in expected)
    if isinstance(expected, list | tuple):
        return len(made) == len(expected) and all(map(same, made, expected))
    return bool(made == expected) or repr(made) == repr(expected)
