"""Inputs that only trees say: the bits of diffusers' own pipeline, through the stages and what crosses between."""

from __future__ import annotations

import io
import wave
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.pipelines.ltx2.pipeline_ltx2_condition import LTX2VideoCondition
from PIL import Image

from tests import models
from tests.families import zoo
from tests.stages.conftest import assert_equal_bits
from triptych.errors import InvalidRequest
from triptych.model.inputs import resolve
from triptych.roles import ROLES
from triptych.stages import objects
from triptych.stages.describe import describe
from triptych.stages.inputs import classes_of, describe_input
from triptych.stages.stage import Stage
from triptych.stages.whole import Whole
from triptych.transport import codec
from triptych.v1.job_pb2 import GenerationRequest
from triptych.v1.model_pb2 import ModelDescription
from triptych.v1.room_pb2 import Manifest
from triptych_client.request import build_request

SIZE = {"height": 32, "width": 32, "num_inference_steps": 2}
SEED = 7


class Tiny:
    """A model with its three stages, and diffusers' own pipeline of it."""

    def __init__(self, folder: str) -> None:
        whole = Whole.open(folder)
        self.description: ModelDescription = describe(whole)
        self._stages = [Stage.load(whole, role) for role in ROLES]
        self._folder = folder

    def run(self, request: GenerationRequest) -> dict[str, Any]:
        """Through what crosses as bytes."""
        values = resolve(request, self.description).for_encoder()
        for stage in self._stages:
            values = stage.run(values, lambda _step: None, lambda: False)
            values = crossed(values)
        return values

    def encode(self, values: dict[str, object]) -> dict[str, object]:
        """The encoder alone."""
        return self._stages[0].run(values, lambda _step: None, lambda: False)

    def expected(self, output: str, seeds: list[int] | None = None, **arguments: Any) -> Any:
        """What diffusers makes of the arguments. `scheduler` and `guider` change the pipeline's own."""
        pipeline = diffusers.ModularPipeline.from_pretrained(self._folder)
        pipeline.load_components(dtype=torch.float32)
        for name in ("scheduler", "guider"):
            if (change := arguments.pop(name, None)) is not None:
                pipeline.update_components(**{name: change(getattr(pipeline, name))})
        torch.manual_seed(seeds[0] if seeds else SEED)
        generator = [torch.Generator().manual_seed(seed) for seed in seeds or [SEED]]
        return pipeline(**arguments, generator=generator if seeds else generator[0], output=output)


def crossed(values: Mapping[str, object]) -> dict[str, Any]:
    encoded = codec.encode(values, "job")
    room = bytearray()
    for ref, buffer in zip(encoded.manifest.tensors, encoded.buffers, strict=True):
        room += bytes(-len(room) % 64)
        ref.offset_bytes = len(room)
        room += bytes(buffer)
    return codec.decode(Manifest.FromString(encoded.manifest.SerializeToString()), memoryview(room))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Tiny]:
    root, made = tmp_path_factory.mktemp("inputs"), {}

    def get(name: str) -> Tiny:
        if name not in made:
            own = getattr(models, name, None)
            made[name] = Tiny(own(root / name) if own else zoo.make(name, Path(root, name)))
        return made[name]

    return get


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def picture(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (32, 32, 3), np.uint8))


def test_several_prompts_each_result_with_its_seed(tiny: Callable[[str], Tiny]) -> None:
    one = tiny("qwen_image")
    prompts = ["a circle", "two squares of another colour"]
    texts = {"prompt": prompts, "negative_prompt": ["blur", "noise"]}
    request = build_request(inputs=texts, seeds=[3, 9, 3, 9], num_outputs=2, **SIZE)
    expected = one.expected("images", [3, 9, 3, 9], num_images_per_prompt=2, **texts, **SIZE)
    found = one.run(request)["images"]
    assert len(found) == 4
    assert_equal_bits(found, expected)


def test_a_result_of_a_batch_has_its_seeds_noise(tiny: Callable[[str], Tiny]) -> None:
    one = tiny("wan_t2v")
    request = build_request("a", seeds=[5, 6], num_outputs=2, num_frames=5, **SIZE)
    expected = one.expected("videos", [5, 6], prompt="a", num_videos_per_prompt=2, num_frames=5, **SIZE)
    assert_equal_bits(one.run(request)["videos"], expected)


def test_latents_and_sigmas(tiny: Callable[[str], Tiny]) -> None:
    one = tiny("wan_t2v")
    latents = noise(*_latent_shape(one, num_frames=5))
    sigmas = [0.9, 0.4]
    request = build_request("a", seed=SEED, num_frames=5, inputs={"latents": latents}, **SIZE)
    expected = one.expected("videos", prompt="a", num_frames=5, latents=latents, **SIZE)
    assert_equal_bits(one.run(request)["videos"], expected)
    one = tiny("qwen_image")
    request = build_request("a", seed=SEED, inputs={"sigmas": sigmas}, **SIZE)
    assert_equal_bits(one.run(request)["images"], one.expected("images", prompt="a", sigmas=sigmas, **SIZE))


def _latent_shape(one: Tiny, num_frames: int) -> tuple[int, ...]:
    request = build_request("a", seed=SEED, num_frames=num_frames, **SIZE)
    values = resolve(request, one.description).for_encoder()
    values = one._stages[0].run(values, lambda _step: None, lambda: False)
    values = one._stages[1].run(values, lambda _step: None, lambda: False)
    found: Any = values["latents"]
    return tuple(found.shape)


