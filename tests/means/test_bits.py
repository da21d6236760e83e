"""Each means gives the bits of diffusers' own call in one process, and changes them or not, as docs/means.md says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import accelerate
import diffusers
import numpy as np
import pytest
import torch
from diffusers.models.attention_dispatch import attention_backend

from tests.means.conftest import FIELDS, components, held, ours, reference, run_job, stages_of

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


class Case(NamedTuple):
    """Tables of means, the same by diffusers' own calls, and whether the bits stay those of a run without means."""

    option: str
    """As docs/means.md has it."""
    model: str
    tables: Mapping[str, Any]
    change: Callable[[Any], object]
    keeps: bool
    has_effect: Callable[[Any], bool]
    """Judges the component, which is the last of the tables'."""
    load: Mapping[str, Any] = {}


def _attend(pipeline: Any) -> None:
    with attention_backend("native"):  # which puts the process's own back
        pipeline.transformer.set_attention_backend("_native_math")


def _map(name: str, value: Any) -> Callable[[Any], object]:
    def change(pipeline: Any) -> None:
        spec = pipeline._component_specs[name]
        place = {"subfolder": spec.subfolder, "dtype": torch.float32, "device_map": value}
        part = spec.type_hint.from_pretrained(spec.pretrained_model_name_or_path, **place)
        pipeline.update_components(**{name: part})

    return change


def _is_offloaded(model: Any) -> bool:
    registries = (getattr(one, "_diffusers_hook", None) for one in model.modules())
    return any("group_offloading" in one.hooks for one in registries if one is not None)


CASES = {
    "group offload by blocks": Case(
        "offload",
        "wan_t2v",
        components(transformer={"offload": {"kind": "group"}}, text_encoder={"offload": {"kind": "group"}}),
        lambda p: p.transformer.enable_group_offload(CPU, CPU, "block_level", 1),
        True,
        _is_offloaded,
    ),
    "group offload by layers": Case(
        "offload",
        "wan_t2v",
        components(transformer={"offload": {"offload_type": "leaf_level"}}),
        lambda p: p.transformer.enable_group_offload(CPU, CPU, "leaf_level"),
        True,
        _is_offloaded,
    ),
    "sequential offload": Case(
        "offload",
        "wan_t2v",
        components(transformer={"offload": {"kind": "sequential"}}, vae={"offload": {"kind": "sequential"}}),
        lambda p: [accelerate.cpu_offload(one, CPU, offload_buffers=True) for one in (p.transformer, p.vae)],
        True,
        lambda vae: all(one.is_meta for one in vae.parameters()),
    ),
    "a device of its own": Case(
        "device",
        "wan_t2v",
        components(text_encoder={"device": "cpu"}, transformer={"device": "cpu"}),
        lambda p: accelerate.dispatch_model(p.transformer, {"": CPU}, force_hooks=True),
        True,
        lambda model: hasattr(model, "_hf_hook"),
    ),
    "a device map": Case(
        "device_map",
        "wan_t2v",
        components(transformer={"device_map": {"": "cpu"}}),
        _map("transformer", {"": "cpu"}),
        True,
        lambda model: model.hf_device_map == {"": "cpu"},
    ),
    "a dtype of its own": Case(
        "dtype",
        "wan_t2v",
        components(transformer={"dtype": "bfloat16"}, text_encoder={"dtype": "bfloat16"}),
        lambda p: None,
        False,
        lambda model: model.dtype == torch.bfloat16,
        {"dtype": {"transformer": torch.bfloat16, "text_encoder": torch.bfloat16, "default": torch.float32}},
    ),
    "attention": Case(
        "attention",
        "wan_t2v",
        components(transformer={"attention": "_native_math"}),
        _attend,
        False,
        lambda model: model.blocks[0].attn1.processor._attention_backend == "_native_math",
    ),
    "tiling": Case(
        "tiling",
        "wan_t2v",
        components(
            vae={
                "tiling": {
                    "tile_sample_min_height": 16,
                    "tile_sample_min_width": 16,
                    "tile_sample_stride_height": 8,
                    "tile_sample_stride_width": 8,
                }
            }
        ),
        lambda p: p.vae.enable_tiling(16, 16, 8, 8),
        False,
        lambda vae: vae.use_tiling and vae.tile_sample_min_height == 16,
    ),
    "slicing": Case(
        "slicing",
        "sd3",
        components(vae={"slicing": True}),
        lambda p: p.vae.enable_slicing(),
        False,
        lambda vae: vae.use_slicing,
    ),
    "channels last": Case(
        "memory_format",
        "sd3",
        components(vae={"memory_format": "channels_last"}),
        lambda p: torch.nn.utils.convert_conv2d_weight_memory_format(p.vae, torch.channels_last),
        False,
        lambda vae: vae.decoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last),
    ),
    "channels last in three dimensions": Case(
        "memory_format",
        "wan_t2v",
        components(vae={"memory_format": "channels_last_3d"}),
        lambda p: torch.nn.utils.convert_conv3d_weight_memory_format(p.vae, torch.channels_last_3d),
        True,
        lambda vae: vae.decoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last_3d),
    ),
    "repeated blocks compiled": Case(
        "compile",
        "wan_t2v",
        components(transformer={"compile": {"backend": "aot_eager", "dynamic": False}}),
        lambda p: p.transformer.compile_repeated_blocks(backend="aot_eager", dynamic=False),
        True,
        lambda model: model.blocks[0]._compiled_call_impl is not None,
    ),
}
"""What bits do on a CPU; `aot_eager` compiles without a compiler of C++, and keeps the order of sums."""


