"""The synthetic data: one coloured shape moving over a plain background, and the prompts that describe it.

A clip is fully described by `Attributes`; where exactly the shape starts is the only thing left to chance. Everything
here is drawn by arithmetic from a seed: no file is read and nothing is downloaded.
"""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Sequence
from typing import NamedTuple

import torch

FRAMES = 9  # 1 + 2 * 4: three latent frames under Wan's temporal factor of 4
SIDE_PX = 64
FPS = 8
SPEED_PX = 2.5  # a frame; 20 px over the clip, which keeps the widest shape inside the picture

# Corners of the RGB cube, pulled in to 0.8 of the range [-1, 1], so that the decoder need not saturate to be right.
LEVEL = 0.8
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (LEVEL, -LEVEL, -LEVEL),
    "green": (-LEVEL, LEVEL, -LEVEL),
    "blue": (-LEVEL, -LEVEL, LEVEL),
    "yellow": (LEVEL, LEVEL, -LEVEL),
    "cyan": (-LEVEL, LEVEL, LEVEL),
    "magenta": (LEVEL, -LEVEL, LEVEL),
    "white": (LEVEL, LEVEL, LEVEL),
    "black": (-LEVEL, -LEVEL, -LEVEL),
}
# The circle's radius, half the square's side; the triangle has the circle's area.
RADII_PX: dict[str, float] = {"big": 15.0, "small": 9.5}
SHAPES = ("circle", "square", "triangle")
DIRECTIONS: dict[str, tuple[float, float]] = {
    "left": (-1.0, 0.0),
    "right": (1.0, 0.0),
    "up": (0.0, -1.0),
    "down": (0.0, 1.0),
}
JITTER_ALONG_PX = 1.5
JITTER_ACROSS_PX = 3.0
PICTURE_JITTER_PX = 1.0
START_JITTER_PX = 4.0  # of a first frame's shape, around the middle

