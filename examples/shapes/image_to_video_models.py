"""The image-to-video model's components: those of the clips' model, an image encoder, and a wider transformer input.

The architecture is that of Wan 2.1 image-to-video; only the sizes differ. Text encoder and VAE are the clips' own, and
the transformer starts as the clips' one.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, WanImageToVideoPipeline, WanTransformer3DModel
from torch import nn
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

import clips
import models

IMAGE_DIM = 32
IMAGE_ENCODER_SEED = 0
MASK_CHANNELS = 4  # one for each frame of a latent frame: 1 where the frame is given


def make_image_processor() -> CLIPImageProcessor:
    """CLIP's preparation of a picture, at the clips' own size."""
    size = {"height": clips.SIDE_PX, "width": clips.SIDE_PX}
    return CLIPImageProcessor(size=size, crop_size=size, do_center_crop=False)


def make_image_encoder() -> CLIPVisionModel:
    """CLIP's image encoder with random weights, always the same; nothing trains it.

    Wan takes the states before the last layer, [batch, 17, IMAGE_DIM]: mixtures of the pixels of each patch. The first
    frame's latents, which the transformer gets too, say the same exactly.
    """
    config = CLIPVisionConfig(
        hidden_size=IMAGE_DIM,
        intermediate_size=2 * IMAGE_DIM,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=clips.SIDE_PX,
        patch_size=16,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(IMAGE_ENCODER_SEED)
        return CLIPVisionModel(config).eval().requires_grad_(False)


@torch.no_grad()
def image_states(processor: CLIPImageProcessor, encoder: CLIPVisionModel, frames: torch.Tensor) -> torch.Tensor:
    """What Wan's pipelines take of the image encoder, for pictures [batch, H, W, 3] uint8: [batch, 17, IMAGE_DIM]."""
    pixels = processor(images=list(frames.numpy()), return_tensors="pt")
    states: torch.Tensor = encoder(**pixels, output_hidden_states=True).hidden_states[-2]
    return states


def make_transformer(clip_transformer: WanTransformer3DModel) -> WanTransformer3DModel:
    """The clips' transformer; what it newly sees, mask, condition and image, counts nothing yet."""
    config = dict(clip_transformer.config)
    wide = {
        "in_channels": 2 * models.Z_DIM + MASK_CHANNELS,
        "image_dim": IMAGE_DIM,
        "added_kv_proj_dim": config["attention_head_dim"] * config["num_attention_heads"],
    }
    transformer = WanTransformer3DModel.from_config({**config, **wide})
    weights = clip_transformer.state_dict()
    patch = weights.pop("patch_embedding.weight")
    transformer.load_state_dict(transformer.state_dict() | weights)
    with torch.no_grad():
        transformer.patch_embedding.weight.zero_()
        transformer.patch_embedding.weight[:, : models.Z_DIM] = patch
        for block in transformer.blocks:
            block.attn2.add_v_proj.weight.zero_()
            block.attn2.add_v_proj.bias.zero_()
    return transformer


def export(
    folder: Path, vae: AutoencoderKLWan, text_encoder: nn.Module, image_encoder: nn.Module, transformer: nn.Module
) -> None:
    """Save the pipeline in fp16 as `folder`; the modules are rounded to fp16 in place."""
    pipeline = WanImageToVideoPipeline(
        tokenizer=models.make_tokenizer(),
        text_encoder=text_encoder.half(),
        image_encoder=image_encoder.half(),
        image_processor=make_image_processor(),
        vae=vae.half(),
        scheduler=models.make_scheduler(),
        transformer=transformer.half(),
    )
    models.save(pipeline, folder, models.RECOMMENDED)
