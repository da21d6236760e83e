"""Jobs of every workflow of every family, as diffusers' own arguments: see `cases_of`.

Pictures are PIL's, clips lists of them; `tests.families.requests` makes requests of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers.modular_pipelines.minimax_h3.references import MiniMaxH3ImageReference
from diffusers.pipelines.cosmos.pipeline_cosmos3_omni import CosmosActionCondition
from diffusers.pipelines.ltx2.pipeline_ltx2_condition import LTX2VideoCondition
from diffusers.pipelines.ltx2.pipeline_ltx2_ic_lora import LTX2ReferenceCondition

from tests.families import more_nets, texts, zoo

SEED = 7
PROMPT = "a red circle"
COLOURS = 6
"""Of each clip's frames: so few that a GIF holds them exactly."""
Arguments = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One job."""

    family: str
    workflow: str
    arguments: Arguments = field(default_factory=dict)
    """Of the pipeline, beside the prompt."""
    model: str = ""
    """A model of `MODELS`, where the family's own in `tests.families.zoo` has another part."""
    adapters: tuple[tuple[str, float], ...] = ()
    """IP-Adapters of `tests.families.ip_adapters` by name, with their weights."""

    @property
    def name(self) -> str:
        """For tests."""
        return f"{self.model or self.family}-{self.workflow}"


def picture(height: int = 32, width: int = 32, seed: int = 0) -> PIL.Image.Image:
    """Of noise."""
    return PIL.Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def see_through(height: int = 32, width: int = 32) -> PIL.Image.Image:
    """Of noise, its transparency too."""
    pixels = np.random.default_rng(1).integers(0, 256, (height, width, 4), dtype=np.uint8)
    return PIL.Image.fromarray(pixels, "RGBA")


def mask(height: int = 32, width: int = 32, edge: int = 16) -> PIL.Image.Image:
    """White from a column on."""
    pixels = np.zeros((height, width), dtype=np.uint8)
    pixels[:, edge:] = 255
    return PIL.Image.fromarray(pixels)


def clip(frames: int, height: int = 32, width: int = 32, seed: int = 0) -> list[PIL.Image.Image]:
    """Frames of few colours."""
    random = np.random.default_rng(seed)
    palette = random.integers(0, 256, (COLOURS, 3), dtype=np.uint8)
    return [PIL.Image.fromarray(palette[random.integers(0, COLOURS, (height, width))]) for _ in range(frames)]


_SMALL: Arguments = {"height": 32, "width": 32, "num_inference_steps": 2}
_VIDEO: Arguments = {**_SMALL, "num_frames": 5}
_CONTROL: Arguments = {"control_image": picture(seed=3)}
_CHUNKS: Arguments = {"num_frames": 9, "num_latent_frames_per_chunk": 3, "history_sizes": [4, 2, 1]}
_HELIOS: Arguments = {**_SMALL, **_CHUNKS}
_PYRAMID: Arguments = {**_CHUNKS, "height": 64, "width": 64, "pyramid_num_inference_steps_list": [2, 1, 1]}
_ANIMATE: Arguments = {
    **_SMALL,
    "image": picture(),
    "driving_video": clip(9),
    "driving_video_fps": 24,
    "segment_frame_length": 5,
}


def _plain(**more: Any) -> dict[str, Arguments]:
    return {"text2image": {**_SMALL, **more}}


def _pictures(text: str = "text2image", image: str = "image2image", **more: Any) -> dict[str, Arguments]:
    return {text: {**_SMALL, **more}, image: {**_SMALL, **more, "image": picture()}}


def _videos(given: Arguments, **more: Any) -> dict[str, Arguments]:
    return {"text2video": {**given, **more}, "image2video": {**given, **more, "image": picture()}}


def _inpainting() -> Arguments:
    return {**_SMALL, "image": picture(), "mask_image": mask()}