@pytest.fixture(scope="module")
def plain(folder_of: Callable[[str], str]) -> Callable[[str], np.ndarray[Any, Any]]:
    """What a model makes without means."""
    known: dict[str, Any] = {}

    def get(name: str) -> np.ndarray[Any, Any]:
        if name not in known:
            known[name] = ours(folder_of(name), FIELDS[name], {})
        return known[name]  # type: ignore[no-any-return]

    return get


@pytest.mark.parametrize("name", CASES)
def test_a_means_gives_the_bits_of_diffusers_own_call(name: str, folder_of: Any, plain: Any) -> None:
    case = CASES[name]
    folder, fields = folder_of(case.model), FIELDS[case.model]
    stages = stages_of(folder, case.tables)
    made = run_job(folder, stages, fields)
    assert case.has_effect(held(stages, list(case.tables["components"])[-1]))
    assert np.array_equal(made, reference(folder, fields, case.change, **case.load))
    assert made.std() > 0, "a flat picture proves nothing"
    assert np.array_equal(made, plain(case.model)) == case.keeps
    torch._dynamo.reset()


def test_weights_on_disk_come_back_whole(folder_of: Any, plain: Any, tmp_path: Path) -> None:
    """On a CPU the last bits depend on where weights lie in memory, and files are read to other places."""
    offload = {"offload_type": "leaf_level", "folder": str(tmp_path / "weights")}
    made = ours(folder_of("wan_t2v"), FIELDS["wan_t2v"], components(transformer={"offload": offload}))
    assert list((tmp_path / "weights").glob("*.safetensors")), "they wait there"
    np.testing.assert_allclose(made, plain("wan_t2v"), atol=1e-4)


def test_a_model_over_two_places(folder_of: Any, plain: Any, tmp_path: Path) -> None:
    folder = folder_of("wan_t2v")
    model = diffusers.WanTransformer3DModel.from_pretrained(folder, subfolder="transformer")
    parts = {name: "cpu" for name, _module in model.named_children() if name != "blocks"}
    parts |= {"scale_shift_table": "cpu", "blocks.0": "cpu", "blocks.1": "disk"}
    means = {"device_map": parts, "offload_folder": str(tmp_path / "disk")}
    made = ours(folder, FIELDS["wan_t2v"], components(transformer=means))
    assert list((tmp_path / "disk").iterdir()), "a part waits there"
    np.testing.assert_allclose(made, plain("wan_t2v"), atol=1e-4)


@pytest.mark.parametrize("kind", ["auto", "balanced"])
def test_an_automatic_map_keeps_to_the_memory_that_it_may_take(
    kind: str, folder_of: Any, plain: Any, tmp_path: Path
) -> None:
    """What the CPU may not hold waits on a disk. Where it may hold all, it does, and the bits stay."""
    folder, fields = folder_of("wan_t2v"), FIELDS["wan_t2v"]
    bytes_all = sum(one.nbytes for one in held(stages_of(folder, {}), "transformer").parameters())
    placed = {}
    for name, bytes_max in {"all": 4 * bytes_all, "some": bytes_all * 3 // 4}.items():
        means = {
            "device_map": kind,
            "max_memory": {"cpu": f"{bytes_max // 1000}KB"},
            "offload_folder": str(tmp_path / name),
        }
        stages = stages_of(folder, components(transformer=means))
        placed[name] = run_job(folder, stages, fields)
        model = held(stages, "transformer")
        assert set(model.hf_device_map.values()) == ({"cpu"} if name == "all" else {"cpu", "disk"})
        kept = sum(one.nbytes for one in model.parameters() if one.device.type == "cpu")
        assert kept <= bytes_max
    assert np.array_equal(placed["all"], plain("wan_t2v"))
    np.testing.assert_allclose(placed["some"], plain("wan_t2v"), atol=1e-4)


def test_a_vae_in_float32_beside_a_transformer_in_bfloat16(folder_of: Any) -> None:
    """The transformer's role sees the VAE's own type, as in one process."""
    folder, fields = folder_of("wan_t2v"), FIELDS["wan_t2v"]
    means = components(vae={"dtype": "float32"})
    made = ours(folder, fields, means, dtype="bfloat16")
    load = {"dtype": {"vae": torch.float32, "default": torch.bfloat16}}
    assert np.array_equal(made, reference(folder, fields, **load))
    assert not np.array_equal(made, ours(folder, fields, {}, dtype="bfloat16"))


def test_seeds_are_not_touched(folder_of: Any) -> None:
    """Placed otherwise, a job draws the same numbers: also where the decoder draws from the global generator."""
    folder, fields = folder_of("ltx_image"), FIELDS["ltx_image"]
    means = components(transformer={"offload": {"kind": "group"}}, vae={"device": "cpu"})
    assert np.array_equal(ours(folder, fields, means), ours(folder, fields, {}))
