"""Makes a small adapter (LoRA) for a model's denoiser, of random numbers: enough to try a fleet's adapters with.

    python examples/adapter.py examples/shapes/model my-adapters/wild.safetensors

Real ones are trained. What matters to a fleet is the form: two matrices for each layer, under diffusers' names.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import ModularPipeline
from safetensors.torch import save_file

RANK = 2
STRENGTH = 0.2


def main() -> None:
    """Write the file that the command line names."""
    parser = argparse.ArgumentParser(description="Make an adapter of random numbers.")
    parser.add_argument("model", help="folder of a model")
    parser.add_argument("file", type=Path, help="what to write, NAME.safetensors")
    args = parser.parse_args()
    pipeline = ModularPipeline.from_pretrained(args.model)
    pipeline.load_components(names="transformer")
    drawn = torch.Generator().manual_seed(0)
    tensors = {}
    for name, module in pipeline.transformer.named_modules():
        if isinstance(module, torch.nn.Linear) and "attn" in name:
            stem = f"transformer.{name}"
            tensors[f"{stem}.lora_A.weight"] = torch.randn(RANK, module.in_features, generator=drawn)
            tensors[f"{stem}.lora_B.weight"] = STRENGTH * torch.randn(module.out_features, RANK, generator=drawn)
    args.file.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, args.file)


if __name__ == "__main__":
    main()