def _controlled(prefix: str, **more: Any) -> dict[str, Arguments]:
    return {
        f"{prefix}text2image": {**_SMALL, **more},
        f"{prefix}image2image": {**_SMALL, "image": picture(), **more},
        f"{prefix}inpainting": {**_inpainting(), **more},
    }


def _pictured(jobs: dict[str, Arguments]) -> dict[str, Arguments]:
    """The jobs, and before each the same one with a picture for an IP-Adapter."""
    return {
        name: given
        for workflow, arguments in jobs.items()
        for name, given in (
            (f"ip_adapter_{workflow}", {**arguments, "ip_adapter_image": picture(seed=4)}),
            (workflow, arguments),
        )
    }


def _acted(mode: str, **given: Any) -> Arguments:
    action = CosmosActionCondition(mode=mode, chunk_size=4, domain_name="av", resolution_tier=256, **given)
    return {"num_inference_steps": 2, "action": action}


_FLUX2 = {"text2image": _SMALL, "image_conditioned": {**_SMALL, "image": picture(64, 64)}}
_SECONDS = {**_SMALL, "num_inference_steps": 3, "num_frames": 124}
_LTX2 = {
    **_videos(_VIDEO),
    "condition": {**_VIDEO, "conditions": [LTX2VideoCondition(frames=picture(), index=0, strength=1.0)]},
    "in_context": {**_VIDEO, "reference_conditions": [LTX2ReferenceCondition(frames=clip(5), strength=1.0)]},
}
_HELIOS_THREE = {**_videos(_HELIOS), "video2video": {**_HELIOS, "video": clip(9)}}
_PYRAMID_THREE = {**_videos(_PYRAMID), "video2video": {**_PYRAMID, "video": clip(9, 64, 64)}}

