"""What lies in a registry's folder: taken, or refused in one sentence before any job."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.adapters import loras
from tests.families import zoo
from triptych.errors import InvalidRequest
from triptych.model import adapters
from triptych.stages.adapters import Registry
from triptych.stages.describe import describe
from triptych.stages.whole import Whole
from triptych.v1.job_pb2 import Adapter, GenerationRequest


@pytest.fixture(scope="module")
def wan(family_folder: Callable[[str], str]) -> Whole:
    return Whole.open(family_folder("wan"))


@pytest.fixture(scope="module")
def made(wan: Whole) -> loras.Tensors:
    return loras.tensors(loras.whole(wan.model), "transformer")


def _described(whole: Whole, folder: Path) -> dict[str, Any]:
    return {one.name: one for one in Registry.open(whole, str(folder)).described}


BROKEN: dict[str, tuple[Callable[[loras.Tensors], loras.Tensors], str]] = {
    "shapes": (
        lambda made: {name: tensor[:, :-1].contiguous() for name, tensor in made.items()},
        "it was made for another model: 16 of its tensors don't fit",
    ),
    "layers": (
        lambda made: {name.replace("attn", "nowhere"): tensor for name, tensor in made.items()},
        "it was made for another model: this one has none of its layers",
    ),
    "component": (
        lambda made: {name.replace("transformer", "unet"): tensor for name, tensor in made.items()},
        "nothing of it is for a component of this model that takes adapters: transformer",
    ),
    "weights": (lambda made: {**made, "transformer.proj_out.weight": torch.zeros(2)}, "they would stay in the model"),
    "nothing": (lambda _made: {}, "bad.safetensors holds nothing"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_does_not_fit_is_told_at_the_start(kind: str, wan: Whole, made: loras.Tensors, tmp_path: Path):
    change, sentence = BROKEN[kind]
    loras.save(tmp_path / "bad.safetensors", change(made))
    loras.save(tmp_path / "good.safetensors", made)
    described = _described(wan, tmp_path)
    assert sentence in described["bad"].unusable
    assert (described["good"].unusable, list(described["good"].components)) == ("", ["transformer"])
    request = GenerationRequest(adapters=[Adapter(name="bad")])
    with pytest.raises(InvalidRequest, match="adapters that can be used, and it can't"):
        adapters.used(request, describe(wan, list(described.values())))


@pytest.mark.parametrize("content", [b"", b"x" * 100, None])
def test_a_broken_file_is_told(content: bytes | None, wan: Whole, made: loras.Tensors, tmp_path: Path):
    path = loras.save(tmp_path / "bad.safetensors", made)
    path.write_bytes(path.read_bytes()[:-100] if content is None else content)
    assert "header" in _described(wan, tmp_path)["bad"].unusable


def test_layers_that_the_model_lacks_are_counted(wan: Whole, made: loras.Tensors, tmp_path: Path):
    """diffusers leaves them out; so does a job, and the list says so."""
    loras.save(tmp_path / "deep.safetensors", {name.replace("blocks.1", "blocks.9"): one for name, one in made.items()})
    assert _described(wan, tmp_path)["deep"].layers_left_out == len(made) // 4


def test_names_and_digests_are_those_of_the_files(wan: Whole, made: loras.Tensors, tmp_path: Path):
    loras.save(tmp_path / "one.v2.safetensors", made)
    loras.save(tmp_path / "parted" / "transformer.safetensors", made)
    loras.save(tmp_path / "parted" / "._transformer.safetensors", made)
    (tmp_path / "notes.txt").write_text("not an adapter")
    (tmp_path / "empty").mkdir()
    first = _described(wan, tmp_path)
    assert list(first) == ["one.v2", "parted"]
    assert first == _described(wan, tmp_path)
    loras.save(tmp_path / "one.v2.safetensors", {name: 2 * one for name, one in made.items()})
    again = _described(wan, tmp_path)
    assert again["parted"] == first["parted"]
    assert again["one.v2"].digest != first["one.v2"].digest


def test_bad_settings_are_refused(wan: Whole, made: loras.Tensors, tmp_path: Path):
    with pytest.raises(InvalidRequest, match="a folder that can be read"):
        Registry.open(wan, str(tmp_path / "absent"))
    loras.save(tmp_path / "twice.safetensors", made)
    loras.save(tmp_path / "twice" / "transformer.safetensors", made)
    with pytest.raises(InvalidRequest, match="each once"):
        Registry.open(wan, str(tmp_path))
    with pytest.raises(InvalidRequest, match="OWNER/NAME"):
        Registry.open(wan, "", "not an id")


BROKEN_IN_DIFFUSERS = ("wan-animate-2", "wan-animate-2-distilled")
"""Their pipelines say that they take adapters, and diffusers 0.42.1 then asks for a setting that their model lacks."""


@pytest.mark.parametrize("family", sorted(zoo.FAMILIES))
def test_each_family_takes_what_diffusers_loads(family: str, family_folder: Callable[[str], str], tmp_path: Path):
    """A file for the first component that a family's own table names; families without a table say so."""
    whole = Whole.open(family_folder(family))
    names = getattr(type(whole.pipeline), "_lora_loadable_modules", [])
    shells = whole.inspection()
    present = [name for name in names if isinstance(getattr(shells, name, None), torch.nn.Module)]
    component = present[0] if present else "transformer"
    layers = {
        f"{component}.{name}": module
        for name, module in getattr(shells, component).named_modules()
        if isinstance(module, torch.nn.Linear) and ("attn" in name or "attention" in name)
    }
    tensors: loras.Tensors = {}
    for name, module in layers.items():
        tensors[f"{name}.lora_A.weight"] = torch.ones(1, module.in_features)
        tensors[f"{name}.lora_B.weight"] = torch.ones(module.out_features, 1)
    loras.save(tmp_path / "one.safetensors", tensors)
    described = _described(whole, tmp_path)["one"]
    if family in BROKEN_IN_DIFFUSERS:
        assert described.unusable.startswith("diffusers can't load it: AttributeError")
    elif present:
        assert (described.unusable, list(described.components), described.layers_left_out) == ("", [component], 0)
    else:
        assert "diffusers loads no adapters into" in described.unusable
