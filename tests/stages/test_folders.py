"""Half a model is found at the start, whichever part is missing: the start says so, or it makes no difference to the
bits. What another system leaves beside the files is no part of the model."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from tests import models
from tests.stages.conftest import FAMILIES, assert_equal_bits, run_stages
from triptych.errors import InvalidRequest, ModelInvalid
from triptych.model.inputs import resolve
from triptych.roles import ROLES
from triptych.stages.describe import describe
from triptych.stages.device import open_device
from triptych.stages.stage import Stage
from triptych.stages.whole import Whole
from triptych.v1.job_pb2 import GenerationRequest

WEIGHTS = "transformer/diffusion_pytorch_model"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 123456\n"


def result_of(folder: Path, variant: str = "", dtype: str = "float32") -> Any:
    """A start of all roles, and a small job."""
    whole = Whole.open(str(folder), "", variant)
    description = describe(whole)
    stages = [Stage.load(whole, role, dtype=dtype) for role in ROLES]
    names = {described.name for described in description.inputs}
    request = GenerationRequest(prompt="a big red circle", seed=1, height=32, width=32, num_inference_steps=2)
    if "num_frames" in names:
        request.num_frames = 5
    values = resolve(request, description).for_encoder()
    (outputs,) = run_stages(stages, values).values()
    return np.asarray(outputs[0])


@pytest.fixture
def copy_of(folder_of: Callable[[str], str], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a tiny model that a test may break."""
    return lambda name: Path(shutil.copytree(folder_of(name), tmp_path / name))


@pytest.fixture(scope="session")
def whole_result(folder_of: Callable[[str], str]) -> Callable[[str], Any]:
    """What an undamaged model makes."""
    made: dict[str, Any] = {}
    return lambda name: made[name] if name in made else made.setdefault(name, result_of(Path(folder_of(name))))


def remove(path: Path) -> None:
    path.unlink()


def halve(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def make_pointer(path: Path) -> None:
    path.write_text(POINTER)


def make_dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("/nowhere/blob")


@pytest.mark.parametrize("damage", [remove, halve, empty, make_pointer, make_dangling])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_file_in_turn(
    damage: Callable[[Path], None],
    name: str,
    copy_of: Callable[[str], Path],
    whole_result: Callable[[str], Any],
    tmp_path: Path,
) -> None:
    if damage is not remove and name != "qwen_image":
        pytest.skip("one family shows it")
    folder = copy_of(name)
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith(".")]
    refused = []
    for path in paths:
        kept = tmp_path / "kept"
        shutil.copy2(path, kept)
        damage(path)
        try:
            assert_equal_bits(result_of(folder), whole_result(name))
        except ModelInvalid as error:
            said = str(error)
            assert path.name in said or "holds neither" in said, said
            assert str(path.parent) in said, said
            assert "\n" not in said
            refused.append(path.name)
        path.unlink(missing_ok=True)
        shutil.copy2(kept, path)
    assert len(refused) >= len(paths) - 1, "nearly all of a tiny model's files count"