SYNONYMS: dict[str, tuple[str, ...]] = {
    "big": ("big", "large", "huge"),
    "small": ("small", "little", "tiny"),
    "left": ("left", "to the left", "leftwards"),
    "right": ("right", "to the right", "rightwards"),
    "up": ("up", "upwards", "upward"),
    "down": ("down", "downwards", "downward"),
    "circle": ("circle", "disc", "ball"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "magenta": ("magenta", "pink"),
    "cyan": ("cyan", "turquoise"),
}
TEMPLATES = (
    "a {size} {colour} {shape} moving {direction} on a {background} background",
    "{size} {colour} {shape} moving {direction} on {background}",
    "a {size} {colour} {shape} moves {direction} over a {background} background",
    "on a {background} background, a {size} {colour} {shape} is moving {direction}",
    "a {colour} {shape}, {size}, going {direction}, {background} background",
    "a video of a {size} {colour} {shape} going {direction} against a {background} background",
    "{direction} moves a {size} {shape} that is {colour}, on {background}",
)
# What the prompt leaves out, the model is free to choose.
PARTIAL_TEMPLATES = (
    "a {colour} {shape} moving {direction} on a {background} background",
    "a {size} {colour} {shape} on a {background} background",
    "a {size} {colour} {shape} moving {direction}",
    "a {colour} {shape}",
    "a {shape} moving {direction}",
)


# A picture's wordings name no direction.
PICTURE_TEMPLATES = (
    "a {size} {colour} {shape} on a {background} background",
    "{size} {colour} {shape} on {background}",
    "a {size} {colour} {shape} over a {background} background",
    "on a {background} background, a {size} {colour} {shape}",
    "a {colour} {shape}, {size}, {background} background",
    "a picture of a {size} {colour} {shape} against a {background} background",
    "a {size} {shape} that is {colour}, on {background}",
)
PARTIAL_PICTURE_TEMPLATES = (
    "a {colour} {shape} on a {background} background",
    "a {size} {colour} {shape}",
    "a {colour} {shape}",
    "a {shape}",
)


class Wordings(NamedTuple):
    """Ways to ask: the `full` name every attribute, the plainest first; the `partial` leave the model some choice."""

    full: tuple[str, ...]
    partial: tuple[str, ...]


CLIP_WORDINGS = Wordings(TEMPLATES, PARTIAL_TEMPLATES)
PICTURE_WORDINGS = Wordings(PICTURE_TEMPLATES, PARTIAL_PICTURE_TEMPLATES)


class Attributes(NamedTuple):
    """What a clip shows; every field is one of the words above."""

    size: str
    colour: str
    shape: str
    direction: str
    background: str

    @property
    def prompt(self) -> str:
        """The plainest wording."""
        return TEMPLATES[0].format(**self._asdict())


ALL_ATTRIBUTES: tuple[Attributes, ...] = tuple(
    Attributes(*combination)
    for combination in itertools.product(RADII_PX, COLOURS, SHAPES, DIRECTIONS, COLOURS)
    if combination[1] != combination[4]
)


def phrase(
    attributes: Attributes, rng: random.Random, partial_share: float = 0.05, wordings: Wordings = CLIP_WORDINGS
) -> str:
    """A random wording of `attributes`: word order, synonyms, capitals, and for `partial_share` something left out."""
    template = wordings.full[0] if rng.random() < 0.3 else rng.choice(wordings.full)
    if rng.random() < partial_share:
        template = rng.choice(wordings.partial)
    words = {
        field: word if rng.random() < 0.6 else rng.choice(SYNONYMS.get(word, (word,)))
        for field, word in attributes._asdict().items()
    }
    prompt = template.format(**words)
    if rng.random() < 0.3:
        prompt = prompt[0].upper() + prompt[1:]
    return prompt + "." if rng.random() < 0.2 else prompt


def _find(prompt: str, words: Sequence[str]) -> list[tuple[int, str]]:
    """(position, word) of every one of `words`, or a synonym of it, that stands in `prompt`, in order."""
    return sorted(
        (match.start(), word)
        for word in words
        for match in re.finditer(rf"\b({'|'.join(SYNONYMS.get(word, (word,)))})\b", prompt)
    )


def read(prompt: str) -> tuple[str | None, ...]:
    """What the prompt names of each attribute, in the order of `Attributes`; None where it names nothing."""
    text = prompt.lower()
    colours = _find(text, list(COLOURS))
    grounds = [pair for pair in colours if re.search(r"\b(on|over|against)( an?)? $", text[: pair[0]])]
    grounds += [pair for pair in colours if re.match(r"\w+ background\b", text[pair[0] :])]
    colours = [pair for pair in colours if pair not in grounds]
    found = [_find(text, list(RADII_PX)), colours, _find(text, SHAPES), _find(text, list(DIRECTIONS)), grounds]
    return tuple(pairs[0][1] if pairs else None for pairs in found)


def parse(prompt: str) -> Attributes:
    """The attributes that a full prompt names.

    :raises ValueError: an attribute is missing.
    """
    said = read(prompt)
    missing = [field for field, word in zip(Attributes._fields, said, strict=True) if word is None]
    if missing:
        raise ValueError(f"the prompt names no {', '.join(missing)}: {prompt!r}")
    return Attributes(*(word for word in said if word is not None))


def triangle_side_px(radius_px: float) -> float:
    """Side of the equilateral triangle that has the area of a circle of `radius_px`."""
    return 2 * radius_px * math.sqrt(math.pi / math.sqrt(3))


def coverage(shape: str, radius_px: torch.Tensor, centres_px: torch.Tensor, side_px: int = SIDE_PX) -> torch.Tensor:
    """How much of each pixel the shape covers, anti-aliased by its signed distance.

    `radius_px` [N]; `centres_px` [N, 2] as (x, y) of the bounding box's centre. Returns [N, side_px, side_px] in 0..1.
    """
    axis = torch.arange(side_px, dtype=torch.float32) + 0.5
    x = axis[None, None, :] - centres_px[:, 0, None, None]
    y = axis[None, :, None] - centres_px[:, 1, None, None]
    radius = radius_px[:, None, None]
    if shape == "circle":
        distance = torch.sqrt(x**2 + y**2) - radius
    elif shape == "square":
        distance = torch.maximum(x.abs(), y.abs()) - radius
    else:
        half = triangle_side_px(1.0) * radius / 2
        half_height = half * math.sqrt(3) / 2
        slanted = x.abs() * math.sqrt(3) / 2 - (y + half_height) / 2
        distance = torch.maximum(slanted, y - half_height)
    return (0.5 - distance).clamp(0, 1)


def render(attributes: Attributes, rng: random.Random, frames: int = FRAMES) -> torch.Tensor:
    """One clip [3, frames, SIDE_PX, SIDE_PX], float32 in [-1, 1]; `rng` chooses where the shape starts."""
    direction = torch.tensor(DIRECTIONS[attributes.direction])
    room = SIDE_PX / 2 - (frames - 1) / 2 * SPEED_PX - triangle_side_px(RADII_PX[attributes.size]) / 2
    room = max(0.0, min(JITTER_ALONG_PX, room))  # even the widest shape stays in the picture
    along = rng.uniform(-room, room)
    across = rng.uniform(-JITTER_ACROSS_PX, JITTER_ACROSS_PX)
    steps = (torch.arange(frames) - (frames - 1) / 2) * SPEED_PX
    centres = SIDE_PX / 2 + (steps + along)[:, None] * direction + across * direction.flip(0)
    return _draw(attributes, centres)


def draw_picture(attributes: Attributes, rng: random.Random) -> torch.Tensor:
    """One picture as a clip of one frame [3, 1, SIDE_PX, SIDE_PX], the shape near the middle; see `render`."""
    centre = torch.tensor([[SIDE_PX / 2 + rng.uniform(-PICTURE_JITTER_PX, PICTURE_JITTER_PX) for _ in range(2)]])
    return _draw(attributes, centre)


def draw_start(rng: random.Random) -> torch.Tensor:
    """Where a first frame's shape stands: a point (x, y) near the middle, which tells no direction."""
    return torch.tensor([SIDE_PX / 2 + rng.uniform(-START_JITTER_PX, START_JITTER_PX) for _ in range(2)])


def render_from(attributes: Attributes, start_px: torch.Tensor, frames: int = FRAMES) -> torch.Tensor:
    """One clip [3, frames, SIDE_PX, SIDE_PX], float32 in [-1, 1], whose shape starts at `start_px` (x, y).

    Big shapes end a few pixels beyond the picture's edge.
    """
    moved = (torch.arange(frames) * SPEED_PX)[:, None] * torch.tensor(DIRECTIONS[attributes.direction])
    return _draw(attributes, start_px + moved)


def _draw(attributes: Attributes, centres_px: torch.Tensor) -> torch.Tensor:
    """A frame for each of `centres_px` [F, 2]: [3, F, SIDE_PX, SIDE_PX], float32 in [-1, 1]."""
    radius = torch.full((len(centres_px),), RADII_PX[attributes.size])
    alpha = coverage(attributes.shape, radius, centres_px)[None]
    front = torch.tensor(COLOURS[attributes.colour])[:, None, None, None]
    back = torch.tensor(COLOURS[attributes.background])[:, None, None, None]
    return back + alpha * (front - back)


def to_uint8(clip: torch.Tensor) -> torch.Tensor:
    """[3, F, H, W] in [-1, 1] to [F, H, W, 3] in 0..255, as a pipeline would return it."""
    return ((clip.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 3, 0)
