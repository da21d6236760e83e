"""A tiny random model of each of diffusers' families, by the names of its own registry, and of their variants.

`make` writes one into a folder in the modular layout, which every family has: offline, from a seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.modular_pipelines.modular_pipeline import MODULAR_PIPELINE_MAPPING

from tests.families import more_nets, nets, texts
from tests.models import DONE_NAME, clip_tokenizer, t5_tokenizer

CONFIGS = {
    "enable_safety_checker": False,  # a model of its own, of a package that is installed apart
    "distilled_sigmas": [1.0, 0.6],
    "reference_image_short_edge": 32,
}
"""Options of pipelines that tiny models need, by names of diffusers."""
Parts = Mapping[str, Callable[[], Any]]


def make(family: str, folder: str | Path, seed: int = 0, **others: Callable[[], Any]) -> str:
    """Fills the folder once with the family's model, `others` in place of its own parts; returns it as text."""
    folder = Path(folder)
    if not (folder / DONE_NAME).exists():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            pipeline = pipeline_class(family)()
            pipeline.update_components(**{name: part() for name, part in {**FAMILIES[family], **others}.items()})
            configs = {name: value for name, value in CONFIGS.items() if name in pipeline.config}
            pipeline.register_to_config(**configs)
            pipeline.save_pretrained(str(folder), overwrite_modular_index=True)
        (folder / DONE_NAME).touch()
    return str(folder)


def pipeline_class(family: str) -> type[diffusers.ModularPipeline]:
    """Of a family, or of a variant, which goes by its class's name."""
    class_of = MODULAR_PIPELINE_MAPPING.get(family)
    kind: type[diffusers.ModularPipeline] = getattr(diffusers, class_of() if class_of else family)
    return kind


def pipeline_classes() -> set[type[diffusers.ModularPipeline]]:
    """All that diffusers has, as it says itself."""
    exported = (getattr(diffusers, name) for name in dir(diffusers) if name.endswith("ModularPipeline"))
    return {kind for kind in exported if kind is not diffusers.ModularPipeline}


def wan_i2v(**settings: Any) -> Any:
    """A denoiser of noise, a mask, and the picture, with CLIP's features of it."""
    return nets.wan(2 * nets.CHANNELS + 2, image_dim=texts.HIDDEN, added_kv_proj_dim=24, **settings)


def _umt5() -> Any:
    return texts.t5_encoder(umt5=True)


_WAN: Parts = {
    "text_encoder": _umt5,
    "tokenizer": t5_tokenizer,
    "vae": nets.vae_wan,
    "transformer": nets.wan,
    "scheduler": nets.unipc,
}
_FLUX: Parts = {
    "text_encoder": texts.clip_text,
    "tokenizer": clip_tokenizer,
    "text_encoder_2": texts.t5_encoder,
    "tokenizer_2": t5_tokenizer,
    "vae": nets.vae_flux,
    "scheduler": nets.flow_euler,
    "transformer": nets.flux,
}
_FLUX3: Parts = {
    "prompt_upsampler": texts.qwen3_5,
    "prompt_upsampler_processor": texts.qwen3_processor,
    "text_encoder": lambda: texts.qwen3_vl(33),
    "tokenizer": texts.qwen3_processor,
    "vae": nets.vae_flux2,
    "transformer": nets.flux3,
}
_QWEN_EDIT: Parts = {
    "text_encoder": texts.qwen2_5_vl,
    "processor": texts.qwen2_processor,
    "vae": nets.vae_qwen_edit,
    "scheduler": nets.dynamic_euler,
    "transformer": nets.qwen,
}

_QWEN21: Parts = {
    "text_encoder": texts.qwen3_vl,
    "processor": texts.qwen3_processor,
    "vae": nets.vae_qwen21,
    "scheduler": nets.dynamic_euler,
    "transformer": more_nets.qwen21,
}
_ANIMATE: Parts = {
    **_WAN,
    "vae": lambda: nets.vae_wan(halvings=3, temporal=2),  # which its code takes for granted
    "image_encoder": lambda: texts.clip_vision(image_size=224, patch_size=56, hidden_size=1280, num_hidden_layers=2),
    "transformer": more_nets.wan_animate,
}
_HELIOS: Parts = {**_WAN, "transformer": nets.helios, "scheduler": lambda: diffusers.HeliosScheduler(stages=1)}
# With the default gamma of a third, a CPU's arithmetic finds no Cholesky factor of the noise's covariance.
_PYRAMID: Parts = {**_HELIOS, "scheduler": lambda: diffusers.HeliosScheduler(gamma=0.25)}
_AUDIO_VIDEO: Parts = {
    "text_encoder": texts.gemma3,
    "tokenizer": texts.fast_tokenizer,
    "vae": nets.vae_ltx2,
    "audio_vae": nets.audio_vae_ltx2,
    "vocoder": nets.vocoder_ltx2,
}
_LTX2: Parts = {
    **_AUDIO_VIDEO,
    "connectors": nets.connectors,
    "transformer": nets.ltx2_transformer,
    "scheduler": nets.dynamic_euler,
    "duration_head": more_nets.ltx2_duration,
}

