"""Measure, from pixels alone, what a clip shows. It knows the palette and the three outlines, never the prompt.

What it cannot tell it calls `UNCLEAR`, which equals no attribute: a clip of mud scores nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from clips import COLOURS, DIRECTIONS, RADII_PX, SHAPES, SIDE_PX, Attributes, coverage, triangle_side_px

UNCLEAR = "unclear"

COLOUR_DISTANCE_MAX = 90.0  # RGB units of 0..255; corners of the palette's cube are 204 apart
CONTRAST_MIN = 80.0  # how far from the background's colour a pixel is surely not background
OUTLINE_OVERLAP_MIN = 0.6  # intersection over union with the best outline
RADIUS_RANGE_PX = (4.0, 20.0)
SHIFT_MIN_PX = 6.0  # over the clip; a true one moves 20
SHIFT_RATIO_MIN = 2.0  # of the greater axis to the lesser
SHAPE_PIXELS_MIN = 12

_PALETTE = {name: (np.array(value) + 1) * 127.5 for name, value in COLOURS.items()}
_SQUARE_TO_CIRCLE = 2 / float(np.sqrt(np.pi))  # radius of the circle that has the area of a square of half side 1
# Radii here are of the circle of equal area: halfway, in ratio, from the largest small shape to the smallest big one.
_SIZE_SPLIT_PX = float(np.sqrt(RADII_PX["big"] * RADII_PX["small"] * _SQUARE_TO_CIRCLE))


class Frame(NamedTuple):
    """One frame's shape: its colour (RGB, 0..255), how much of each pixel it covers [H, W], centroid (x, y), and
    the radius of the circle of equal area."""

    colour: NDArray[np.float64]
    alpha: NDArray[np.float64]
    centroid_px: NDArray[np.float64]
    radius_px: float


def judge(clip: NDArray[np.uint8]) -> Attributes:
    """What the clip [F, H, W, 3], H = W = 64, shows. A single picture is a clip of one frame, which has no direction.

    :raises ValueError: the clip has another shape or dtype.
    """
    if clip.ndim != 4 or clip.shape[1:] != (SIDE_PX, SIDE_PX, 3) or clip.dtype != np.uint8:
        raise ValueError(f"expected uint8 [F, {SIDE_PX}, {SIDE_PX}, 3], got {clip.dtype} {list(clip.shape)}")
    pixels = clip.astype(np.float64)
    back = _background(pixels)
    frames = [frame for frame in (_find_shape(picture, back) for picture in pixels) if frame is not None]
    background = _name_colour(back)
    if len(frames) < max(1, 2 * len(clip) // 3):
        return Attributes(UNCLEAR, UNCLEAR, UNCLEAR, UNCLEAR, background)
    return Attributes(
        size=_name_size(frames),
        colour=_name_colour(np.median([frame.colour for frame in frames], axis=0)),
        shape=_name_shape(frames),
        direction=_name_direction(frames),
        background=background,
    )


def _background(pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    """The border's median colour: the shape never covers most of the border."""
    edges = [pixels[:, :2], pixels[:, -2:], pixels[:, :, :2], pixels[:, :, -2:]]
    return np.asarray(np.median(np.concatenate([edge.reshape(-1, 3) for edge in edges]), axis=0))


def _find_shape(picture: NDArray[np.float64], back: NDArray[np.float64]) -> Frame | None:
    """The shape in one picture [H, W, 3], or None if nothing stands out."""
    difference = picture - back
    distance = np.linalg.norm(difference, axis=-1)
    sure = distance > max(CONTRAST_MIN, 0.6 * float(np.quantile(distance, 0.99)))
    if sure.sum() < SHAPE_PIXELS_MIN:
        return None
    colour = np.median(picture[sure], axis=0)
    span = colour - back
    # A pixel on the outline is a mix of the two colours: its share of the shape's is its place between them.
    alpha = np.clip(difference @ span / (span @ span), 0, 1)
    alpha[alpha < 0.15] = 0  # noise, over a whole picture, would add up to a shape's worth
    area = alpha.sum()
    axis = np.arange(SIDE_PX) + 0.5
    centroid = np.array([(alpha.sum(0) * axis).sum(), (alpha.sum(1) * axis).sum()]) / area
    return Frame(colour, alpha, centroid, float(np.sqrt(area / np.pi)))


def _name_colour(colour: NDArray[np.float64]) -> str:
    """The palette's nearest colour, unless none is near."""
    distances = {name: float(np.linalg.norm(colour - value)) for name, value in _PALETTE.items()}
    nearest = min(distances, key=lambda name: distances[name])
    return nearest if distances[nearest] < COLOUR_DISTANCE_MAX else UNCLEAR


def _name_size(frames: list[Frame]) -> str:
    radius = float(np.median([frame.radius_px for frame in frames]))
    if not RADIUS_RANGE_PX[0] < radius < RADIUS_RANGE_PX[1]:
        return UNCLEAR
    return "big" if radius > _SIZE_SPLIT_PX else "small"


def _name_shape(frames: list[Frame]) -> str:
    """The outline that, drawn at each frame's own centroid and area, overlaps best."""
    radii = torch.tensor([frame.radius_px for frame in frames], dtype=torch.float32)
    centroids = torch.tensor(np.array([frame.centroid_px for frame in frames]), dtype=torch.float32)
    alphas = torch.tensor(np.array([frame.alpha for frame in frames]), dtype=torch.float32)
    overlaps = {}
    for shape in SHAPES:
        centres = centroids.clone()
        if shape == "triangle":  # its centroid lies a sixth of its height below the middle of its box
            centres[:, 1] -= triangle_side_px(1.0) * radii * (3**0.5 / 2) / 6
        drawn = coverage(shape, radii / _SQUARE_TO_CIRCLE if shape == "square" else radii, centres)
        union = torch.maximum(drawn, alphas).sum((1, 2))
        overlaps[shape] = float((torch.minimum(drawn, alphas).sum((1, 2)) / union).median())
    best = max(overlaps, key=lambda shape: overlaps[shape])
    return best if overlaps[best] > OUTLINE_OVERLAP_MIN else UNCLEAR


def _name_direction(frames: list[Frame]) -> str:
    """The axis and sign of the centroid's straight-line fit over time."""
    if len(frames) < 2:
        return UNCLEAR
    centroids = np.array([frame.centroid_px for frame in frames])
    slope = np.polyfit(np.arange(len(frames)), centroids, 1)[0]
    shift = slope * (len(frames) - 1)
    greater, lesser = max(abs(shift)), min(abs(shift))
    if greater < SHIFT_MIN_PX or greater < SHIFT_RATIO_MIN * lesser:
        return UNCLEAR
    return max(DIRECTIONS, key=lambda name: float(shift @ np.array(DIRECTIONS[name])))
