"""Make the image-to-video model: `python examples/shapes/train_image_to_video.py --out
examples/shapes/image_to_video_model`.

It goes on from the clips' model: text encoder and VAE stay, the transformer learns to take a first frame. Each step
keeps a checkpoint in the work folder, so the command may be stopped and given again. Checkpoints belong outside the
repository.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch import nn
from transformers import UMT5EncoderModel

import clips
import image_to_video_models
import models
from flow import Batch, train_flow
from language import Language
from latents import encode_latents
from train_image_encoder import train_image_encoder
from train_transformer import PaddedCrossAttention

CLIPS_PER_COMBINATION = 1
BATCH = 32
LEARNING_RATE = 8e-4


class Conditioned(NamedTuple):
    """Normalised latents of clips [N, Z, T, h, w]; the condition that their first frames give, with its mask
    [N, 4 + Z, T, h, w]; the first frames' image states [N, 17, IMAGE_DIM]; indices in ALL_ATTRIBUTES [N]."""

    latents: torch.Tensor
    condition: torch.Tensor
    image_states: torch.Tensor
    attributes: torch.Tensor


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the finished pipeline; replaced if there")
    parser.add_argument("--clips-model", type=Path, default=Path(__file__).parent / "model", help="to go on from")
    parser.add_argument("--work", type=Path, default=Path.home() / ".cache" / "triptych-image-to-video")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--image-encoder-minutes", type=float, default=4.0)
    parser.add_argument("--transformer-minutes", type=float, default=40.0)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def mask_of(condition: torch.Tensor) -> torch.Tensor:
    """Wan's mask [N, 4, T, h, w] for latents [N, Z, T, h, w]: ones on the first latent frame, which is given."""
    count, _, frames, height, width = condition.shape
    mask = torch.zeros(count, image_to_video_models.MASK_CHANNELS, frames, height, width)
    mask[:, :, 0] = 1.0
    return mask


@torch.no_grad()
def encode(work: Path, vae: AutoencoderKLWan, image_encoder: nn.Module, seed: int) -> Conditioned:
    """Draw and encode the clips and what their first frames give; kept in `work`."""
    indices = list(range(len(clips.ALL_ATTRIBUTES))) * CLIPS_PER_COMBINATION
    rng = random.Random(seed)
    drawn = [clips.to_uint8(clips.render(clips.ALL_ATTRIBUTES[index], rng)) for index in indices]
    whole = iter(drawn)
    latents = encode_latents(work / "latents.pt", vae, indices, lambda _: _pixels(next(whole)))
    firsts = iter(drawn)

    def first_then_zeros(_: int) -> torch.Tensor:
        clip = _pixels(next(firsts))
        return torch.cat([clip[:, :1], torch.zeros_like(clip[:, 1:])], dim=1)

    condition = encode_latents(work / "condition.pt", vae, indices, first_then_zeros)
    processor = image_to_video_models.make_image_processor()
    frames = torch.stack([clip[0] for clip in drawn])
    states = [
        image_to_video_models.image_states(processor, image_encoder, part)  # type: ignore[arg-type]
        for part in frames.split(64)
    ]
    # The scale and shift that the clips' transformer has learned to expect.
    mean = torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1, 1)
    std = torch.tensor(vae.config.latents_std).view(1, -1, 1, 1, 1)
    normal = (condition.latents - mean) / std
    given = torch.cat([mask_of(normal), normal], dim=1)
    return Conditioned((latents.latents - mean) / std, given, torch.cat(states), latents.attributes)


def _pixels(clip: torch.Tensor) -> torch.Tensor:
    """uint8 [F, H, W, 3] to [3, F, H, W] in [-1, 1], as a pipeline would take it."""
    return clip.permute(3, 0, 1, 2).float() / 127.5 - 1


def train_transformer(
    work: Path, transformer: WanTransformer3DModel, seen: Conditioned, language: Language, minutes: float, seed: int
) -> nn.Module:
    """Train for `minutes` in all, going on from `work`/transformer.pt if it is there; returns the averaged weights."""
    torch.manual_seed(seed)
    padding = PaddedCrossAttention()
    for block in transformer.blocks:
        block.attn2.set_processor(padding)

    def draw(step: int, fraction: float) -> Batch:
        rng = random.Random(seed * 1_000_003 + step)
        chosen = torch.tensor(rng.choices(range(len(seen.latents)), k=BATCH))
        attributes = [clips.ALL_ATTRIBUTES[index] for index in seen.attributes[chosen].tolist()]
        with torch.no_grad():
            encoded = language.encode([language.draw_prompt(one, rng) for one in attributes])
        padding.set_lengths(encoded.seen.sum(1), models.TEXT_LENGTH_MAX)

        def predict(noisy: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            given = torch.cat([noisy, seen.condition[chosen]], dim=1)
            images = seen.image_states[chosen]
            velocity: torch.Tensor = transformer(given, sigma * 1000, encoded.states, images, return_dict=False)[0]
            return velocity

        return Batch(seen.latents[chosen], predict)

    return train_flow(work / "transformer.pt", transformer, draw, minutes, models.FLOW_SHIFT, LEARNING_RATE)


def main() -> None:
    """Train what isn't trained yet, then export."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    arguments.work.mkdir(parents=True, exist_ok=True)
    folder = arguments.clips_model
    vae = AutoencoderKLWan.from_pretrained(folder / "vae", torch_dtype=torch.float32).eval()
    language = models.make_language()
    encoder = UMT5EncoderModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
    language.encoder.load_state_dict(encoder.state_dict())
    language.encoder.eval().requires_grad_(False)
    clip_transformer = WanTransformer3DModel.from_pretrained(folder / "transformer", torch_dtype=torch.float32)
    image_encoder = train_image_encoder(
        arguments.work / "image_encoder.pt", arguments.image_encoder_minutes, arguments.seed
    )
    seen = encode(arguments.work, vae, image_encoder, arguments.seed)
    transformer = train_transformer(
        arguments.work,
        image_to_video_models.make_transformer(clip_transformer),
        seen,
        language,
        arguments.transformer_minutes,
        arguments.seed,
    )
    image_to_video_models.export(arguments.out, vae, language.encoder, image_encoder, transformer)


if __name__ == "__main__":
    main()
