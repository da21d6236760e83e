"""Measure how well a pipeline folder follows its prompts: `python examples/shapes/measure.py examples/shapes/model`.

Generates one clip a prompt with plain diffusers, fixed prompts and seeds, and lets `judge` say what each shows. With
`--pictures` the folder is one of a picture model; with `--first-frames` one of an image-to-video model, which also gets
a drawn first frame that shows what the prompt says, near the middle.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import DiffusionPipeline, ModularPipeline
from numpy.typing import NDArray
from PIL import Image

import clips
from judge import judge

Generate = Callable[[str, int], NDArray[np.uint8]]
PICTURE_FIELDS = tuple(field for field in clips.Attributes._fields if field != "direction")


class Measurement(NamedTuple):
    """How often each attribute was right, how often all were, and how long one clip took."""

    clip_count: int
    right: dict[str, int]
    all_right: int
    seconds_median: float
    first_frame_difference: float | None  # the worst clip's mean over the pixels, in 0..255; None where none was given

    def __str__(self) -> str:
        rows = [f"{field:<12}{count / self.clip_count:7.1%}" for field, count in self.right.items()]
        rows.append(f"{'all':<12}{self.all_right / self.clip_count:7.1%}")
        if self.first_frame_difference is not None:
            rows.append(f"first frames differ from the given ones by at most {self.first_frame_difference:.1f} of 255")
        return "\n".join([*rows, f"{self.clip_count} clips, median {self.seconds_median:.2f} s a clip"])


def choose_prompts(
    count: int, varied: bool, seed: int, wordings: clips.Wordings = clips.CLIP_WORDINGS
) -> list[tuple[str, clips.Attributes]]:
    """`count` prompts with what they ask for, no combination twice: the plain wording, or any full one."""
    rng = random.Random(seed)
    prompts = []
    for attributes in rng.sample(clips.ALL_ATTRIBUTES, count):
        prompt = wordings.full[0].format(**attributes._asdict())
        if varied:
            prompt = clips.phrase(attributes, rng, partial_share=0.0, wordings=wordings)
        prompts.append((prompt, attributes))
    return prompts


def draw_first_frame(attributes: clips.Attributes, seed: int) -> NDArray[np.uint8]:
    """A first frame [H, W, 3]: the shape that `attributes` say, near the middle."""
    start = clips.draw_start(random.Random(seed))
    return np.asarray(clips.to_uint8(clips.render_from(attributes, start, frames=1))[0])


def open_pipeline(folder: Path, arguments: argparse.Namespace) -> Generate:
    """A function from (prompt, seed) to a clip [F, H, W, 3] uint8; pictures are clips of one frame."""
    call: dict[str, Any] = {"height": clips.SIDE_PX, "width": clips.SIDE_PX, "num_inference_steps": arguments.steps}
    if not arguments.pictures:
        call["num_frames"] = clips.FRAMES
    if arguments.modular:
        pipeline = ModularPipeline.from_pretrained(str(folder))
        pipeline.load_components(torch_dtype=torch.float32)
        pipeline.update_components(guider=pipeline.guider.new(guidance_scale=arguments.guidance))
        call["output"] = "images" if arguments.pictures else "videos"
    else:
        pipeline = DiffusionPipeline.from_pretrained(str(folder), torch_dtype=torch.float32)
        call["true_cfg_scale" if arguments.pictures else "guidance_scale"] = arguments.guidance
        call["negative_prompt"] = ""
    pipeline.set_progress_bar_config(disable=True)

    def generate(prompt: str, seed: int) -> NDArray[np.uint8]:
        if arguments.first_frames:
            call["image"] = Image.fromarray(draw_first_frame(clips.parse(prompt), seed))
        result = pipeline(prompt=prompt, generator=torch.Generator().manual_seed(seed), output_type="np", **call)
        made = result if arguments.modular else result.images if arguments.pictures else result.frames
        clip = made if arguments.pictures else made[0]
        return np.asarray(np.rint(clip * 255), dtype=np.uint8)

    return generate


def measure(
    generate: Generate,
    prompts: list[tuple[str, clips.Attributes]],
    fields: tuple[str, ...],
    verbose: bool,
    first_frames: bool = False,
) -> Measurement:
    """Generate and judge a clip for each prompt, by these attributes; the prompt's place is its seed."""
    right = dict.fromkeys(fields, 0)
    all_right, seconds, differences = 0, [], []
    for seed, (prompt, wanted) in enumerate(prompts):
        started = time.perf_counter()
        clip = generate(prompt, seed)
        seconds.append(time.perf_counter() - started)
        if first_frames:
            differences.append(float(np.abs(clip[0].astype(float) - draw_first_frame(wanted, seed)).mean()))
        seen = judge(clip)
        wrong = [field for field in fields if getattr(seen, field) != getattr(wanted, field)]
        for field in fields:
            right[field] += field not in wrong
        all_right += not wrong
        if verbose and wrong:
            print(f"{prompt!r} (seed {seed}) shows: {' '.join(seen)}")
    return Measurement(len(prompts), right, all_right, statistics.median(seconds), max(differences, default=None))


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
    parser.add_argument("--pictures", action="store_true", help="the model makes pictures")
    parser.add_argument("--verbose", action="store_true", help="print each clip that is wrong")
    parser.add_argument("--first-frames", action="store_true", help="give each clip its first frame")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    generate = open_pipeline(arguments.folder, arguments)
    wordings = clips.PICTURE_WORDINGS if arguments.pictures else clips.CLIP_WORDINGS
    prompts = choose_prompts(arguments.count, arguments.varied, arguments.seed, wordings)
    fields = PICTURE_FIELDS if arguments.pictures else clips.Attributes._fields
    print(measure(generate, prompts, fields, arguments.verbose, arguments.first_frames))


if __name__ == "__main__":
    main()
