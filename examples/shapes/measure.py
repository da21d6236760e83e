"""Measure how well a pipeline folder follows its prompts: `python examples/shapes/measure.py examples/shapes/model`.

Generates one clip a prompt with plain diffusers, fixed prompts and seeds, and lets `judge` say what each shows.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import ModularPipeline, WanPipeline
from numpy.typing import NDArray

import clips
from judge import judge

Generate = Callable[[str, int], NDArray[np.uint8]]


class Measurement(NamedTuple):
    """How often each attribute was right, how often all were, and how long one clip took."""

    clip_count: int
    right: Counter[str]
    all_right: int
    seconds_median: float

    def __str__(self) -> str:
        rows = [f"{field:<12}{self.right[field] / self.clip_count:7.1%}" for field in clips.Attributes._fields]
        rows.append(f"{'all five':<12}{self.all_right / self.clip_count:7.1%}")
        return "\n".join([*rows, f"{self.clip_count} clips, median {self.seconds_median:.2f} s a clip"])


def choose_prompts(count: int, varied: bool, seed: int) -> list[tuple[str, clips.Attributes]]:
    """`count` prompts with what they ask for, no combination twice: the plain wording, or any full one."""
    rng = random.Random(seed)
    prompts = []
    for attributes in rng.sample(clips.ALL_ATTRIBUTES, count):
        prompt = attributes.prompt
        if varied:
            prompt = clips.phrase(attributes, rng, partial_share=0.0)
        prompts.append((prompt, attributes))
    return prompts


def open_pipeline(folder: Path, modular: bool, steps: int, guidance: float) -> Generate:
    """A function from (prompt, seed) to a clip [F, H, W, 3] uint8."""
    call: dict[str, Any] = {"height": clips.SIDE_PX, "width": clips.SIDE_PX, "num_frames": clips.FRAMES}
    call["num_inference_steps"] = steps
    if modular:
        pipeline = ModularPipeline.from_pretrained(str(folder))
        pipeline.load_components(torch_dtype=torch.float32)
        pipeline.update_components(guider=pipeline.guider.new(guidance_scale=guidance))
        call["output"] = "videos"
    else:
        pipeline = WanPipeline.from_pretrained(str(folder), torch_dtype=torch.float32)
        call["guidance_scale"] = guidance
    pipeline.set_progress_bar_config(disable=True)

    def generate(prompt: str, seed: int) -> NDArray[np.uint8]:
        result = pipeline(prompt=prompt, generator=torch.Generator().manual_seed(seed), output_type="np", **call)
        video = (result if modular else result.frames)[0]
        return np.asarray(np.rint(video * 255), dtype=np.uint8)

    return generate


def measure(generate: Generate, prompts: list[tuple[str, clips.Attributes]], verbose: bool) -> Measurement:
    """Generate and judge a clip for each prompt; the prompt's place is its seed."""
    right: Counter[str] = Counter()
    all_right, seconds = 0, []
    for seed, (prompt, wanted) in enumerate(prompts):
        started = time.perf_counter()
        clip = generate(prompt, seed)
        seconds.append(time.perf_counter() - started)
        seen = judge(clip)
        right.update(field for field in wanted._fields if getattr(seen, field) == getattr(wanted, field))
        all_right += seen == wanted
        if verbose and seen != wanted:
            print(f"{prompt!r} (seed {seed}) shows: {' '.join(seen)}")
    return Measurement(len(prompts), right, all_right, statistics.median(seconds))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=128)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--guidance", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0, help="chooses the prompts")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--varied", action="store_true", help="other wordings than the plain one")
    parser.add_argument("--modular", action="store_true", help="through ModularPipeline instead of WanPipeline")
    parser.add_argument("--verbose", action="store_true", help="print each clip that is wrong")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    generate = open_pipeline(arguments.folder, arguments.modular, arguments.steps, arguments.guidance)
    prompts = choose_prompts(arguments.count, arguments.varied, arguments.seed)
    print(measure(generate, prompts, arguments.verbose))


if __name__ == "__main__":
    main()
