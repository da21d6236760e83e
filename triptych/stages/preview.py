"""Previews: a small picture of a job's latents while it is denoised. Pure functions; they draw no random number.

The colours come from the first of these that there is, see `preview_sources`: factors that the model publishes, a tiny
decoder beside the model, or the three directions in which the latents vary most.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Protocol

import PIL.Image
import torch

SIDE_PIXELS_MIN = 128
"""Previews are magnified by a whole factor until the shorter side has this many pixels: enough to see on a screen."""
PREVIEW_SIDE_PIXELS_MAX = 512
"""Longest side of a preview; larger latents are thinned out. Keeps a preview under about 0.8 MB."""


@dataclass(frozen=True)
class Factors:
    """Red, green and blue as weighted sums of a latent's channels, on the scale from -1 to 1 that VAEs decode to."""

    weights: torch.Tensor
    """`[C, 3]`, float32, for latents as the denoiser has them."""
    bias: torch.Tensor
    """`[3]`, float32."""

    @property
    def channel_count(self) -> int:
        """Channels of the latents that these factors are for."""
        return len(self.weights)

    def picture(self, plane_chw: torch.Tensor) -> torch.Tensor:
        """A plane of latents `[C, H, W]` as `[3, H, W]` in -1..1 and a bit beyond."""
        return torch.einsum("chw,cr->rhw", plane_chw, self.weights) + self.bias[:, None, None]


class Decoder(Protocol):
    """A tiny decoder of single pictures; `preview_sources.TinyDecoder` is diffusers'."""

    channel_count: int
    """Channels of the latents that it decodes."""
    pixels: int
    """Pixels of the picture that a latent covers, along one side."""

    parameter_bytes: int
    """What it holds."""

    def picture(self, plane_chw: torch.Tensor) -> torch.Tensor:
        """A plane of latents `[C, H, W]` as `[3, H * pixels, W * pixels]` in -1..1 and a bit beyond."""


@dataclass(frozen=True)
class Painter:
    """How a model's previews are drawn."""

    token_pixels: int = 0
    """Pixels of the picture that a token of the denoiser covers, along one side; 0 where that isn't known."""
    factors: Factors | None = None
    decoder: Decoder | None = None

    def png(self, latents: object, height: object, width: object) -> bytes:
        """A PNG of the first item's middle frame, or nothing where the latents' layout isn't known.

        Understood: `[B, C, H, W]`, `[B, C, T, H, W]`, and packed `[B, L, C]` where `height` and `width` are given,
        the picture's pixels.
        """
        if not isinstance(latents, torch.Tensor) or not latents.is_floating_point():
            return b""
        plane = _plane(latents.detach(), height, width, self.token_pixels)
        if plane is None or not bool(torch.isfinite(plane).all()):
            return b""
        return _png(self._colours(plane))

    def _colours(self, plane_chw: torch.Tensor) -> torch.Tensor:
        """uint8 `[H, W, 3]`."""
        if self.factors is not None and (plane := _spread(plane_chw, self.factors.channel_count)) is not None:
            return _bytes(self.factors.picture(_thinned(plane, PREVIEW_SIDE_PIXELS_MAX)))
        if self.decoder is not None and (plane := _spread(plane_chw, self.decoder.channel_count)) is not None:
            side_max = max(1, PREVIEW_SIDE_PIXELS_MAX // self.decoder.pixels)
            return _bytes(self.decoder.picture(_thinned(plane, side_max)))
        return _principal_colours(_thinned(plane_chw, PREVIEW_SIDE_PIXELS_MAX))


def _plane(latents: torch.Tensor, height: object, width: object, token_pixels: int) -> torch.Tensor | None:
    """The first item's middle frame as float32 `[C, H, W]` on the CPU."""
    if latents.ndim == 5:
        plane = latents[0, :, latents.shape[2] // 2]
    elif latents.ndim == 4:
        plane = latents[0]
    elif latents.ndim == 3:
        frames = _unpack(latents[0], height, width, token_pixels)
        if frames is None:
            return None
        plane = frames[len(frames) // 2].permute(2, 0, 1)
    else:
        return None
    return plane.to(device="cpu", dtype=torch.float32)


def _unpack(tokens_lc: torch.Tensor, height: object, width: object, token_pixels: int) -> torch.Tensor | None:
    """Packed tokens as frames `[T, H, W, C]`. Some pipelines pack two by two latents on top of the denoiser's patch."""
    if not (isinstance(height, int) and isinstance(width, int) and token_pixels):
        return None
    for side_pixels in (token_pixels, 2 * token_pixels):
        rows = height // side_pixels
        columns = width // side_pixels
        if rows * columns and len(tokens_lc) % (rows * columns) == 0:
            return tokens_lc.reshape(-1, rows, columns, tokens_lc.shape[1])
    return None


def _spread(plane_chw: torch.Tensor, channel_count: int) -> torch.Tensor | None:
    """The plane with `channel_count` channels `[C, H * n, W * n]`; None where it isn't n by n such latents a token.

    Every pipeline of diffusers packs channel by channel: a token's values are ordered by channel, row and column.
    """
    count, rest = divmod(len(plane_chw), channel_count)
    side = math.isqrt(count)
    if rest or not count or side * side != count:
        return None
    return torch.nn.functional.pixel_shuffle(plane_chw, side)


def _thinned(plane_chw: torch.Tensor, side_max: int) -> torch.Tensor:
    """Every nth row and column, so that no side is longer than `side_max`."""
    stride = math.ceil(max(plane_chw.shape[1:]) / side_max)
    return plane_chw[:, ::stride, ::stride]


def _bytes(picture_chw: torch.Tensor) -> torch.Tensor:
    """-1..1 `[3, H, W]` as uint8 `[H, W, 3]`."""
    return ((picture_chw + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous()


def _principal_colours(plane_chw: torch.Tensor) -> torch.Tensor:
    """Projects channels onto their first three principal directions, as uint8 `[H, W, 3]`."""
    pixels_nc = plane_chw.flatten(1).T
    pixels_nc = pixels_nc - pixels_nc.mean(dim=0)
    _, directions = torch.linalg.eigh(pixels_nc.T @ pixels_nc)
    axes = directions[:, -3:].flip(1)
    axes = axes * torch.where(axes.sum(dim=0) < 0, -1.0, 1.0)  # an eigenvector's sign is arbitrary: keep colours steady
    colours = pixels_nc @ axes
    colours = torch.nn.functional.pad(colours, (0, 3 - colours.shape[1]))
    spread = 2 * colours.std(dim=0, correction=0).clamp_min(1e-6)
    scaled = ((colours / spread + 1) * 127.5).clamp(0, 255).to(torch.uint8)
    return scaled.reshape(*plane_chw.shape[1:], 3)


def _png(picture_hwc: torch.Tensor) -> bytes:
    image = PIL.Image.fromarray(picture_hwc.numpy(), mode="RGB")
    factor = max(1, math.ceil(SIDE_PIXELS_MIN / min(image.size)))
    image = image.resize((image.width * factor, image.height * factor), PIL.Image.Resampling.NEAREST)
    file = io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()
