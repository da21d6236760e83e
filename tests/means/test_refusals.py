"""What a model or this machine can't have ends the start, with the option's name; diffusers' names are up to date."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import diffusers
import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName
from diffusers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from tests.means.conftest import components, opened
from triptych.errors import InvalidRequest
from triptych.means.options import of_tables
from triptych.means.published import ATTENTIONS, CACHES, QUANTIZATIONS
from triptych.stages.stage import Stage
from triptych.v1.dispatch_pb2 import ROLE_DECODER, ROLE_ENCODER, ROLE_TRANSFORMER

REFUSED = [
    (components(transfomer={"attention": "native"}), "components.transfomer is .*did you mean transformer"),
    (
        components(transformer={"tiling": True}),
        "transformer.tiling is True; .*WanTransformer3DModel has no enable_tiling",
    ),
    (components(transformer={"slicing": True}), "transformer.slicing is True; .*has no enable_slicing"),
    (components(transformer={"attention": "flash"}), "attention is 'flash'; .*install `flash-attn"),
    (components(transformer={"compile": {"modules": ["blocks"]}}), "compile.modules is .*unless what is whole"),
    (
        components(transformer={"compile": {"what": "whole", "modules": ["block"]}}),
        "compile.modules is 'block'; .*for example rope",
    ),
    (components(transformer={"device": "cuda:7"}), "transformer.device is 'cuda:7'"),
    (components(transformer={"device": "nonsense"}), "transformer.device is 'nonsense'"),
    (components(transformer={"offload": {"device": "nonsense"}}), "transformer.offload is "),
]


@pytest.mark.parametrize(("tables", "named"), REFUSED)
def test_what_a_transformer_cant_have(tables: Any, named: str, folder_of: Any) -> None:
    with pytest.raises(InvalidRequest, match=named):
        Stage.load(opened(folder_of("wan_t2v"))[0], ROLE_TRANSFORMER, means=of_tables(tables))


def test_streams_need_a_cuda_device(folder_of: Any) -> None:
    means = of_tables(components(transformer={"offload": {"use_stream": True}}))
    with pytest.raises(InvalidRequest, match="use_stream is True; accepted: false on cpu: streams need a CUDA device"):
        Stage.load(opened(folder_of("wan_t2v"))[0], ROLE_TRANSFORMER, means=means)


def test_a_vae_has_no_repeated_blocks_but_parts(folder_of: Any) -> None:
    whole = opened(folder_of("wan_t2v"))[0]
    with pytest.raises(InvalidRequest, match="what is 'repeated_blocks'; accepted: whole, because AutoencoderKLWan"):
        Stage.load(whole, ROLE_DECODER, means=of_tables(components(vae={"compile": {}})))
    means = of_tables(components(vae={"compile": {"what": "whole", "backend": "aot_eager"}}))
    vae: Any = Stage.load(whole, ROLE_DECODER, means=means)._pipeline._role_components.get("vae")
    assert vae.decoder._compiled_call_impl is not None, "it is called, and the VAE itself never is"
    assert vae._compiled_call_impl is None


def test_a_role_passes_over_what_it_doesnt_hold(folder_of: Any) -> None:
    tables = components(vae={"tiling": True, "dtype": "bfloat16"}, transformer={"attention": "_native_math"})
    whole = opened(folder_of("wan_t2v"))[0]
    encoder = Stage.load(whole, ROLE_ENCODER, means=of_tables(tables))
    own = {name: value for name, value in encoder.settings.items() if "." in name}
    assert own == {"vae.dtype": "bfloat16"}, "another role's model has a type that blocks may ask for"
    assert encoder._pipeline.vae.dtype == torch.bfloat16


def test_published_names_are_those_of_the_installed_diffusers() -> None:
    assert set(ATTENTIONS) == {backend.value for backend in AttentionBackendName}
    for name, options in CACHES.items():
        fields = {one.name for one in dataclasses.fields(getattr(diffusers, name)) if not one.name.startswith("_")}
        assert set(options) == {one for one in fields if not one.endswith("_callback")}, name
    known = {kind.__name__: kind for kind in AUTO_QUANTIZATION_CONFIG_MAPPING.values()}
    for name, options in QUANTIZATIONS.items():
        assert set(options) == set(inspect.signature(known[name].__init__).parameters) - {"self", "kwargs"}, name
