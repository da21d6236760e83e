"""Fit the factors that turn a model's latents into colours: `python examples/shapes/factors.py examples/shapes/model`.

They go into the folder's `triptych.json`, for Triptych's previews. Each latent covers 8 by 8 pixels, and all but the
first of a clip cover 4 frames; least squares find the weighted sum of its channels that is nearest to their mean
colour, on the scale from -1 to 1. Training does the same at its end.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLQwenImage, AutoencoderKLWan

import clips

SAMPLE_COUNT = 64
PATCH_PIXELS = 8
GROUP_FRAMES = 4


def mean_colours(drawn: torch.Tensor) -> torch.Tensor:
    """Clips [N, 3, F, H, W] as what each latent covers: [N, 3, 1 + (F - 1) / 4, H / 8, W / 8]."""
    small = F.avg_pool3d(drawn, (1, PATCH_PIXELS, PATCH_PIXELS))
    first, rest = small[:, :, :1], small[:, :, 1:]
    return torch.cat([first, F.avg_pool3d(rest, (GROUP_FRAMES, 1, 1))], 2) if rest.shape[2] else first


@torch.no_grad()
def fit(vae: AutoencoderKLWan | AutoencoderKLQwenImage, is_video: bool) -> dict[str, Any]:
    """What `triptych.json` says under `preview`, for the latents that the denoiser has: those normalised."""
    rng = random.Random(0)
    draw = clips.render if is_video else clips.draw_picture
    drawn = torch.stack([draw(rng.choice(clips.ALL_ATTRIBUTES), rng) for _ in range(SAMPLE_COUNT)])
    latents = vae.encode(drawn.to(vae.dtype)).latent_dist.mode().float()
    mean, std = (
        torch.tensor(values).view(1, -1, 1, 1, 1) for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    channels = ((latents - mean) / std).movedim(1, -1).flatten(0, -2)
    colours = mean_colours(drawn).movedim(1, -1).flatten(0, -2)
    solution = torch.linalg.lstsq(F.pad(channels, (0, 1), value=1.0), colours).solution
    *factors, bias = ([round(value, 4) for value in row] for row in solution.tolist())
    return {"rgb_factors": factors, "rgb_bias": bias}


def main() -> None:
    """Fit them for a finished folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    path = folder / "triptych.json"
    recommended = json.loads(path.read_text())
    kind = json.loads((folder / "vae" / "config.json").read_text())["_class_name"]
    is_picture = kind == AutoencoderKLQwenImage.__name__
    vae = (AutoencoderKLQwenImage if is_picture else AutoencoderKLWan).from_pretrained(folder / "vae")
    path.write_text(json.dumps(recommended | {"preview": fit(vae, not is_picture)}, indent=2) + "\n")


if __name__ == "__main__":
    main()
