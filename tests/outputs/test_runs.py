"""Several results of one job are, to the bit, those of jobs of their own, in families that make one at a time."""

from __future__ import annotations

import io
import wave
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.families import zoo
from triptych.media import encoding
from triptych.media.made import exact_values
from triptych.model.inputs import resolve
from triptych.model.outputs import sampling_rate_hz
from triptych.roles import ROLES
from triptych.stages import Step
from triptych.stages.describe import describe
from triptych.stages.stage import Stage
from triptych.stages.whole import Whole
from triptych.transport import codec
from triptych.v1.dispatch_pb2 import ROLE_DECODER
from triptych.v1.job_pb2 import GenerationRequest
from triptych.v1.model_pb2 import OUTPUT_KIND_SOUND

Folder = Callable[[str], str]

FAMILIES_OF_ONE = {"Cosmos3DistilledModularPipeline", "cosmos3-omni", "minimax-h3", "minimax-music3", "wan-animate-2"}
RATES_HZ = {"ltx2": 16_000, "ltx2.5": 16_000, "echo": 16_000, "minimax-music3": 44_100}
"""What the vocoders of the tiny models say."""


def crossed(values: dict[str, Any]) -> dict[str, Any]:
    """As the next role gets them, out of a room."""
    encoded = codec.encode(values, "job")
    room = bytearray()
    for tensor, buffer in zip(encoded.manifest.tensors, encoded.buffers, strict=True):
        tensor.offset_bytes, tensor.size_bytes = len(room), buffer.nbytes
        room += buffer
    return codec.decode(encoded.manifest, memoryview(room))


class Model:
    """A tiny model's stages."""

    def __init__(self, folder: str) -> None:
        self.whole = Whole.open(folder)
        self.description = describe(self.whole)
        self._stages = [Stage.load(self.whole, role) for role in ROLES]

    def run(self, request: GenerationRequest, on_step: Callable[[Step], None]) -> dict[str, Any]:
        values = resolve(request, self.description).for_encoder()
        for stage in self._stages:
            values = stage.run(values, on_step, lambda: False)
            values = values if stage.role == ROLE_DECODER else crossed(values)
        return values


@pytest.mark.parametrize("family", sorted(FAMILIES_OF_ONE))
def test_the_description_says_how_several_are_made(family: str, family_folder: Folder) -> None:
    assert describe(Whole.open(family_folder(family))).result.count_input == ""


def test_only_these_families_make_one_at_a_time() -> None:
    for family in zoo.FAMILIES:
        names = {one.name for one in zoo.pipeline_class(family)()._blocks.inputs if one.name}
        has_count = any(name.startswith("num_") and name.endswith("_per_prompt") for name in names)
        assert has_count != (family in FAMILIES_OF_ONE or family == "wan-animate-2-distilled"), family


def test_each_result_is_that_of_a_job_with_its_seed(family_folder: Folder) -> None:
    model = Model(family_folder("minimax-music3"))
    seed = -1

    def request(seed: int, count: int) -> GenerationRequest:
        made = GenerationRequest(prompt="a quiet song", seed=seed, num_outputs=count, num_inference_steps=2)
        made.parameters.update({"lyrics": "la la", "audio_duration": 2.0})
        return made

    steps: list[Step] = []
    together = model.run(request(seed, 2), steps.append)
    steps_alone: list[Step] = []
    alone = [model.run(request(seed, 1), steps_alone.append), model.run(request(seed + 1, 1), lambda _step: None)]
    found = exact_values(together)
    assert len(found) == 2 * len(exact_values(alone[0]))
    differ = False
    for number, values in enumerate(alone):
        for name, value in exact_values(values).items():
            assert np.array_equal(np.asarray(found[f"{name}-{number}"]), np.asarray(value)), name
            differ = differ or not np.array_equal(np.asarray(found[f"{name}-{1 - number}"]), np.asarray(value))
    assert differ, "equal results of two seeds prove nothing"
    assert [step.step for step in steps] == list(range(1, len(steps) + 1))
    assert len(steps) == 2 * len(steps_alone)
    files = encoding.encode_outputs(together, "", 16, sampling_rate_hz=sampling_rate_hz(model.description))
    assert [file.name for file in files] == ["0.wav", "1.wav"]
    for file in files:
        with wave.open(io.BytesIO(file.data)) as reader:
            assert reader.getframerate() == RATES_HZ["minimax-music3"]


@pytest.mark.parametrize("family", RATES_HZ)
def test_the_rate_of_sound_is_the_vocoders(family: str, family_folder: Folder) -> None:
    description = describe(Whole.open(family_folder(family)))
    sounds = [one for one in description.result.outputs if one.kind == OUTPUT_KIND_SOUND]
    assert [one.sampling_rate_hz for one in sounds] == [RATES_HZ[family]]
    assert {"wav", "flac", "mp3", "npy"} <= set(description.result.formats)


@pytest.mark.parametrize("family", ["cosmos3-omni", "minimax-h3"])
def test_families_that_yield_the_rate_are_believed(family: str, family_folder: Folder) -> None:
    description = describe(Whole.open(family_folder(family)))
    assert "sampling_rate" in description.outputs
    assert sampling_rate_hz(description) == 0
