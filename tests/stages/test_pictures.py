"""Which inputs take several pictures, in every family that diffusers has. Only blocks are made, no weights."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator

import diffusers.modular_pipelines
from diffusers.modular_pipelines.modular_pipeline import ModularPipeline

from triptych.stages.inputs import describe_input
from triptych.v1.model_pb2 import INPUT_KIND_IMAGE

SEVERAL = {
    *(f"{name}.image" for name in ("Flux2", "Flux2Klein", "Flux2KleinBase", "Flux3", "Flux3Distilled")),
    *(f"{name}.image" for name in ("QwenImage21", "QwenImage21Turbo", "QwenImageEditPlus")),
    "Echo.memory_images",
    "StableDiffusionXL.ip_adapter_image",
    "Wan22Vace.reference_images",
}
ONE_DESPITE_THEIR_HINT = {
    *(f"{name}.image" for name in ("Anima", "Cosmos3Distilled", "Cosmos3Omni", "Flux", "FluxKontext", "Helios")),
    *(
        f"{name}.image"
        for name in ("HeliosPyramid", "HeliosPyramidDistilled", "HunyuanVideo15", "LTX", "LTX2", "LTX25")
    ),
    *(f"{name}.image" for name in ("QwenImage", "QwenImageEdit", "QwenImageLayered", "StableDiffusion3")),
    *(f"{name}.image" for name in ("StableDiffusionXL", "WanAnimate2", "WanAnimate2Distilled")),
}


def pipelines() -> Iterator[type[ModularPipeline]]:
    for package in pkgutil.iter_modules(diffusers.modular_pipelines.__path__):
        if package.ispkg:
            module = importlib.import_module(f"diffusers.modular_pipelines.{package.name}")
            for name in dir(module):
                found = getattr(module, name)
                if inspect.isclass(found) and issubclass(found, ModularPipeline) and found.default_blocks_name:
                    yield found


def test_pictures_that_go_into_one_result_are_told_from_those_of_one_result_each() -> None:
    several, one = set(), set()
    for pipeline in pipelines():
        blocks = getattr(diffusers, pipeline.default_blocks_name)()
        for parameter in blocks.inputs:
            described = describe_input(parameter, blocks) if parameter.name else None
            if described is None or described.kind != INPUT_KIND_IMAGE:
                continue
            name = f"{pipeline.__name__.removesuffix('ModularPipeline')}.{parameter.name}"
            if described.takes_several:
                several.add(name)
            elif "list[" in described.type_hint:
                one.add(name)
    assert several == SEVERAL
    assert one == ONE_DESPITE_THEIR_HINT
