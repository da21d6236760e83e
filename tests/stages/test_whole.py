"""Opening a model: what it is and accepts, and one sentence for each way in which a folder can be broken."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import models
from tests.stages.conftest import FAMILIES
from triptych.errors import ModelInvalid
from triptych.model.description import Description
from triptych.model.inputs import resolve
from triptych.roles import ROLES
from triptych.stages.describe import describe
from triptych.stages.stage import Stage
from triptych.stages.whole import Whole
from triptych.v1 import model_pb2
from triptych.v1.job_pb2 import GenerationRequest


@pytest.fixture
def copy_of(folder_of: Callable[[str], str], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a tiny model that a test may break."""
    return lambda name: Path(shutil.copytree(folder_of(name), tmp_path / name))


def test_description_is_read_off_the_blocks(model: Any) -> None:
    description = model("wan_t2v").description
    inputs = {described.name: described for described in description.inputs}
    assert description.pipeline_class == "WanModularPipeline"
    assert list(description.outputs) == ["videos"]
    assert (description.size_multiple, description.frame_multiple) == (8, 2)
    assert description.guidance_scale == 5.0
    assert inputs["prompt"].kind == model_pb2.INPUT_KIND_TEXT
    assert inputs["num_inference_steps"].kind == model_pb2.INPUT_KIND_INTEGER
    assert inputs["num_inference_steps"].default_json == "50"
    computed = [inputs[name].default_json for name in ("height", "width", "num_frames")]
    assert computed == ["240", "416", "41"], "what the pipeline computes where a request leaves them out"
    asked = {"height": 240, "width": 416, "num_frames": 41, "num_inference_steps": 50}
    assert math.prod(resolve(GenerationRequest(prompt="a"), description).work.values()) == math.prod(asked.values())
    assert inputs["sigmas"].kind == model_pb2.INPUT_KIND_LIST
    assert inputs["attention_kwargs"].kind == model_pb2.INPUT_KIND_MAPPING
    assert inputs["latents"].kind == model_pb2.INPUT_KIND_TENSOR
    assert inputs["generator"].kind == model_pb2.INPUT_KIND_INTERNAL
    assert inputs["guider.guidance_rescale"].kind == model_pb2.INPUT_KIND_NUMBER
    roles = {component.name: list(component.roles) for component in description.components}
    assert roles["text_encoder"] == ["encoder"]
    assert roles["transformer"] == ["transformer"]
    assert roles["vae"] == ["decoder"]


@pytest.mark.parametrize(
    ("name", "outputs", "size", "frame"),
    [
        ("wan_t2v", "videos", 8, 2),
        ("qwen_image", "images", 8, 0),
        ("sd3", "images", 8, 0),
        ("ltx_image", "videos", 8, 4),
    ],
)
def test_multiples_are_the_models_own(name: str, outputs: str, size: int, frame: int, model: Any) -> None:
    """None of these models has its family's default factors."""
    description = model(name).description
    assert list(description.outputs) == [outputs]
    assert (description.size_multiple, description.frame_multiple) == (size, frame)


def test_media_inputs_are_known(model: Any) -> None:
    for name in ("qwen_image", "sd3", "ltx_image"):
        inputs = {described.name: described for described in model(name).description.inputs}
        assert inputs["image"].kind == model_pb2.INPUT_KIND_IMAGE
        assert not inputs["image"].required


def test_description_survives_the_wire_and_is_stable(model: Any) -> None:
    tiny = model("sd3")
    data = tiny.description.SerializeToString(deterministic=True)
    assert model_pb2.ModelDescription.FromString(data) == tiny.description
    assert describe(Whole.open(tiny.folder)) == tiny.description


def test_digest_is_of_the_model_not_of_its_place(model: Any, copy_of: Callable[[str], Path], tmp_path: Path) -> None:
    digest = model("wan_t2v").description.config_digest
    copy = copy_of("wan_t2v")
    assert Whole.open(str(copy)).config_digest() == digest
    scheduler = copy / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps({**json.loads(scheduler.read_text()), "flow_shift": 9.0}))
    assert Whole.open(str(copy)).config_digest() != digest
    other_weights = models.wan_t2v(tmp_path / "other", seed=1)
    assert Whole.open(other_weights).config_digest() != digest


def test_recommended_defaults_fill_what_a_request_leaves_out(copy_of: Callable[[str], Path]) -> None:
    folder = copy_of("wan_t2v")
    models.recommend(folder, num_inference_steps=2, height=16, width=24, guidance_scale=2.0, frames_per_second=8)
    description = describe(Whole.open(str(folder)))
    assert json.loads(description.defaults_json)["frames_per_second"] == 8
    shown = {one.name: one.default_json for one in description.inputs}
    assert [shown[name] for name in ("num_inference_steps", "height", "width")] == ["2", "16", "24"], "what is in force"
    assert (description.guidance_scale, Description(description).defaults["num_inference_steps"]) == (2.0, 2)
    values = resolve(GenerationRequest(prompt="a", width=32, seed=1), description).for_encoder()
    assert (values["num_inference_steps"], values["height"], values["width"]) == (2, 16, 32)
    assert values["triptych.settings"]["overrides"] == {"guider": {"guidance_scale": 2.0}}
    assert "frames_per_second" not in values