def test_a_schedulers_options(tiny: Callable[[str], Tiny]) -> None:
    one = tiny("wan_t2v")
    request = build_request("a", seed=SEED, num_frames=5, parameters={"scheduler.flow_shift": 5.0}, **SIZE)
    found = one.run(request)["videos"]
    usual = one.expected("videos", prompt="a", num_frames=5, **SIZE)
    shifted = one.expected(
        "videos", prompt="a", num_frames=5, scheduler=lambda own: own.from_config(own.config, flow_shift=5.0), **SIZE
    )
    assert_equal_bits(found, shifted)
    assert not np.array_equal(np.array(usual), np.array(shifted))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("AdaptiveProjectedGuidance", {"guidance_scale": 3.0, "eta": 0.5}),
        ("SkipLayerGuidance", {"skip_layer_guidance_layers": [0], "skip_layer_guidance_stop": 0.9}),
        ("ClassifierFreeZeroStarGuidance", {"zero_init_steps": 1}),
    ],
)
def test_another_class_of_guider(kind: str, options: dict[str, Any], tiny: Callable[[str], Tiny]) -> None:
    one = tiny("wan_t2v")
    asked = {name: value for name, value in options.items() if name != "guidance_scale"}
    request = build_request(
        "a",
        seed=SEED,
        num_frames=5,
        guidance_scale=options.get("guidance_scale"),
        inputs={"guider.class": kind, **{f"guider.{name}": value for name, value in asked.items()}},
        **SIZE,
    )
    own = getattr(diffusers.guiders, kind)
    expected = one.expected("videos", prompt="a", num_frames=5, guider=lambda _own: own(**options), **SIZE)
    assert_equal_bits(one.run(request)["videos"], expected)
    plain = build_request("a", seed=SEED, num_frames=5, **SIZE)
    assert_equal_bits(one.run(plain)["videos"], one.expected("videos", prompt="a", num_frames=5, **SIZE))


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ({"guider.class": "Guidance"}, r"inputs\.guider\.class is 'Guidance'; accepted"),
        ({"guider.class": "SkipLayerGuidance", "guider.eta": 1.0}, r"inputs\.guider\.eta is 1; accepted"),
        ({"scheduler.flow_shift": "much"}, r"inputs\.scheduler\.flow_shift is 'much'; accepted: a finite number"),
        ({"scheduler.num_train_timesteps": 10**9}, r"accepted: 1 to 10000"),
        ({"scheduler.prediction_type": "no such"}, r"."),
    ],
)
def test_each_bad_option(inputs: dict[str, Any], sentence: str, tiny: Callable[[str], Tiny]) -> None:
    with pytest.raises(InvalidRequest, match=sentence):
        tiny("wan_t2v").run(build_request("a", inputs=inputs, num_frames=5, **SIZE))


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def test_pictures_inside_conditions(tiny: Callable[[str], Tiny]) -> None:
    """Of LTX-2's own class, which only its description names: the encoder makes of them what it makes of its own."""
    first, second = {"frames": png(picture(1)), "index": 0, "strength": 0.8}, {"frames": picture(2), "index": 1}
    conditions = [LTX2VideoCondition(picture(1), 0, 0.8), LTX2VideoCondition(picture(2), 1)]
    assert_same_encoding(tiny("ltx2"), {"conditions": [first, second]}, {"conditions": conditions})


def test_a_list_of_pictures_with_one_in_it(tiny: Callable[[str], Tiny]) -> None:
    assert_same_encoding(tiny("echo"), {"memory_images": [picture(1)]}, {"memory_images": [picture(1)]})


def test_sound_and_frames_in_the_object_that_has_their_fields() -> None:
    """Of MiniMax-H3's three classes of references; the rates are those of the files."""
    voice, frames = sound(rate=8000), [png(picture(1)), png(picture(2))]
    inputs = {"references": [{"audio": voice}, {"frames": frames}, {"image": picture(3)}]}
    blocks = diffusers.MiniMaxH3ModularPipeline()._blocks
    (parameter,) = (one for one in blocks.inputs if one.name == "references")
    message = ModelDescription(inputs=[describe_input(parameter, blocks)])
    given = resolve(build_request(inputs=inputs), message).for_encoder()["references"]
    made: Any = objects.ready(given, torch.device("cpu"), classes_of(parameter, blocks), "inputs.references")
    assert [type(one).__name__ for one in made] == [f"MiniMaxH3{kind}Reference" for kind in ("Audio", "Video", "Image")]
    assert made[0].sample_rate == 8000
    assert made[0].audio.shape == (1, 800)
    assert [one.size for one in made[1].frames] == [(32, 32)] * 2
    assert made[2].image.size == (32, 32)
    with pytest.raises(InvalidRequest, match=r"inputs\.references\[0\] is .*the fields of one of MiniMaxH3Image"):
        objects.ready([{"fps": 3}], torch.device("cpu"), classes_of(parameter, blocks), "inputs.references")


def sound(rate: int) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as opened:
        opened.setnchannels(1)
        opened.setsampwidth(2)
        opened.setframerate(rate)
        opened.writeframes(bytes(2 * rate // 10))
    return file.getvalue()


def assert_same_encoding(one: Tiny, inputs: dict[str, Any], by_hand: dict[str, Any]) -> None:
    """What the encoder makes of a request's inputs is what it makes of the values that diffusers documents."""
    request = build_request("a", seed=SEED, num_frames=9, inputs=inputs, height=32, width=32)
    values = resolve(request, one.description).for_encoder()
    left, right = (one.encode(given) for given in (values, {**values, **by_hand}))
    manifests = [codec.encode(found, "job") for found in (left, right)]
    assert manifests[0].manifest == manifests[1].manifest
    assert [bytes(buffer) for buffer in manifests[0].buffers] == [bytes(buffer) for buffer in manifests[1].buffers]
    without = one.encode({name: value for name, value in values.items() if name not in inputs})
    assert len(codec.encode(without, "job").buffers) < len(manifests[0].buffers), "the inputs change nothing"
