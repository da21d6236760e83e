"""A model's folder is data: nothing in it is run, whatever it is called and whoever points to it."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests import models
from triptych.errors import ModelInvalid
from triptych.roles import ROLES
from triptych.stages.stage import Stage
from triptych.stages.whole import Whole

ENCODER, TRANSFORMER, _DECODER = ROLES
COMPONENTS = {
    "transformer": (TRANSFORMER, "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"),
    "text_encoder": (ENCODER, "model.safetensors", "pytorch_model.bin"),
}
"""One of diffusers and one of transformers: who loads it, its weights, and as what pickled ones are looked for."""


class Mark:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(models.wan_t2v(tmp_path / "model"))


def pickle_weights(folder: Path, name: str, mark: Path | None, *, keeps: str = "") -> str:
    """Turn a component's weights into a .bin; with `keeps` the safetensors stay, too, under that name."""
    _role, weights, pickled = COMPONENTS[name]
    tensors: dict[str, Any] = load_file(folder / name / weights)
    if mark is not None:
        tensors["extra"] = Mark(mark)
    torch.save(tensors, folder / name / pickled)
    (folder / name / weights).rename(folder / name / (keeps or "away"))
    if not keeps:
        (folder / name / "away").unlink()
    return pickled


def everything(folder: Path, role: Any) -> Stage:
    return Stage.load(Whole.open(str(folder)), role)


@pytest.mark.parametrize("hostile", [True, False], ids=["with code", "harmless"])
@pytest.mark.parametrize("name", COMPONENTS)
def test_pickled_weights_are_refused_and_not_read(folder: Path, tmp_path: Path, name: str, hostile: bool) -> None:
    mark = tmp_path / "ran"
    pickled = pickle_weights(folder, name, mark if hostile else None)
    with pytest.raises(ModelInvalid, match=f"'{name}'.*{pickled}.*save_pretrained.*safe_serialization") as caught:
        Whole.open(str(folder))
    assert "\n" not in str(caught.value)
    assert not mark.exists()


@pytest.mark.parametrize("name", COMPONENTS)
def test_nor_where_safetensors_lie_beside_them_under_another_name(folder: Path, tmp_path: Path, name: str) -> None:
    """There both libraries would fall back on the pickle."""
    pickle_weights(folder, name, None, keeps="model.fp16.safetensors")
    with pytest.raises(ModelInvalid, match=f"'{name}' has only weights of the variant 'fp16'.*--variant fp16"):
        everything(folder, COMPONENTS[name][0])


@pytest.mark.parametrize("name", COMPONENTS)
def test_nor_where_an_index_lies_elsewhere_or_names_a_file(folder: Path, tmp_path: Path, name: str) -> None:
    """A modular index may take each component from another place."""
    modular = Path(models.modular(folder, tmp_path / "modular"))
    elsewhere = Path(shutil.copytree(modular, tmp_path / "elsewhere"))
    pickled = pickle_weights(elsewhere, name, None)
    shutil.rmtree(modular / name)
    index = modular / "modular_model_index.json"
    for source, words in ((elsewhere, f"{pickled}.*save_pretrained"), (elsewhere / name / pickled, "names the file")):
        content = json.loads(index.read_text())
        content[name][2]["pretrained_model_name_or_path"] = str(source)
        index.write_text(json.dumps(content))
        with pytest.raises(ModelInvalid, match=words):
            everything(modular, COMPONENTS[name][0])


@pytest.mark.parametrize("shard", ["pytorch_model.bin", "../transformer/x.safetensors", "/etc/x.safetensors"])
def test_nor_where_an_index_of_shards_names_them(folder: Path, shard: str) -> None:
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    index = {"metadata": {}, "weight_map": dict.fromkeys(load_file(weights), shard)}
    weights.with_suffix(".safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelInvalid, match="names the shard"):
        Whole.open(str(folder))


def code_in(folder: Path, name: str, mark: Path) -> None:
    (folder / f"{name}.py").write_text(f"from pathlib import Path\nPath({str(mark)!r}).touch()\n")


def blocks_of_its_own(folder: Path, mark: Path) -> None:
    code_in(folder, "modular_blocks", mark)
    for name in ("modular_config.json", "config.json"):
        (folder / name).write_text(json.dumps({"auto_map": {"ModularPipelineBlocks": "modular_blocks.Blocks"}}))


def classes_of_its_own(folder: Path, mark: Path) -> None:
    for component, file in (("text_encoder", "config"), ("tokenizer", "tokenizer_config"), ("transformer", "config")):
        code_in(folder / component, "own", mark)
        path = folder / component / f"{file}.json"
        keys = ("AutoConfig", "AutoModel", "AutoTokenizer", "AutoProcessor")
        path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": dict.fromkeys(keys, "own.Own")}))


def chosen_by_its_files(folder: Path, mark: Path) -> None:
    """The index names classes that choose another by the component's own configuration."""
    classes_of_its_own(folder, mark)
    index = folder / "model_index.json"
    content = json.loads(index.read_text())
    content["tokenizer"], content["text_encoder"] = ["transformers", "AutoTokenizer"], ["transformers", "AutoModel"]
    content["transformer"] = ["diffusers", "AutoModel"]
    index.write_text(json.dumps(content))


def modules_of_its_own(folder: Path, mark: Path) -> None:
    """The index names a module as the library of a component."""
    index = folder / "model_index.json"
    for place in (folder, folder / "transformer"):
        code_in(place, "own", mark)
    index.write_text(json.dumps(json.loads(index.read_text()) | {"transformer": ["own", "Own"]}))


@pytest.mark.parametrize("hide", [blocks_of_its_own, classes_of_its_own, chosen_by_its_files, modules_of_its_own])
def test_code_in_a_models_folder_is_not_run(
    folder: Path, tmp_path: Path, hide: Callable[[Path, Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the model is refused or loaded without it, and though it lies in the current folder, too."""
    mark = tmp_path / "ran"
    hide(folder, mark)
    monkeypatch.chdir(folder)
    for role in ROLES:
        with contextlib.suppress(ModelInvalid):
            everything(folder, role)
    assert not mark.exists()
