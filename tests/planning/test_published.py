"""Models of full size, from their published configurations alone: bytes of parameters as others give them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.planning import published
from triptych.planning.fleet import ComponentSize
from triptych.planning.quantization import KINDS
from triptych.roles import ROLE_NAMES, ROLES
from triptych.stages.plan import role_sizes
from triptych.stages.sizes import component_size
from triptych.stages.stage import Stage
from triptych.stages.whole import Whole

SHAPES = Path(__file__).parents[2] / "examples" / "shapes" / "model"
BFLOAT16 = dict.fromkeys(ROLE_NAMES, torch.bfloat16)
GIVEN_GB = {
    "Wan2.1-T2V-14B": {"transformer": "28", "vae": ".3"},
    "Wan2.1-I2V-14B": {"image_encoder": "1.3", "vae": ".3"},
    "Wan2.2-T2V-A14B": {"transformer": "28", "transformer_2": "28", "vae": ".3"},
    "Qwen-Image": {"transformer": "41", "text_encoder": "16.6"},
    "Qwen-Image-Edit": {"transformer": "41", "text_encoder": "16.6"},
}
"""Published sizes in GB, rounded as they are given."""
UMT5_LAYERS_GB = "9.4"
"""UMT5-XXL, as it is given: without the table of its 256,384 words, which takes 2.1 GB more on a card."""


def opened(folder: Path, name: str) -> Whole:
    return Whole.open(str(published.write(folder, name)), needs_weights=False)


def agrees(size_bytes: int, given_gb: str) -> bool:
    """Whether the size is within 1 % of what rounds to the given number."""
    half_a_digit = 0.5 * 10 ** -len(given_gb.partition(".")[2])
    least, most = float(given_gb) - half_a_digit, float(given_gb) + half_a_digit
    return 0.99 * least <= size_bytes / 1e9 <= 1.01 * most


@pytest.mark.parametrize("name", published.MODELS)
def test_parameters_agree_with_published_sizes(name: str, tmp_path: Path) -> None:
    sizes = role_sizes(opened(tmp_path, name), BFLOAT16, {}, {})
    found = {part.name: part.weight_bytes for size in sizes.values() for part in size.components}
    for component, given_gb in GIVEN_GB[name].items():
        assert agrees(found[component], given_gb), (component, found[component], given_gb)
    if name.startswith("Wan"):
        word_table_bytes = 2 * published.UMT5_XXL["vocab_size"] * published.UMT5_XXL["d_model"]
        assert agrees(found["text_encoder"] - word_table_bytes, UMT5_LAYERS_GB), found["text_encoder"]


def test_each_role_counts_what_its_blocks_expect(tmp_path: Path) -> None:
    sizes = role_sizes(opened(tmp_path, "Wan2.1-I2V-14B"), BFLOAT16, {}, {})
    held = {role: {part.name for part in size.components} for role, size in sizes.items()}
    assert held == {
        "encoder": {"text_encoder", "image_encoder", "vae"},
        "transformer": {"transformer"},
        "decoder": {"vae"},
    }


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_sizes_are_those_of_loaded_stages(dtype: str) -> None:
    whole = Whole.open(str(SHAPES))
    sizes = role_sizes(whole, dict.fromkeys(ROLE_NAMES, getattr(torch, dtype)), {}, {})
    for role, name in zip(ROLES, ROLE_NAMES, strict=True):
        planned = {part.name: part.weight_bytes for part in sizes[name].components}
        assert planned == Stage.load(whole, role, dtype=dtype).component_bytes


def test_quantization_takes_linear_layers_and_leaves_the_rest(tmp_path: Path) -> None:
    spec = opened(tmp_path, "Wan2.1-T2V-14B").pipeline._component_specs["transformer"]
    sizes: dict[str, ComponentSize] = {
        name: component_size(spec, torch.bfloat16, kind) for name, kind in {"": None, **KINDS}.items()
    }
    # Of 14.29 billion parameters all but some hundred million are in linear layers that aren't kept in float32.
    assert {name: round(size.weight_bytes / 1e9, 1) for name, size in sizes.items()} == {
        "": 28.6,
        "int8": 14.4,
        "float8": 14.4,
        "int4": 7.7,
        "llm-int8": 14.4,
        "nf4": 8.1,
    }
    assert {size.parameter_count for size in sizes.values()} == {14_288_491_584}
