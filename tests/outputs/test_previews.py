"""Previews look like what is made, and cost a job nothing: factors, a tiny decoder, or principal directions."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import AutoencoderTiny
from hypothesis import given
from hypothesis import strategies as st

from tests.stages.conftest import run_stages
from triptych.errors import ModelInvalid
from triptych.model.inputs import resolve
from triptych.roles import ROLES
from triptych.stages import Step
from triptych.stages.describe import describe
from triptych.stages.preview import PREVIEW_SIDE_PIXELS_MAX, Factors, Painter
from triptych.stages.preview_sources import TinyDecoder, read_factors
from triptych.stages.stage import Stage
from triptych.stages.whole import Whole
from triptych.v1.dispatch_pb2 import ROLE_DECODER, ROLE_TRANSFORMER
from triptych.v1.job_pb2 import GenerationRequest

SHAPES = Path(__file__).parents[2] / "examples" / "shapes"


def pixels_of(png: bytes) -> np.ndarray[Any, Any]:
    """`[H, W, 3]`."""
    return np.asarray(PIL.Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def colour_of(pixels: np.ndarray[Any, Any]) -> str:
    """Which of red, green and blue an area `[..., 3]` has most of, by a clear margin."""
    mean = pixels.reshape(-1, 3).mean(0)
    assert np.diff(np.sort(mean))[-1] > 20, f"no clear colour: {mean}"
    return ("red", "green", "blue")[int(mean.argmax())]


@pytest.mark.parametrize("name", ["model", "picture_model"])
def test_a_red_circle_on_blue_is_red_in_the_middle_and_blue_around(name: str) -> None:
    whole = Whole.open(str(SHAPES / name))
    prompt = "a big red circle moving right on a blue background"
    values = resolve(GenerationRequest(prompt=prompt, seed=1, preview_every_steps=4), describe(whole)).for_encoder()
    steps: list[Step] = []
    run_stages([Stage.load(whole, role) for role in ROLES if role != ROLE_DECODER], values, steps)
    pixels = pixels_of(steps[-1].preview_png)
    side = len(pixels)
    assert pixels.shape == (128, 128, 3), "64 pixels are 8 latents, magnified 16 times"
    assert colour_of(pixels[7 * side // 16 : 9 * side // 16, 7 * side // 16 : 9 * side // 16]) == "red"
    assert colour_of(pixels[: side // 8, : side // 8]) == "blue"
    assert colour_of(pixels[-side // 8 :, -side // 8 :]) == "blue"


def colours(values: object, **more: object) -> str:
    return json.dumps({"preview": {"rgb_factors": values, **more}})


WHITE = [[1, 1, 1]]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (colours(WHITE * 7), "preview.rgb_factors has 7 rows; accepted: 4, one for each channel"),
        (colours([[1, 1]] * 4), "preview.rgb_factors must be a list with three numbers"),
        (colours([[1, 1, float("nan")]] * 4), "preview.rgb_factors must be a list with three numbers"),
        (colours([[1, 1, float("inf")]] * 4), "preview.rgb_factors must be a list with three numbers"),
        (colours([[1, 1, 10**400]] * 4), "preview.rgb_factors must be a list with three numbers"),
        (colours([[1, 1, "red"]] * 4), "preview.rgb_factors must be a list with three numbers"),
        (colours([[1, 1, True]] * 4), "preview.rgb_factors must be a list with three numbers"),
        (colours(None), "preview.rgb_factors must be a list with three numbers"),
        (colours(WHITE * 4, rgb_bias=[0, 0]), "preview.rgb_bias must be three numbers"),
        (colours(WHITE * 4, bias=[0, 0, 0]), "'preview' must be an object; known keys: 'rgb_factors', 'rgb_bias'"),
        ('{"preview": [1]}', "'preview' must be an object"),
    ],
)
def test_factors_that_cannot_be_used_stop_the_start(
    content: str, sentence: str, folder_of: Callable[[str], str], tmp_path: Path
) -> None:
    folder = shutil.copytree(folder_of("wan_t2v"), tmp_path / "model")
    (folder / "triptych.json").write_text(content)
    with pytest.raises(ModelInvalid, match=re.escape(sentence)) as caught:
        describe(Whole.open(str(folder)))
    assert str(folder / "triptych.json") in str(caught.value)


def test_factors_in_the_vaes_own_configuration_count_after_the_folders(
    folder_of: Callable[[str], str], tmp_path: Path
) -> None:
    folder = shutil.copytree(folder_of("wan_t2v"), tmp_path / "model")
    path = folder / "vae" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"rgb_factors": [[0.5, 0, 0]] * 4}))
    factors = read_factors(Whole.open(str(folder)))
    assert factors is not None
    assert factors.weights.tolist() == [[0.5, 0, 0]] * 4
    (folder / "triptych.json").write_text(colours([[0, 0.25, 0]] * 4))
    factors = read_factors(Whole.open(str(folder)))
    assert factors is not None
    assert factors.weights.tolist() == [[0, 0.25, 0]] * 4
    (folder / "triptych.json").unlink()
    path.write_text(json.dumps(config | {"rgb_factors": "in another form"}))
    assert read_factors(Whole.open(str(folder))) is None


def tiny_decoder(folder: Path, channel_count: int) -> AutoencoderTiny:
    torch.manual_seed(5)
    made = AutoencoderTiny(
        latent_channels=channel_count,
        encoder_block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        num_encoder_blocks=(1, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 1),
    )
    made.save_pretrained(folder)
    return made.eval()


@pytest.mark.parametrize("name", ["sd3", "qwen_image"])
def test_a_tiny_decoder_in_the_folder_draws_them_and_changes_no_bit(name: str, model: Any, tmp_path: Path) -> None:
    """Latents of pictures as they are (sd3), and packed (qwen_image)."""
    tiny = model(name)
    folder = shutil.copytree(tiny.folder, tmp_path / "model")
    made = tiny_decoder(folder / "preview_decoder", tiny.whole.inspection().vae.config.get("latent_channels") or 4)
    before = torch.get_rng_state()
    stage = Stage.load(Whole.open(str(folder)), ROLE_TRANSFORMER)
    assert torch.equal(before, torch.get_rng_state()), "loading draws nothing"
    request = GenerationRequest(prompt="a", height=32, width=64, seed=3, num_inference_steps=2)
    plain = tiny.stages[0].run(resolve(request, tiny.description).for_encoder(), print, lambda: False)
    request.preview_every_steps = 2
    watched = tiny.stages[0].run(resolve(request, tiny.description).for_encoder(), print, lambda: False)
    steps: list[Step] = []
    latents = stage.run(watched, steps.append, lambda: False)
    expected = tiny.stages[1].run(plain, lambda _step: None, lambda: False)
    assert torch.equal(latents["latents"], expected["latents"])
    assert torch.equal(latents["triptych.rng"]["cpu"], expected["triptych.rng"]["cpu"])
    assert [bool(step.preview_png) for step in steps] == [False, True]
    assert stage.component_bytes["preview_decoder"] == sum(one.nbytes for one in made.decoder.parameters())
    plane = latents["latents"]
    if plane.ndim == 3:
        plane = plane.unflatten(1, (2, 4)).movedim(3, 1)
        plane = torch.nn.functional.pixel_shuffle(plane, 2)
    elif plane.ndim == 5:
        plane = plane[:, :, 0]
    assert isinstance(plane, torch.Tensor)
    with torch.no_grad():
        picture = made.decode(plane.float()).sample[0].permute(1, 2, 0)
    decoded = ((picture + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()
    pixels = pixels_of(steps[-1].preview_png)
    factor = len(pixels) // len(decoded)
    assert np.array_equal(pixels[::factor, ::factor], decoded), "magnified by a whole factor"
    assert decoded.std() > 0


@pytest.mark.parametrize(
    ("kind", "channel_count", "sentence"),
    [
        ("AutoencoderTiny", 5, "decodes latents of 5 channels to 3; accepted: from 4 to 3"),
        ("AutoencoderKL", 4, "names the class 'AutoencoderKL'; accepted: 'AutoencoderTiny'"),
        ("", 4, "component 'preview_decoder' has no weights"),
    ],
)
def test_a_decoder_that_cannot_be_used_stops_the_start(
    kind: str, channel_count: int, sentence: str, folder_of: Callable[[str], str], tmp_path: Path
) -> None:
    folder = shutil.copytree(folder_of("wan_t2v"), tmp_path / "model")
    place = folder / "preview_decoder"
    tiny_decoder(place, channel_count)
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(config | {"_class_name": kind or "AutoencoderTiny"}))
    if not kind:
        (place / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ModelInvalid, match=sentence):
        Stage.load(Whole.open(str(folder)), ROLE_TRANSFORMER)


def test_factors_come_before_the_decoder(folder_of: Callable[[str], str], tmp_path: Path) -> None:
    folder = shutil.copytree(folder_of("wan_t2v"), tmp_path / "model")
    tiny_decoder(folder / "preview_decoder", 4)
    (folder / "triptych.json").write_text(colours(WHITE * 4))
    stage = Stage.load(Whole.open(str(folder)), ROLE_TRANSFORMER)
    assert "preview_decoder" not in stage.component_bytes


def test_without_either_the_directions_of_most_variance_are_drawn(model: Any) -> None:
    assert read_factors(model("wan_t2v").whole) is None
    latents = torch.zeros(1, 4, 8, 8)
    latents[0, 2, :, 4:] = 1.0
    pixels = pixels_of(Painter().png(latents, 64, 64))
    assert (pixels[:, :64] != pixels[:, 64:]).any()
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) == 2


RED_AND_GREEN = Factors(torch.tensor([[1.0, 0, 0], [0, 1, 0]]), torch.tensor([0.0, 0, -1]))


@given(
    st.sampled_from(["bchw", "bcthw", "packed", "packed2"]), st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**31)
)
def test_every_layout_of_the_same_latents_gives_the_same_preview(
    layout: str, rows: int, columns: int, seed: int
) -> None:
    """Packed ones channel by channel, two by two, as diffusers' pipelines have them."""
    plane = torch.randn(2, 2 * rows, 2 * columns, generator=torch.Generator().manual_seed(seed))
    tokens = plane.reshape(2, rows, 2, columns, 2).permute(1, 3, 0, 2, 4).reshape(1, rows * columns, 8)
    made = {"bchw": plane[None], "bcthw": torch.stack([plane * 0, plane, plane * 0], 1)[None]}.get(layout, tokens)
    token_pixels = 8 if layout == "packed on a patch" else 16
    expected = Painter(16, RED_AND_GREEN).png(plane[None], None, None)
    found = pixels_of(Painter(token_pixels, RED_AND_GREEN).png(made, 16 * rows, 16 * columns))
    assert np.array_equal(found, pixels_of(expected))
    assert (found[..., 2] == 0).all()


def test_what_does_not_fit_gives_no_preview_or_the_plain_one() -> None:
    painter = Painter(16, RED_AND_GREEN)
    assert painter.png(None, 32, 32) == b""
    assert painter.png(torch.zeros(1, 2, 2, 2, dtype=torch.int64), 32, 32) == b""
    assert painter.png(torch.full((1, 2, 4, 4), torch.nan), 32, 32) == b""
    assert painter.png(torch.zeros(1, 5, 8), None, None) == b""
    other = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    assert painter.png(other, 32, 32) == Painter().png(other, 32, 32)


def test_large_latents_are_thinned_before_they_are_decoded(tmp_path: Path) -> None:
    decoder = TinyDecoder(tiny_decoder(tmp_path / "decoder", 2))
    pixels = pixels_of(Painter(8, None, decoder).png(torch.zeros(1, 2, 512, 256), 4096, 2048))
    assert pixels.shape[:2] == (PREVIEW_SIDE_PIXELS_MAX, PREVIEW_SIDE_PIXELS_MAX // 2)