FAMILIES: dict[str, Parts] = {
    "wan": _WAN,
    "flux": _FLUX,
    "flux-kontext": {**_FLUX, "transformer": lambda: nets.flux(guidance_embeds=True)},
    "flux2": {
        "text_encoder": lambda: texts.mistral3(31),
        "tokenizer": texts.pixtral_processor,
        "vae": nets.vae_flux2,
        "scheduler": nets.dynamic_euler,
        "transformer": lambda: nets.flux2(3),
    },
    "flux2-klein": {
        "text_encoder": lambda: texts.qwen3(28, headed=True),
        "tokenizer": texts.chat_tokenizer,
        "vae": nets.vae_flux2,
        "scheduler": nets.dynamic_euler,
        "transformer": lambda: nets.flux2(3, guidance_embeds=False),
    },
    "flux3": _FLUX3,
    "flux3-distilled": {**_FLUX3, "transformer": lambda: nets.flux3(flow_map=True)},
    "qwenimage-edit": _QWEN_EDIT,
    "qwenimage-edit-plus": _QWEN_EDIT,
    "qwenimage-layered": {
        **_QWEN_EDIT,
        "tokenizer": texts.chat_tokenizer,
        "vae": lambda: nets.vae_qwen_edit(4),
        "transformer": lambda: nets.qwen(use_additional_t_cond=True, use_layer3d_rope=True),
    },
    "qwenimage": {
        **{name: part for name, part in _QWEN_EDIT.items() if name != "processor"},
        "tokenizer": texts.chat_tokenizer,
        "vae": nets.vae_qwen,
        "controlnet": lambda: nets.qwen("QwenImageControlNetModel"),
    },
    "qwenimage21": _QWEN21,
    "qwenimage21-turbo": _QWEN21,
    "stable-diffusion-xl": {
        "text_encoder": texts.clip_text,
        "text_encoder_2": lambda: texts.clip_text(projected=True),
        "tokenizer": clip_tokenizer,
        "tokenizer_2": clip_tokenizer,
        "image_encoder": lambda: texts.clip_vision(projected=True, image_size=224, patch_size=56),
        "unet": more_nets.unet,
        "vae": nets.vae,
        "scheduler": diffusers.EulerDiscreteScheduler,
        "controlnet": more_nets.controlnet_union,
    },
    "stable-diffusion-3": {
        "text_encoder": lambda: texts.clip_text(projected=True),
        "tokenizer": clip_tokenizer,
        "text_encoder_2": lambda: texts.clip_text(projected=True),
        "tokenizer_2": clip_tokenizer,
        "text_encoder_3": texts.t5_encoder,
        "tokenizer_3": t5_tokenizer,
        "vae": nets.vae_flux,
        "scheduler": nets.flow_euler,
        "transformer": more_nets.sd3,
    },
    "wan-animate-2": {**_ANIMATE, "scheduler": nets.dpm_solver},
    "wan-animate-2-distilled": {**_ANIMATE, "scheduler": nets.flow_euler},
    "wan-i2v": {
        **_WAN,
        "image_processor": texts.clip_images,
        "image_encoder": texts.clip_vision,
        "transformer": wan_i2v,
    },
    "wan-vace": {
        **_WAN,
        "transformer_2": lambda: nets.wan(
            kind="WanVACETransformer3DModel", vace_layers=[0], vace_in_channels=2 * nets.CHANNELS + 16
        ),
        "transformer": lambda: nets.wan(
            kind="WanVACETransformer3DModel", vace_layers=[0], vace_in_channels=2 * nets.CHANNELS + 16
        ),
    },
    "ideogram4": {
        "text_encoder": lambda: texts.qwen3_vl(36, headed=False),
        "tokenizer": texts.chat_tokenizer,
        "prompt_enhancer_head": more_nets.ideogram_head,
        "transformer": more_nets.ideogram,
        "unconditional_transformer": more_nets.ideogram,
        "scheduler": nets.flow_euler,
        "vae": nets.vae_flux2,
    },
    "krea2": {
        "text_encoder": lambda: texts.qwen3_vl(36, headed=False),
        "tokenizer": texts.chat_tokenizer,
        "transformer": more_nets.krea,
        "scheduler": nets.dynamic_euler,
        "vae": nets.vae_qwen,
    },
    "anima": {
        "text_encoder": texts.qwen3,
        "tokenizer": texts.chat_tokenizer,
        "t5_tokenizer": t5_tokenizer,
        "vae": nets.vae_qwen,
        "text_conditioner": more_nets.anima_conditioner,
        "transformer": more_nets.anima,
        "scheduler": nets.flow_euler,
    },
    "z-image": {
        "text_encoder": texts.qwen3,
        "tokenizer": texts.chat_tokenizer,
        "vae": nets.vae_flux,
        "transformer": more_nets.z_image,
        "scheduler": nets.flow_euler,
    },
    "cosmos3-omni": {
        "text_tokenizer": texts.chat_tokenizer,
        "vae": nets.vae_wan,
        "transformer": more_nets.cosmos3,
        "scheduler": nets.unipc,
        "sound_tokenizer": more_nets.cosmos3_sound,
    },
    "helios": _HELIOS,
    "helios-pyramid": _PYRAMID,
    "hunyuan-video-1.5": {
        "text_encoder": lambda: texts.qwen2_5_vl(text_only=True),
        "tokenizer": texts.chat_tokenizer,
        "text_encoder_2": lambda: texts.t5_encoder(vocab_size=384),
        "tokenizer_2": texts.byt5_tokenizer,
        "vae": nets.vae_hunyuan,
        "image_encoder": texts.siglip_vision,
        "feature_extractor": texts.siglip_images,
        "scheduler": nets.flow_euler,
        "transformer": more_nets.hunyuan,
    },
    "echo": {
        **_AUDIO_VIDEO,
        "connectors": nets.connectors,
        "transformer": nets.ltx2_transformer,
    },
    "ltx": {
        "text_encoder": texts.t5_encoder,
        "tokenizer": t5_tokenizer,
        "vae": nets.vae_ltx,
        "scheduler": nets.flow_euler,
        "transformer": more_nets.ltx,
    },
    "ltx2": _LTX2,
    "ltx2.5": {**_LTX2, "diffusion_decoder": more_nets.ltx2_diffusion_decoder},
    "minimax-h3": {
        "text_encoder": lambda: texts.qwen3_vl(51),
        "tokenizer": texts.chat_tokenizer,
        "processor": texts.qwen3_processor,
        "vae": more_nets.h3_vae,
        "audio_vae": more_nets.h3_audio_vae,
        "scheduler": diffusers.MiniMaxH3Scheduler,
        "audio_scheduler": lambda: diffusers.MiniMaxH3Scheduler(shift=3.0),
        "transformer_ref": more_nets.h3,
        "transformer": more_nets.h3,
    },
    "minimax-music3": {
        "tokenizer": texts.music_tokenizer,
        "language_model": lambda: texts.qwen3(2, headed=True, vocab_size=more_nets.MUSIC_VOCAB),
        "rvq_depth_decoder": more_nets.music_depth,
        "condition_encoder": more_nets.music_condition,
        "transformer": more_nets.music,
        "scheduler": nets.flow_euler,
        "vocoder": more_nets.music_vocoder,
    },
    "ernie-image": {
        "pe": texts.ministral3,
        "pe_tokenizer": texts.fast_tokenizer,
        "text_encoder": lambda: texts.mistral3(headed=False),
        "tokenizer": texts.fast_tokenizer,
        "transformer": more_nets.ernie,
        "scheduler": nets.flow_euler,
        "vae": nets.vae_flux2,
    },
}

_KLEIN, _KREA, _COSMOS = FAMILIES["flux2-klein"], FAMILIES["krea2"], FAMILIES["cosmos3-omni"]
VARIANTS: dict[str, Parts] = {
    "Cosmos3DistilledModularPipeline": {
        **{name: part for name, part in _COSMOS.items() if name != "sound_tokenizer"},
        "scheduler": nets.flow_euler,
    },
    "Flux2KleinBaseModularPipeline": _KLEIN,
    "HeliosPyramidDistilledModularPipeline": {
        **_HELIOS,
        "scheduler": lambda: diffusers.HeliosDMDScheduler(gamma=0.25),
    },
    "Krea2TurboModularPipeline": _KREA,
    "Wan22Image2VideoModularPipeline": {
        **_WAN,
        "transformer": lambda: nets.wan(2 * nets.CHANNELS + 2),
        "transformer_2": lambda: nets.wan(2 * nets.CHANNELS + 2),
    },
    "Wan22ModularPipeline": {**_WAN, "transformer_2": nets.wan},
}
FAMILIES.update(VARIANTS)