def test_what_another_system_leaves_is_no_part_of_the_model(
    copy_of: Callable[[str], Path], folder_of: Callable[[str], str], whole_result: Callable[[str], Any]
) -> None:
    folder = copy_of("wan_t2v")
    for path in [path for path in sorted(folder.rglob("*")) if path.is_file()]:
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7 Mac OS X")
    for place in [folder, *(path for path in folder.iterdir() if path.is_dir())]:
        (place / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    assert_equal_bits(result_of(folder), whole_result("wan_t2v"))
    assert Whole.open(str(folder)).config_digest() == Whole.open(folder_of("wan_t2v")).config_digest()


def as_shards(folder: Path, variant: str = "") -> list[Path]:
    """The transformer's weights in two shards with an index, instead of one file; the index is the last."""
    end = f".{variant}" if variant else ""
    single = folder / f"{WEIGHTS}{end}.safetensors"
    tensors = load_file(single)
    single.unlink()
    names = sorted(tensors)
    paths, places = [], {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        paths.append(folder / f"{WEIGHTS}-{number:05d}-of-00002{end}.safetensors")
        save_file({name: tensors[name] for name in part}, paths[-1], metadata={"format": "pt"})
        places.update(dict.fromkeys(part, paths[-1].name))
    index = folder / f"{WEIGHTS}.safetensors.index{end}.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return [*paths, index]


def weights_of(folder: Path, variant: str = "") -> Mapping[str, Any]:
    """What a transformer has loaded. Results may differ in the last bits where equal weights lie elsewhere in files."""
    stage = Stage.load(Whole.open(str(folder), "", variant), ROLES[1])
    state = stage._pipeline._role_components.get("transformer").state_dict()
    return {name: tensor.numpy() for name, tensor in state.items()}


@pytest.mark.parametrize("variant", ["", "fp16"])
def test_shards(variant: str, copy_of: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copy_of("wan_t2v")
    expected = {name: tensor.numpy() for name, tensor in load_file(folder / f"{WEIGHTS}.safetensors").items()}
    if variant:
        single = folder / f"{WEIGHTS}.safetensors"
        single.rename(folder / f"{WEIGHTS}.{variant}.safetensors")
    *shards, index = as_shards(folder, variant)
    loaded = weights_of(folder, variant)
    assert loaded.keys() == expected.keys()
    assert all(np.array_equal(loaded[name], expected[name]) for name in expected)
    for path in (*shards, index):
        kept = path.rename(tmp_path / "kept")
        with pytest.raises(ModelInvalid, match=re.escape(f"{path} is missing")):
            Whole.open(str(folder), "", variant)
        kept.rename(path)
    lacking = load_file(shards[1])
    gone = sorted(lacking)[0]
    del lacking[gone]
    save_file(lacking, shards[1], metadata={"format": "pt"})
    with pytest.raises(ModelInvalid, match=re.escape(f"{shards[1]} lacks the tensor {gone!r}")):
        Whole.open(str(folder), "", variant)


def test_a_download_that_has_not_ended(copy_of: Callable[[str], Path]) -> None:
    folder = copy_of("wan_t2v")
    books = folder / ".cache" / "huggingface" / "download" / "tokenizer"
    books.mkdir(parents=True)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (books / f"{name}.metadata").write_text("commit\netag\n1.0\n")
    with pytest.raises(ModelInvalid, match=r"tokenizer/special_tokens_map\.json is missing.*was downloaded"):
        Whole.open(str(folder))
    (books / "special_tokens_map.json.metadata").unlink()
    Whole.open(str(folder))
    for path in (books / "Xyz=.0123.incomplete", folder / "vae" / "diffusion_pytorch_model.safetensors.part"):
        path.write_bytes(b"half")
        with pytest.raises(ModelInvalid, match=f"{re.escape(str(path))} is of a download that has not ended"):
            Whole.open(str(folder))
        path.unlink()


def only_variant(folder: Path, variant: str = "fp16") -> None:
    """Weights of this variant only, in half the precision, as they are published."""
    for path in sorted(folder.rglob("*.safetensors")):
        tensors = {name: tensor.half() for name, tensor in load_file(path).items()}
        save_file(
            tensors, path.with_name(path.name.replace(".safetensors", f".{variant}.safetensors")), {"format": "pt"}
        )
        path.unlink()


def test_a_folder_of_one_variant_only(copy_of: Callable[[str], Path]) -> None:
    folder = copy_of("sd3")
    plain = Whole.open(str(folder)).config_digest()
    only_variant(folder)
    with pytest.raises(ModelInvalid, match=r"only weights of the variant 'fp16'.*--variant fp16"):
        Whole.open(str(folder))
    with pytest.raises(ModelInvalid, match="variant 'bf16': there is 'fp16'"):
        Whole.open(str(folder), "", "bf16")
    assert result_of(folder, "fp16").std() > 0
    digest = Whole.open(str(folder), "", "fp16").config_digest()
    assert digest != plain
    os.truncate(folder / "vae" / "diffusion_pytorch_model.fp16.safetensors", 1000)
    with pytest.raises(ModelInvalid, match=r"fp16\.safetensors is"):
        Whole.open(str(folder), "", "fp16")


def test_both_variants_in_one_folder_are_two_models(
    copy_of: Callable[[str], Path], whole_result: Callable[[str], Any]
) -> None:
    folder = copy_of("wan_t2v")
    other = Path(models.wan_t2v(folder.with_name("other"), seed=1)) / f"{WEIGHTS}.safetensors"
    shutil.copy(other, folder / f"{WEIGHTS}.fp16.safetensors")
    assert_equal_bits(result_of(folder), whole_result("wan_t2v"))
    assert not np.array_equal(result_of(folder, "fp16"), whole_result("wan_t2v"))
    assert Whole.open(str(folder)).config_digest() != Whole.open(str(folder), "", "fp16").config_digest()


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"height": "32"}, "height is '32'; accepted: a whole number"),
        ({"height": 33}, "height is 33; accepted: 8 to 8192 pixels in multiples of 8"),
        ({"width": 32.0}, "width is 32.0; accepted: a whole number"),
        ({"num_frames": 4}, "num_frames is 4; accepted: 1 to"),
        ({"num_frames": True}, "num_frames is True; accepted: a whole number"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0; accepted: a whole number"),
        ({"num_inference_steps": 10**12}, "num_inference_steps is 1000000000000; accepted: a whole number"),
        ({"guidance_scale": "high"}, "guidance_scale is 'high'; accepted: a finite number"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan; accepted: a finite number"),
        ({"negative_prompt": 3}, "negative_prompt is 3; accepted: text"),
        ({"max_sequence_length": "many"}, "parameters.max_sequence_length is 'many'; accepted: a whole number"),
        ({"guider.guidance_rescale": [1]}, "parameters.guider.guidance_rescale is [1.0]; accepted: a finite number"),
        ({"latents": [0]}, "parameters.latents is [0]; accepted: a tensor, as safetensors in inputs"),
    ],
)
def test_recommended_defaults_are_checked_as_requests_are(
    values: Mapping[str, Any], sentence: str, copy_of: Callable[[str], Path]
) -> None:
    folder = copy_of("wan_t2v")
    models.recommend(folder, **values)
    with pytest.raises(ModelInvalid, match=re.escape(f"{folder / 'triptych.json'} can't be used: {sentence}")):
        describe(Whole.open(str(folder)))


@pytest.mark.parametrize("name", ["cuda:0", "mps", "xpu", "meta", "vulkan", "hpu", "no-such-thing", ""])
def test_a_device_that_is_not_there(name: str) -> None:
    import torch

    if name.startswith("cuda") and torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(InvalidRequest, match=f"device is '{name}'; accepted: ") as caught:
        open_device(name)
    assert "\n" not in str(caught.value)
