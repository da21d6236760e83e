"""Every family that diffusers has starts with what `make setup` installs: it is described, and its roles load."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from diffusers.modular_pipelines.modular_pipeline import MODULAR_PIPELINE_MAPPING

from tests.families import zoo
from triptych.errors import ModelInvalid
from triptych.model import rates
from triptych.model.description import Description
from triptych.roles import ROLES
from triptych.stages.describe import describe
from triptych.stages.stage import Stage
from triptych.stages.whole import Whole
from triptych.v1 import model_pb2
from triptych.v1.job_pb2 import GenerationRequest


def test_every_family_and_every_pipeline_of_diffusers_has_a_tiny_model() -> None:
    """So that a family that comes with another version of diffusers is tried, too."""
    assert set(MODULAR_PIPELINE_MAPPING) <= set(zoo.FAMILIES)
    assert {zoo.pipeline_class(family) for family in zoo.FAMILIES} == zoo.pipeline_classes()


@pytest.mark.parametrize("family", zoo.FAMILIES)
def test_a_family_starts(family: str, family_folder: Callable[[str], str]) -> None:
    whole = Whole.open(family_folder(family))
    assert type(whole.pipeline) is zoo.pipeline_class(family)
    description = describe(whole)
    assert description.outputs
    data = description.SerializeToString(deterministic=True)
    assert model_pb2.ModelDescription.FromString(data) == description
    stages = [Stage.load(whole, role) for role in ROLES]
    held = {name for stage in stages for name in stage.component_bytes}
    assert held == weighty(Path(family_folder(family)))


def weighty(folder: Path) -> set[str]:
    """Components of which the model has weights."""
    index = json.loads((folder / "modular_model_index.json").read_text())
    return {name for name in index if any((folder / name).glob("*.safetensors"))}


def test_a_pipelines_own_rate_is_its_files(family_folder: Callable[[str], str]) -> None:
    """It has no input for it, only a property; sound would run away from pictures at another."""
    description = describe(Whole.open(family_folder("minimax-h3")))
    assert rates.rate_input(Description(description)) is None
    assert rates.frames_per_second(GenerationRequest(), description) == 24


@pytest.mark.parametrize(("family", "keeps"), [("qwenimage-layered", True), ("qwenimage21", True), ("flux2", False)])
def test_transparency_reaches_models_that_take_it(
    family: str, keeps: bool, family_folder: Callable[[str], str]
) -> None:
    inputs = {one.name: one for one in describe(Whole.open(family_folder(family))).inputs}
    assert inputs["image"].takes_alpha == keeps


@pytest.mark.parametrize(
    ("family", "missing"),
    [("flux2-klein", "tokenizer/chat_template.jinja"), ("ernie-image", "pe/generation_config.json")],
)
def test_what_only_the_code_asks_for_is_missed_at_the_start(
    family: str, missing: str, family_folder: Callable[[str], str], tmp_path: Path
) -> None:
    """Libraries load without them; then every job would fail, or the text be another."""
    folder = Path(shutil.copytree(family_folder(family), tmp_path / family))
    (folder / missing).unlink()
    whole = Whole.open(str(folder))
    with pytest.raises(ModelInvalid, match=f"has no {Path(missing).name} in .*{Path(missing).parent}"):
        _ = [Stage.load(whole, role) for role in ROLES]


@pytest.mark.parametrize(
    ("family", "name", "config"),
    [("echo", "memory_audio_waveforms", "sample_rate"), ("minimax-h3", "references", "sampling_rate")],
)
def test_sound_is_brought_to_the_rate_that_the_model_reads(
    family: str, name: str, config: str, family_folder: Callable[[str], str]
) -> None:
    folder = family_folder(family)
    (described,) = [one for one in describe(Whole.open(folder)).inputs if one.name == name]
    audio = [one for one in (described, *described.fields) if model_pb2.INPUT_KIND_AUDIO in (one.kind, *one.item_kinds)]
    assert audio
    rate = json.loads((Path(folder) / "audio_vae" / "config.json").read_text())[config]
    assert {one.sample_rate_hz for one in audio} == {rate}
