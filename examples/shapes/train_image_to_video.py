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
from transformers import CLIPVisionModel, UMT5EncoderModel

import clips
import image_to_video_models
import models
from flow import Batch, train_flow
from language import Language
from latents import encode_latents
from train_transformer import PaddedCrossAttention

BATCH = 16
LEARNING_RATE = 6e-4


class Conditioned(NamedTuple):
    """Normalised latents of clips [N, Z, T, h, w] with their indices in ALL_ATTRIBUTES [N], and what each clip's first
    frame gives: mask and condition [N, 4 + Z, T, h, w], image states [N, 17, IMAGE_DIM]."""

    latents: torch.Tensor
    attributes: torch.Tensor
    condition: torch.Tensor
    image_states: torch.Tensor


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the finished pipeline; replaced if there")
    parser.add_argument("--clips-model", type=Path, default=Path(__file__).parent / "model", help="to go on from")
    parser.add_argument("--work", type=Path, default=Path.home() / ".cache" / "triptych-image-to-video")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def mask_of(condition: torch.Tensor) -> torch.Tensor:
    """Wan's mask [N, 4, T, h, w] for latents [N, Z, T, h, w]: ones on the first latent frame, which is given."""
    count, _, frames, height, width = condition.shape
    mask = torch.zeros(count, image_to_video_models.MASK_CHANNELS, frames, height, width)
    mask[:, :, 0] = 1.0
    return mask


def encode(work: Path, vae: AutoencoderKLWan, image_encoder: CLIPVisionModel, seed: int) -> Conditioned:
    """From one start for every look, draw and encode the moves in all directions; kept in `work`."""
    rng = random.Random(seed)
    looks = list(dict.fromkeys(one._replace(direction="right") for one in clips.ALL_ATTRIBUTES))
    starts = {look: clips.draw_start(rng) for look in looks}

    def clip(index: int) -> torch.Tensor:
        wanted = clips.ALL_ATTRIBUTES[index]
        rendered = clips.render_from(wanted, starts[wanted._replace(direction="right")])
        return _pixels(clips.to_uint8(rendered))

    def first_frame(index: int) -> torch.Tensor:
        whole = clip(index)
        return torch.cat([whole[:, :1], torch.zeros_like(whole[:, 1:])], dim=1)

    place = {one: index for index, one in enumerate(clips.ALL_ATTRIBUTES)}
    condition = encode_latents(work / "condition.pt", vae, [place[look] for look in looks], first_frame)
    latents = encode_latents(work / "latents.pt", vae, list(place.values()), clip)
    frames = torch.stack([clips.to_uint8(clips.render_from(look, starts[look], 1))[0] for look in looks])
    states = image_to_video_models.image_states(image_to_video_models.make_image_processor(), image_encoder, frames)
    # The scale and shift that the clips' transformer has learned to expect.
    mean = torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1, 1)
    std = torch.tensor(vae.config.latents_std).view(1, -1, 1, 1, 1)
    normal = (condition.latents - mean) / std
    of_clip = torch.tensor([looks.index(one._replace(direction="right")) for one in clips.ALL_ATTRIBUTES])
    return Conditioned(
        latents=(latents.latents - mean) / std,
        attributes=latents.attributes,
        condition=torch.cat([mask_of(normal), normal], dim=1)[of_clip],
        image_states=states[of_clip],
    )


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
    transformer = image_to_video_models.make_transformer(clip_transformer)
    image_encoder = image_to_video_models.make_image_encoder()
    seen = encode(arguments.work, vae, image_encoder, arguments.seed)
    trained = train_transformer(arguments.work, transformer, seen, language, arguments.minutes, arguments.seed)
    image_to_video_models.export(arguments.out, vae, language.encoder, image_encoder, trained)


if __name__ == "__main__":
    main()
