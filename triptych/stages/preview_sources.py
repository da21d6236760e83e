"""What a model brings for its previews: factors from latents to colours, or a tiny decoder.

Factors stand in the folder's `triptych.json`, `{"preview": {"rgb_factors": [[r, g, b], ...], "rgb_bias": [r, g, b]}}`
with a row for each channel, or under the same two names in the VAE's own configuration. The decoder is a folder
`preview_decoder` beside the model's components: diffusers' `AutoencoderTiny`.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from triptych.errors import ModelInvalid
from triptych.stages.components import check_component
from triptych.stages.device import undisturbed
from triptych.stages.folder import RECOMMENDATIONS_NAME, place_of, read_json, read_preview
from triptych.stages.library import AutoencoderTiny, ComponentSpec, ConfigMixin
from triptych.stages.library_errors import loading
from triptych.stages.pipelines import comes_from_files, load_model
from triptych.stages.preview import Factors, Painter
from triptych.stages.whole import Whole

log = logging.getLogger(__name__)

_FACTOR_MAX = 1e6
"""Far more than any factor; it keeps sums finite."""
DECODER_NAME = "preview_decoder"
"""Folder of the tiny decoder, inside the model's."""
_FACTORS, _BIAS = "rgb_factors", "rgb_bias"
_CHANNELS = ("z_dim", "latent_channels")
"""What VAEs' configurations call the number of a latent's channels."""


def read_factors(whole: Whole) -> Factors | None:
    """The model's factors: its folder's own, or else its VAE's; None where it has none.

    Raises `ModelInvalid` where those of the folder can't be used. Those of a VAE's configuration, which whoever serves
    the model didn't write, then count as none.
    """
    config = _vae_config(whole)
    channel_count = _channel_count(config)
    if (own := read_preview(Path(whole.model))) is not None:
        return _parse(own, channel_count, f"{Path(whole.model, RECOMMENDATIONS_NAME)} can't be used: preview.")
    if _FACTORS not in config:
        return None
    try:
        return _parse(config, channel_count, "the VAE's ")
    except ModelInvalid as error:
        log.warning("previews do without the VAE's factors: %s", error)
        return None


class TinyDecoder:
    """`AutoencoderTiny` for one plane of latents at a time, in float32: it has a few megabytes."""

    def __init__(self, model: AutoencoderTiny) -> None:
        config = model.config
        self._model = model
        self.channel_count = int(config.latent_channels)
        self.pixels = int(config.upsampling_scaling_factor ** (len(config.num_decoder_blocks) - 1))
        self.parameter_bytes = sum(one.nbytes for one in model.parameters())

    @torch.no_grad()
    def picture(self, plane_chw: torch.Tensor) -> torch.Tensor:
        """A plane of latents `[C, H, W]`, as the denoiser has them, as `[3, H * pixels, W * pixels]` on the CPU."""
        config = self._model.config
        latents = plane_chw[None].to(self._model.device) / config.scaling_factor + config.shift_factor
        picture: torch.Tensor = self._model.decode(latents).sample[0]
        return picture.to("cpu", torch.float32)


def open_painter(whole: Whole, token_pixels: int, device: torch.device) -> Painter:
    """How the model's previews are drawn; the decoder is loaded where there are no factors, which come first.

    `token_pixels` are the pixels that a token of the denoiser covers. Raises as `read_factors` and `load_decoder` do.
    """
    factors = read_factors(whole)
    return Painter(token_pixels, factors, load_decoder(whole, device) if factors is None else None)


def load_decoder(whole: Whole, device: torch.device) -> TinyDecoder | None:
    """The tiny decoder of the model's folder, on `device`; None where there is none.

    Raises `ModelInvalid` where it isn't whole, isn't an `AutoencoderTiny`, or decodes other latents than the model's.
    """
    folder = Path(whole.model, DECODER_NAME)
    if not folder.is_dir():
        return None
    spec = ComponentSpec(
        DECODER_NAME, AutoencoderTiny, pretrained_model_name_or_path=whole.model, subfolder=DECODER_NAME
    )
    check_component(spec, weights=True)
    config = read_json(folder / "config.json")
    kind = config.get("_class_name") if isinstance(config, dict) else None
    if kind != AutoencoderTiny.__name__:
        raise ModelInvalid(f"{folder / 'config.json'} names the class {kind!r}; accepted: {AutoencoderTiny.__name__!r}")
    with loading(place_of(spec)), undisturbed():
        model = load_model(spec, torch.float32).to(device).eval()
    # Half of it encodes, which no preview does.
    del model.encoder
    decoder = TinyDecoder(model)
    expected = _channel_count(_vae_config(whole)) or decoder.channel_count
    if decoder.channel_count != expected or model.config.out_channels != 3:
        raise ModelInvalid(
            f"{str(folder)!r} decodes latents of {decoder.channel_count} channels to {model.config.out_channels}; "
            f"accepted: from {expected} to 3"
        )
    return decoder


def _vae_config(whole: Whole) -> dict[str, Any]:
    """The configuration of the model's VAE; empty where it has none, or none of diffusers."""
    spec = whole.pipeline._component_specs.get("vae")
    if spec is None or not comes_from_files(spec) or not issubclass(spec.type_hint, ConfigMixin):
        return {}
    where = {"subfolder": spec.subfolder or "", "revision": spec.revision}
    with loading(f"the configuration of {place_of(spec)}"):
        return dict(spec.type_hint.load_config(spec.pretrained_model_name_or_path, **where))


def _channel_count(config: dict[str, Any]) -> int:
    """Channels of the VAE's latents; 0 where its configuration doesn't say."""
    return next((config[name] for name in _CHANNELS if isinstance(config.get(name), int)), 0)


def _parse(content: dict[str, Any], channel_count: int, where: str) -> Factors:
    rows = content.get(_FACTORS)
    if not isinstance(rows, list) or not rows or not all(_is_colour(row) for row in rows):
        raise ModelInvalid(
            f"{where}{_FACTORS} must be a list with three numbers of at most {_FACTOR_MAX:g} for each channel"
        )
    if channel_count and len(rows) != channel_count:
        raise ModelInvalid(f"{where}{_FACTORS} has {len(rows)} rows; accepted: {channel_count}, one for each channel")
    bias = content.get(_BIAS, [0, 0, 0])
    if not _is_colour(bias):
        raise ModelInvalid(f"{where}{_BIAS} must be three numbers of at most {_FACTOR_MAX:g}")
    return Factors(torch.tensor(rows, dtype=torch.float32), torch.tensor(bias, dtype=torch.float32))


def _is_colour(row: object) -> bool:
    if not isinstance(row, list) or len(row) != 3:
        return False
    return all(type(part) in (int, float) and abs(part) <= _FACTOR_MAX for part in row)
