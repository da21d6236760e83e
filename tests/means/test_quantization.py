"""Quantized components: the bits of diffusers' and transformers' own configurations, and what is said without them."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import transformers

from tests.means.conftest import FIELDS, components, held, needs_package, ours, reference, run_job, stages_of
from triptych.errors import InvalidRequest, MissingExtra

MODEL = "wan_t2v"


def quantized(name: str, configuration: Any) -> Callable[[Any], None]:
    """The pipeline with one component loaded by a configuration."""

    def change(pipeline: Any) -> None:
        spec = pipeline._component_specs[name]
        where = {"subfolder": spec.subfolder, "dtype": torch.float32}
        part = spec.type_hint.from_pretrained(
            spec.pretrained_model_name_or_path, **where, quantization_config=configuration
        )
        pipeline.update_components(**{name: part})

    return change


@pytest.mark.parametrize(("name", "library"), [("transformer", diffusers), ("text_encoder", transformers)])
def test_torchao(name: str, library: Any, folder_of: Any) -> None:
    needs_package("torchao")
    from torchao.quantization import Int8WeightOnlyConfig

    folder = folder_of(MODEL)
    means = components(**{name: {"quantization": {"config": "TorchAoConfig", "quant_type": "Int8WeightOnlyConfig"}}})
    stages = stages_of(folder, means)
    made = run_job(folder, stages, FIELDS[MODEL])
    kinds = {type(parameter.data).__name__ for parameter in held(stages, name).parameters()}
    assert any("Int8" in kind or "Quantized" in kind for kind in kinds), kinds
    configuration = library.TorchAoConfig(Int8WeightOnlyConfig())
    assert np.array_equal(made, reference(folder, FIELDS[MODEL], quantized(name, configuration)))
    assert not np.array_equal(made, ours(folder, FIELDS[MODEL], {}))


def test_torchaos_arguments_arrive(folder_of: Any) -> None:
    needs_package("torchao")
    quantization = {
        "config": "TorchAoConfig",
        "quant_type": {"type": "Int8WeightOnlyConfig", "set_inductor_config": False},
        "modules_to_not_convert": ["proj_out"],
    }
    stages = stages_of(folder_of(MODEL), components(transformer={"quantization": quantization}))
    transformer = held(stages, "transformer")
    assert type(transformer.proj_out.weight.data) is torch.Tensor
    assert type(transformer.blocks[0].attn1.to_q.weight.data) is not torch.Tensor
    assert "torchao " in stages[1].settings["transformer.quantization.package"]
    assert stages[1].settings["lossy"] == "transformer: transformer.quantization TorchAoConfig"


def test_quanto(folder_of: Any) -> None:
    needs_package("optimum")
    folder = folder_of(MODEL)
    table = {"config": "QuantoConfig", "weights_dtype": "int8"}
    for name, configuration in (
        ("transformer", diffusers.QuantoConfig("int8")),
        ("text_encoder", transformers.QuantoConfig("int8")),
    ):
        made = ours(folder, FIELDS[MODEL], components(**{name: {"quantization": table}}))
        assert np.array_equal(made, reference(folder, FIELDS[MODEL], quantized(name, configuration)))
        assert not np.array_equal(made, ours(folder, FIELDS[MODEL], {}))


def write_gguf(path: Path, model: torch.nn.Module) -> None:
    """The model's weights as a GGUF file: in 8 bits where rows are long enough for a block of 32."""
    import gguf

    writer = gguf.GGUFWriter(str(path), "model")
    for name, tensor in model.state_dict().items():
        array = tensor.float().numpy()
        is_blocked = array.ndim == 2 and array.shape[1] % 32 == 0
        kind = gguf.GGMLQuantizationType.Q8_0 if is_blocked else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quants.quantize(array, kind) if is_blocked else array, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file(folder_of: Any, tmp_path: Path) -> None:
    needs_package("gguf")
    folder, path = folder_of(MODEL), tmp_path / "weights.gguf"
    write_gguf(path, diffusers.WanTransformer3DModel.from_pretrained(folder, subfolder="transformer"))
    means = {"gguf": str(path), "quantization": {"config": "GGUFQuantizationConfig", "compute_dtype": "float32"}}
    stages = stages_of(folder, components(transformer=means))
    made = run_job(folder, stages, FIELDS[MODEL])

    def change(pipeline: Any) -> None:
        configuration = diffusers.GGUFQuantizationConfig(compute_dtype=torch.float32)
        part = diffusers.WanTransformer3DModel.from_single_file(
            str(path), config=folder, subfolder="transformer", quantization_config=configuration, dtype=torch.float32
        )
        pipeline.update_components(transformer=part)

    assert np.array_equal(made, reference(folder, FIELDS[MODEL], change))
    assert not np.array_equal(made, ours(folder, FIELDS[MODEL], {}))
    assert stages[1].settings["transformer.gguf"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert "GGUFQuantizationConfig" in stages[1].settings["lossy"]


@pytest.mark.parametrize(
    ("name", "means", "named"),
    [
        (
            "transformer",
            {"gguf": "none.gguf", "quantization": {"config": "GGUFQuantizationConfig"}},
            "gguf is 'none.gguf'; accepted: a file that exists",
        ),
        (
            "transformer",
            {"quantization": {"config": "TorchAoConfig", "quant_type": "Int8WeightOnly"}},
            r"quant_type is 'Int8WeightOnly'; .*did you mean Int8WeightOnlyConfig",
        ),
        (
            "transformer",
            {"quantization": {"config": "QuantoConfig", "weights_dtype": "int7"}},
            "quantization is .*Only support weights in",
        ),
    ],
)
def test_what_cant_be_had_is_named(name: str, means: Any, named: str, folder_of: Any) -> None:
    for package in ("torchao", "optimum", "gguf"):
        needs_package(package)
    with pytest.raises(InvalidRequest, match=named):
        stages_of(folder_of(MODEL), components(**{name: means}))


def test_a_backend_that_isnt_installed_is_named(folder_of: Any) -> None:
    """bitsandbytes is in no extra of ours, since most of it needs a CUDA device."""
    if importlib.util.find_spec("bitsandbytes") is not None:
        pytest.skip("bitsandbytes is installed here")
    means = {"quantization": {"config": "BitsAndBytesConfig", "load_in_4bit": True}}
    with pytest.raises(MissingExtra, match="needs the package 'bitsandbytes': pip install bitsandbytes"):
        stages_of(folder_of(MODEL), components(transformer=means))