WORKFLOWS: dict[str, dict[str, Arguments]] = {
    "wan": {"": _VIDEO},
    "Wan22ModularPipeline": {"": _VIDEO},
    "wan-i2v": {"image2video": {**_VIDEO, "image": picture()}},
    "Wan22Image2VideoModularPipeline": {"": {**_VIDEO, "image": picture()}},
    "wan-vace": {
        "text": _VIDEO,
        "references": {**_VIDEO, "reference_images": [picture(), picture(seed=1)]},
        "video": {**_VIDEO, "video": clip(5), "mask": [mask(edge=8 + frame) for frame in range(5)]},
    },
    "wan-animate-2": {"": _ANIMATE},
    "wan-animate-2-distilled": {"": _ANIMATE},
    "qwenimage": {**_controlled(""), **_controlled("controlnet_", **_CONTROL)},
    "qwenimage-edit": {
        "image_conditioned": {**_SMALL, "image": picture()},
        "image_conditioned_inpainting": {"num_inference_steps": 2, "image": picture(), "mask_image": mask()},
    },
    "qwenimage-edit-plus": {
        "one image": {**_SMALL, "image": picture()},
        "several images": {**_SMALL, "image": [picture(), picture(32, 48, 1)]},
    },
    "qwenimage-layered": {"": {"num_inference_steps": 2, "image": see_through(), "layers": 2}},
    "qwenimage21": _pictures(image="image_conditioned", output_resolution=32),
    "qwenimage21-turbo": _pictures(image="image_conditioned", output_resolution=32),
    "flux": _pictures(),
    "flux-kontext": _pictures(image="image_conditioned", max_area=1024, _auto_resize=False),
    "flux2": _FLUX2,
    "flux2-klein": _FLUX2,
    "Flux2KleinBaseModularPipeline": _FLUX2,
    "flux3": _pictures(image="image_conditioned", max_new_tokens=4),
    "flux3-distilled": _pictures(image="image_conditioned", max_new_tokens=4),
    "stable-diffusion-xl": {
        **_pictured(_controlled("", strength=0.8)),
        **_pictured(_controlled("controlnet_union_", **_CONTROL, control_mode=[3], strength=0.8)),
    },
    # Without a negative prompt modular guidance has no effect in diffusers; here it has, as in the classic pipeline.
    "stable-diffusion-3": _pictures(negative_prompt="blur"),
    "ideogram4": _plain(guidance_schedule=[7.0, 3.0]),
    "krea2": _plain(),
    "Krea2TurboModularPipeline": _plain(),
    "anima": _pictures(image="img2img"),
    "z-image": _pictures(),
    "ernie-image": _plain(),
    "cosmos3-omni": {
        "text2image": {**_VIDEO, "num_frames": 1},
        **_videos(_VIDEO),
        "video2video": {**_VIDEO, "video": clip(5)},
        "text2video_with_sound": {**_VIDEO, "enable_sound": True},
        "image2video_with_sound": {**_VIDEO, "image": picture(), "enable_sound": True},
        "video2video_with_sound": {**_VIDEO, "video": clip(5), "enable_sound": True},
        # No workflow of the map: its blocks run in the whole pipeline, chunk by chunk.
        "transfer": {**_VIDEO, "control_videos": {"edge": clip(5)}},
        "action_policy": _acted("policy", image=picture()),
        "action_forward_dynamics": _acted("forward_dynamics", image=picture(), raw_actions=torch.ones(4, 9)),
        "action_inverse_dynamics": _acted("inverse_dynamics", video=clip(5)),
    },
    "Cosmos3DistilledModularPipeline": {
        "text2image": {**_VIDEO, "num_frames": 1},
        **_videos(_VIDEO),
        "video2video": {**_VIDEO, "video": clip(5)},
    },
    "helios": _HELIOS_THREE,
    "helios-pyramid": _PYRAMID_THREE,
    "HeliosPyramidDistilledModularPipeline": _PYRAMID_THREE,
    "hunyuan-video-1.5": _videos(_VIDEO),
    "echo": {"": {"height": 32, "width": 32, "num_frames": 5, "image": picture()}},
    "ltx": _videos(_VIDEO),
    "ltx2": _LTX2,
    "ltx2.5": _LTX2,
    "minimax-h3": {
        "t2va": _SECONDS,
        "fl2va": {**_SECONDS, "image": picture()},
        "fl2va by its last": {**_SECONDS, "last_image": picture()},
        "ref2va": {**_SECONDS, "references": [MiniMaxH3ImageReference(image=picture())]},
    },
    "minimax-music3": {"": {"lyrics": "la la", "audio_duration": 2.0, "num_inference_steps": 2}},
}

MODELS: dict[str, tuple[str, dict[str, Callable[[], Any]]]] = {
    # With places for the features of two pictures.
    "wan-flf2v": ("wan-i2v", {"transformer": lambda: zoo.wan_i2v(pos_embed_seq_len=2 * texts.CLIP_TOKENS)}),
    # Without tasks of its own.
    "sdxl-controlnet": ("stable-diffusion-xl", {"controlnet": more_nets.controlnet}),
}
"""Further models of a family by a name of their own: the family, and what is another than in `tests.families.zoo`."""
OTHER_MODELS: dict[str, dict[str, Arguments]] = {
    "wan-flf2v": {"flf2v": {**_VIDEO, "image": picture(), "last_image": picture(seed=1)}},
    "sdxl-controlnet": _pictured(_controlled("controlnet_", **_CONTROL, strength=0.8)),
}
"""Jobs of these models."""

NOT_RUN: dict[str, dict[str, str]] = {}
"""Workflows that no job here is of, each with the reason."""


def cases_of(family: str) -> list[Case]:
    """Every job of a family, those of one model together."""
    own = [_case(family, workflow, arguments) for workflow, arguments in WORKFLOWS[family].items()]
    others = [
        _case(family, workflow, arguments, model)
        for model, jobs in OTHER_MODELS.items()
        if MODELS[model][0] == family
        for workflow, arguments in jobs.items()
    ]
    return own + others


def _case(family: str, workflow: str, arguments: Arguments, model: str = "") -> Case:
    return Case(family, workflow, arguments, model, (("look", 0.75),) if "ip_adapter_image" in arguments else ())
