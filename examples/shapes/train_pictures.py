"""Make the picture model: `python examples/shapes/train_pictures.py --out examples/shapes/picture_model`.

The VAE is the clips' one. Each step keeps a checkpoint in the work folder, so the command may be stopped and given
again. Checkpoints belong outside the repository.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch
from diffusers import AutoencoderKLQwenImage, AutoencoderKLWan
from torch import nn

import clips
import picture_models
from flow import Batch, train_flow
from language import Language
from latents import LatentSet, encode_latents, normalise
from train_text import train_text_encoder

PICTURES_PER_COMBINATION = 4
PROMPTS_PER_COMBINATION = 4
BATCH = 32
SAMPLER_SHIFT = 3.0


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the finished pipeline; replaced if there")
    parser.add_argument("--clips-model", type=Path, default=Path(__file__).parent / "model", help="whose VAE to take")
    parser.add_argument("--work", type=Path, default=Path.home() / ".cache" / "triptych-pictures", help="checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--text-minutes", type=float, default=3.0)
    parser.add_argument("--transformer-minutes", type=float, default=15.0)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


class Prompts:
    """Several wordings of every combination of attributes, encoded once; the first of all is the empty prompt."""

    @torch.no_grad()
    def __init__(self, language: Language, rng: random.Random) -> None:
        texts = [""]
        self._of: list[list[int]] = []
        for attributes in clips.ALL_ATTRIBUTES:
            drawn = [language.draw_prompt(attributes, rng) for _ in range(PROMPTS_PER_COMBINATION)]
            self._of.append([0 if not text else len(texts) + place for place, text in enumerate(drawn)])
            texts += drawn
        encoded = [language.encode(texts[start : start + 256]) for start in range(0, len(texts), 256)]
        longest = max(part.states.shape[1] for part in encoded)
        self._states = torch.cat([_pad(part.states, longest) for part in encoded])
        self._seen = torch.cat([_pad(part.seen[..., None], longest)[..., 0] for part in encoded])

    def draw(self, indices: list[int], rng: random.Random) -> tuple[torch.Tensor, torch.Tensor]:
        """States and mask of one prompt for each index in ALL_ATTRIBUTES, no longer than the longest of them."""
        chosen = torch.tensor([rng.choice(self._of[index]) for index in indices])
        seen = self._seen[chosen]
        length = int(seen.sum(1).max())
        return self._states[chosen, :length], seen[:, :length]


def _pad(states: torch.Tensor, length: int) -> torch.Tensor:
    """[N, L, D] to [N, `length`, D], with zeros."""
    return nn.functional.pad(states, (0, 0, 0, length - states.shape[1]))


def pack(latents: torch.Tensor) -> torch.Tensor:
    """[N, Z, 1, h, w] to [N, h/2 * w/2, 4 Z], the order that Qwen-Image's transformer takes."""
    count, channels, _, height, width = latents.shape
    tiles = latents.view(count, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return tiles.reshape(count, height * width // 4, 4 * channels)


def unpack(tokens: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """[N, h/2 * w/2, 4 Z] to [N, Z, 1, h, w]."""
    tiles = tokens.view(len(tokens), height // 2, width // 2, -1, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return tiles.reshape(len(tokens), -1, 1, height, width)


def train_transformer(work: Path, latents: LatentSet, language: Language, minutes: float, seed: int) -> nn.Module:
    """Train on normalised latents for `minutes` in all, going on from `work`/transformer.pt if it is there."""
    torch.manual_seed(seed)
    transformer = picture_models.make_transformer()
    prompts = Prompts(language, random.Random(seed + 1))
    height, width = latents.latents.shape[-2:]

    def draw(step: int, fraction: float) -> Batch:
        rng = random.Random(seed * 1_000_003 + step)
        chosen = torch.tensor(rng.choices(range(len(latents.latents)), k=BATCH))
        states, seen = prompts.draw(latents.attributes[chosen].tolist(), rng)

        def predict(noisy: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            shapes = [[(1, height // 2, width // 2)]] * BATCH
            return unpack(transformer(pack(noisy), states, seen, sigma, shapes, return_dict=False)[0], height, width)

        return Batch(latents.latents[chosen], predict)

    return train_flow(work / "transformer.pt", transformer, draw, minutes, SAMPLER_SHIFT)


def encode_pictures(work: Path, vae: AutoencoderKLQwenImage, seed: int) -> LatentSet:
    """Latents of pictures of every combination of attributes; the direction, which no picture shows, is left first."""
    indices = [index for index, one in enumerate(clips.ALL_ATTRIBUTES) if one.direction == next(iter(clips.DIRECTIONS))]
    indices *= PICTURES_PER_COMBINATION
    rng = random.Random(seed)

    def draw(index: int) -> torch.Tensor:
        return clips.draw_picture(clips.ALL_ATTRIBUTES[index], rng)

    return encode_latents(work / "latents.pt", vae, indices, draw)


def main() -> None:
    """Train what isn't trained yet, then export."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    arguments.work.mkdir(parents=True, exist_ok=True)
    clip_vae = AutoencoderKLWan.from_pretrained(arguments.clips_model / "vae", torch_dtype=torch.float32)
    vae = picture_models.make_vae(clip_vae).eval()
    latents = normalise(vae, encode_pictures(arguments.work, vae, arguments.seed))
    language = picture_models.make_language()
    train_text_encoder(arguments.work / "text_encoder.pt", language, arguments.text_minutes, arguments.seed)
    transformer = train_transformer(arguments.work, latents, language, arguments.transformer_minutes, arguments.seed)
    picture_models.export(arguments.out, vae, language.encoder, transformer)


if __name__ == "__main__":
    main()
