"""An adapter on a quantized component: diffusers' bits, and none of it in the next job."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import numpy as np

from tests.adapters import loras
from tests.means.conftest import FIELDS, Array, components, needs_package, opened, reference
from tests.means.test_quantization import MODEL, quantized
from tests.stages.test_parity import request_of
from triptych.means.options import of_tables
from triptych.model.inputs import resolve
from triptych.roles import ROLES
from triptych.stages.adapters import Registry
from triptych.stages.describe import describe
from triptych.stages.stage import Stage
from triptych.v1.job_pb2 import Adapter


def test_a_quantized_component_takes_adapters(folder_of: Any, tmp_path: Path) -> None:
    needs_package("torchao")
    from torchao.quantization import Int8WeightOnlyConfig

    folder = folder_of(MODEL)
    path = loras.save(tmp_path / "style.safetensors", loras.tensors(loras.whole(folder), "transformer"))
    whole, _model = opened(folder)
    registry = Registry.open(whole, str(tmp_path))
    model = describe(whole, registry.described)
    table = {"config": "TorchAoConfig", "quant_type": "Int8WeightOnlyConfig"}
    means = of_tables(components(transformer={"quantization": table}))
    stages = [Stage.load(whole, role, means=means, adapters=registry.files) for role in ROLES]

    def made(*adapters: Adapter) -> Array:
        request = request_of(dict(FIELDS[MODEL]), 7)
        request.adapters.extend(adapters)
        values: Mapping[str, object] = resolve(request, model).for_encoder()
        for stage in stages:
            values = stage.run(values, lambda _step: None, lambda: False)
        (output,) = values.values()
        return np.asarray(output)

    quantize = quantized("transformer", diffusers.TorchAoConfig(Int8WeightOnlyConfig()))

    def with_it(pipeline: Any) -> None:
        quantize(pipeline)
        pipeline.load_lora_weights(str(path), adapter_name="style")
        pipeline.set_adapters(["style"], [0.5])

    plain = made()
    styled = made(Adapter(name="style", weight=0.5))
    assert np.array_equal(styled, reference(folder, FIELDS[MODEL], with_it))
    assert not np.array_equal(styled, plain)
    assert np.array_equal(made(), plain)
