"""Make the demo model from a seed: `python examples/shapes/train.py --out examples/shapes/model`.

Each step keeps a checkpoint in the work folder, so the command may be stopped and given again. Checkpoints belong
outside the repository. Plan the minutes for a machine with two free cores; more is better.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import models
from latents import normalise
from train_text import train_text_encoder
from train_transformer import LATENTS_PER_COMBINATION, encode_clips, train_transformer
from train_vae import polish_decoder, train_vae


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the finished pipeline; replaced if there")
    parser.add_argument("--work", type=Path, default=Path.home() / ".cache" / "triptych-shapes", help="checkpoints")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vae-minutes", type=float, default=30.0)
    parser.add_argument("--text-minutes", type=float, default=3.0)
    parser.add_argument("--transformer-minutes", type=float, default=60.0)
    parser.add_argument("--decoder-minutes", type=float, default=6.0, help="for the decoder alone, at the end")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def main() -> None:
    """Train what isn't trained yet, then export."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    arguments.work.mkdir(parents=True, exist_ok=True)
    vae = train_vae(arguments.work, arguments.vae_minutes, arguments.seed)
    encoded = encode_clips(arguments.work / "latents.pt", vae, arguments.seed, LATENTS_PER_COMBINATION)
    latents = normalise(vae, encoded)
    language = models.make_language()
    train_text_encoder(arguments.work / "text_encoder.pt", language, arguments.text_minutes, arguments.seed)
    transformer = train_transformer(arguments.work, latents, language, arguments.transformer_minutes, arguments.seed)
    polish_decoder(arguments.work, vae, arguments.decoder_minutes, arguments.seed)
    models.export(arguments.out, vae, language.encoder, transformer)


if __name__ == "__main__":
    main()