@pytest.mark.parametrize("name", FAMILIES)
def test_components_of_all_roles_are_all_components(name: str, model: Any) -> None:
    tiny = model(name)
    by_role = {component for role in ROLES for component in tiny.whole.component_names(role)}
    assert by_role == {component.name for component in tiny.description.components}


def break_missing(folder: Path) -> None:
    shutil.rmtree(folder)


def break_index(folder: Path) -> None:
    (folder / "model_index.json").unlink()


def truncate_index(folder: Path) -> None:
    index = folder / "model_index.json"
    index.write_text(index.read_text()[:40])


def index_of_something_else(folder: Path) -> None:
    (folder / "model_index.json").write_text('["a list"]')


def unknown_class(folder: Path) -> None:
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace("WanPipeline", "NoSuchPipeline"))


def class_without_blocks(folder: Path) -> None:
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace("WanPipeline", "DDPMPipeline"))


def remove_component(folder: Path) -> None:
    shutil.rmtree(folder / "vae")


def remove_weights(folder: Path) -> None:
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").unlink()


def truncate_weights(folder: Path) -> None:
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5000])


def garble_weights(folder: Path) -> None:
    (folder / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"this is no safetensors file at all")


def empty_weights(folder: Path) -> None:
    (folder / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"")


def truncate_config(folder: Path) -> None:
    config = folder / "transformer" / "config.json"
    config.write_text(config.read_text()[:30])


def remove_config(folder: Path) -> None:
    (folder / "vae" / "config.json").unlink()


def missing_shard(folder: Path) -> None:
    (folder / "vae" / "diffusion_pytorch_model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "diffusion_pytorch_model-00002-of-00002.safetensors"}})
    )


def bad_recommendation(folder: Path) -> None:
    models.recommend(folder, num_inference_stepz=3)


def bad_recommendations(folder: Path) -> None:
    (folder / "triptych.json").write_text('{"defautls": {}}')


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (break_missing, "does not exist"),
        (break_index, "not a diffusers model.*model_index.json"),
        (truncate_index, "model_index.json is not valid JSON"),
        (index_of_something_else, "names no pipeline class"),
        (unknown_class, "NoSuchPipeline"),
        (class_without_blocks, "can't be opened as a diffusers pipeline"),
        (remove_component, "component 'vae' is missing"),
        (remove_weights, "component 'transformer' has no weights"),
        (truncate_weights, "diffusion_pytorch_model.safetensors is truncated"),
        (garble_weights, "not a safetensors file"),
        (empty_weights, r"safetensors is empty \(0 bytes\)"),
        (truncate_config, "config.json is not valid JSON"),
        (remove_config, "component 'vae' has no config.json"),
        (missing_shard, "00002-of-00002.safetensors is missing"),
        (bad_recommendation, "unknown inputs.*num_inference_stepz"),
        (bad_recommendations, "unknown keys.*defautls"),
    ],
)
def test_each_damage_alone_is_one_sentence(
    damage: Callable[[Path], None], sentence: str, copy_of: Callable[[str], Path]
) -> None:
    folder = copy_of("wan_t2v")
    damage(folder)
    with pytest.raises(ModelInvalid, match=sentence) as caught:
        describe(Whole.open(str(folder)))
    assert "\n" not in str(caught.value)


def test_a_tensor_missing_in_the_weights_is_not_made_up(copy_of: Callable[[str], Path]) -> None:
    """diffusers would fill it with noise and go on."""
    from safetensors.torch import load_file, save_file

    folder = copy_of("wan_t2v")
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors.pop("proj_out.weight")
    save_file(tensors, weights, metadata={"format": "pt"})
    whole = Whole.open(str(folder))
    with pytest.raises(ModelInvalid, match=r"transformer.*proj_out\.weight"):
        Stage.load(whole, ROLES[1])


def test_an_id_that_is_no_folder_and_not_on_the_hub() -> None:
    """In a process that asks its cache only, because asking the hub takes long where there is no network."""
    program = "from triptych.stages.whole import Whole; Whole.open('nobody/no-such-model')"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 1
    assert (
        "ModelInvalid: 'nobody/no-such-model' can't be opened: there is no folder of this name"
        in done.stderr.splitlines()[-1]
    )


def test_the_library_names_no_family() -> None:
    """The split is generic: no module of it knows a pipeline class, a family or a model's own component."""
    families = ("wan", "qwen", "ltx", "sd3", "stable_diffusion", "flux", "umt5", "cosmos", "helios", "unipc")
    for path in Path(models.__file__).parents[1].joinpath("triptych", "stages").glob("*.py"):
        words = {word for line in path.read_text().lower().splitlines() for word in line.replace("_", " ").split()}
        assert not words.intersection(families), path.name


def test_a_load_says_how_far_it_is(model: Callable[[str], Any], caplog: pytest.LogCaptureFixture) -> None:
    """What `triptych up` repeats while it waits: the component that is being loaded, and of how many."""
    whole = Whole.open(model("wan_t2v").folder)
    with caplog.at_level("INFO", logger="triptych"):
        Stage.load(whole, ROLES[0])
    held = whole.component_names(ROLES[0])
    assert [record.getMessage() for record in caplog.records if "component" in record.getMessage()] == [
        f"loading {name}, component {number} of {len(held)}" for number, name in enumerate(held, 1)
    ]
