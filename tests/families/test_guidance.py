"""Guidance off, at 1 and at 0, is the classic pipelines' to the bit; a scale that is accepted has its effect.

Where the two differ with guidance on, they do in diffusers itself (see `tests/stages/test_parity.py`).
"""

from __future__ import annotations

import io
import types
from collections.abc import Callable
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from google.protobuf import json_format

from tests.families import more_nets, nets, texts, zoo
from tests.stages.conftest import assert_equal_bits, picture, run_stages
from triptych.errors import InvalidRequest
from triptych.model.inputs import resolve
from triptych.roles import ROLES
from triptych.stages.describe import describe
from triptych.stages.stage import Stage
from triptych.stages.whole import Whole
from triptych.v1.job_pb2 import GenerationRequest

SEED = 7
SIZE = {"height": 32, "width": 32, "num_inference_steps": 2}
VIDEO = {**SIZE, "num_frames": 5}
PICTURE = {**VIDEO, "image": picture(32, 32)}


def vae_of_four() -> Any:
    """Temporal factor 4, which the blocks of image to video take for granted."""
    return diffusers.AutoencoderKLWan(
        base_dim=4,
        z_dim=nets.CHANNELS,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        **nets.NORMAL,
        scale_factor_temporal=4,
        scale_factor_spatial=4,
    )


def from_picture(**settings: Any) -> Any:
    """A denoiser of noise, a mask of four frames, and the picture."""
    return nets.wan(2 * nets.CHANNELS + 4, **settings)


def audio_vae() -> Any:
    """With as many statistics as a step of its latents has values, which only a run needs."""
    return diffusers.AutoencoderKLLTX2Audio(
        base_channels=8, ch_mult=(1,), num_res_blocks=1, resolution=32, latent_channels=2, mel_bins=16
    )


MODELS: dict[str, tuple[str, dict[str, Callable[[], Any]]]] = {
    "flux-dev": ("flux", {"transformer": lambda: nets.flux(guidance_embeds=True)}),
    "wan-i2v": (
        "wan-i2v",
        {
            "vae": vae_of_four,
            "transformer": lambda: from_picture(image_dim=texts.HIDDEN, added_kv_proj_dim=24),
        },
    ),
    "wan22-i2v": (
        "Wan22Image2VideoModularPipeline",
        {"vae": vae_of_four, "transformer": from_picture, "transformer_2": from_picture},
    ),
    "ltx2": (
        "ltx2",
        {
            "audio_vae": audio_vae,
            "transformer": lambda: nets.ltx2_transformer(audio_in_channels=8, audio_out_channels=8),
        },
    ),
    "lcm-sdxl": ("stable-diffusion-xl", {"unet": lambda: more_nets.unet(time_cond_proj_dim=8)}),
}
"""Further models of a family, by a name of their own: the family, and what is another than in `tests.families.zoo`."""

CLASSIC: dict[str, tuple[str, str, dict[str, Any]]] = {
    "wan": ("WanPipeline", "guidance_scale", {**VIDEO, "output_type": "np"}),
    "Wan22ModularPipeline": ("WanPipeline", "guidance_scale", {**VIDEO, "output_type": "np"}),
    "wan-i2v": ("WanImageToVideoPipeline", "guidance_scale", {**PICTURE, "output_type": "np"}),
    "wan22-i2v": ("WanImageToVideoPipeline", "guidance_scale", {**PICTURE, "output_type": "np"}),
    "ltx": ("LTXPipeline", "guidance_scale", {**VIDEO, "output_type": "np"}),
    "ltx2": ("LTX2Pipeline", "guidance_scale", {**VIDEO, "output_type": "pil"}),
    "qwenimage": ("QwenImagePipeline", "true_cfg_scale", SIZE),
    "stable-diffusion-3": ("StableDiffusion3Pipeline", "guidance_scale", SIZE),
    "stable-diffusion-xl": ("StableDiffusionXLPipeline", "guidance_scale", SIZE),
    "lcm-sdxl": ("StableDiffusionXLPipeline", "guidance_scale", SIZE),
    "flux": ("FluxPipeline", "guidance_scale", SIZE),
    "flux-dev": ("FluxPipeline", "guidance_scale", SIZE),
    "z-image": ("ZImagePipeline", "guidance_scale", SIZE),
}
"""By model: its classic pipeline, what that calls the scale, and the arguments of both."""

CLASSIC_SECOND = {"ltx2": "audio_guidance_scale"}
"""Where the classic pipeline must be told of its second guider apart."""

CLASSIC_OFF = {"z-image": 0.0}
"""Where the classic pipeline counts otherwise than the modular one, by one less: its scale that means "off"."""


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], types.SimpleNamespace]:
    """A model, opened and loaded once: `whole`, `description`, `stages`, `folder`."""
    root = tmp_path_factory.mktemp("guided")
    loaded: dict[str, types.SimpleNamespace] = {}

    def get(name: str) -> types.SimpleNamespace:
        if name not in loaded:
            family, parts = MODELS.get(name, (name, {}))
            whole = Whole.open(zoo.make(family, root / name, **parts))
            loaded[name] = types.SimpleNamespace(
                whole=whole, description=describe(whole), stages=[Stage.load(whole, role) for role in ROLES]
            )
        return loaded[name]

    return get


def ours(model: Any, **fields: Any) -> Any:
    """The first output of the three stages in a row."""
    plain = {name: value for name, value in fields.items() if name not in ("output_type", "image")}
    request = json_format.ParseDict({"prompt": "a red circle", "seed": SEED, **plain}, GenerationRequest())
    if "image" in fields:
        file = io.BytesIO()
        fields["image"].save(file, "PNG")
        request.media.add(name="image", data=file.getvalue())
    return next(iter(run_stages(model.stages, resolve(request, model.description).for_encoder()).values()))


def classic(model: Any, class_name: str, **arguments: Any) -> Any:
    """What the family's classic pipeline makes, of the same parts."""
    whole = diffusers.ModularPipeline.from_pretrained(model.whole.model)
    whole.load_components(dtype=torch.float32)
    kind = getattr(diffusers, class_name)
    parts = {name: whole.components.get(name) for name in kind._get_signature_keys(kind)[0]}
    settings = {"boundary_ratio": ratio} if (ratio := whole.config.get("boundary_ratio")) else {}
    pipeline = kind(**{name: part for name, part in parts.items() if part is not None}, **settings)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(SEED)
    torch.manual_seed(SEED)
    return pipeline(prompt="a red circle", generator=generator, **arguments)[0]


@pytest.mark.parametrize("negative", [None, "blur"])
@pytest.mark.parametrize("scale", [1.0, 0.0])
@pytest.mark.parametrize("name", CLASSIC)
def test_guidance_off_is_the_classic_pipelines(name: str, scale: float, negative: str | None, tiny: Any) -> None:
    class_name, scale_name, fields = CLASSIC[name]
    model = tiny(name)
    if negative is not None:
        if not any(described.name == "negative_prompt" for described in model.description.inputs):
            pytest.skip("this pipeline takes no negative prompt")
        fields = {**fields, "negative_prompt": negative}
    made = ours(model, guidance_scale=scale, **fields)
    names = {scale_name, CLASSIC_SECOND.get(name, scale_name)}
    scales = dict.fromkeys(names, CLASSIC_OFF.get(name, scale))
    assert_equal_bits(made, classic(model, class_name, **scales, **fields))


def test_without_a_negative_prompt_guidance_is_against_the_empty_one(tiny: Any) -> None:
    """Its encoder isn't told whether guidance is on."""
    model = tiny("stable-diffusion-3")
    made = ours(model, guidance_scale=7.0, **SIZE)
    assert_equal_bits(made, classic(model, "StableDiffusion3Pipeline", guidance_scale=7.0, **SIZE))
    assert_equal_bits(made, ours(model, guidance_scale=7.0, negative_prompt="", **SIZE))


EFFECT = {
    **{name: fields for name, (_, _, fields) in CLASSIC.items()},
    "hunyuan-video-1.5": VIDEO,
    "anima": SIZE,
    "ernie-image": SIZE,
    "flux2": SIZE,
    "flux2-klein": SIZE,
    "Flux2KleinBaseModularPipeline": SIZE,
    "krea2": SIZE,
    "Krea2TurboModularPipeline": SIZE,
    "qwenimage21": SIZE,
    "qwenimage21-turbo": SIZE,
}
"""Models whose tiny one runs within a second on a text alone, and what is asked of them."""


@pytest.mark.parametrize("name", EFFECT)
def test_a_scale_that_is_accepted_has_its_effect(name: str, tiny: Any) -> None:
    """Unset, 1 and 0 run where the model takes a scale at all; 7 makes something else of it, or is refused."""
    model, fields = tiny(name), EFFECT[name]
    usual = ours(model, **fields)
    described = model.description
    if not described.HasField("guidance_scale") and all(i.name != "guidance_scale" for i in described.inputs):
        with pytest.raises(InvalidRequest, match=r"guidance_scale is 1.0; accepted: nothing"):
            ours(model, guidance_scale=1.0, **fields)
        return
    off, lower = (ours(model, guidance_scale=scale, **fields) for scale in (1.0, 0.0))
    if described.without_guidance:
        assert_equal_bits(off, usual)
        assert_equal_bits(lower, usual)
        with pytest.raises(InvalidRequest, match=r"guidance_scale is 7.0; accepted: at most 1, .*without it"):
            ours(model, guidance_scale=7.0, **fields)
        return
    assert differ(ours(model, guidance_scale=7.0, **fields), off)
    if described.HasField("guidance_scale"):
        assert_equal_bits(usual, ours(model, guidance_scale=described.guidance_scale, **fields))


def differ(left: Any, right: Any) -> bool:
    """Whether two results differ in any sample."""
    return not np.array_equal(np.asarray(left), np.asarray(right))


@pytest.mark.parametrize("name", ["wan", "stable-diffusion-xl", "stable-diffusion-3", "ltx", "qwenimage"])
def test_a_guider_that_is_disabled_is_guidance_off(name: str, tiny: Any) -> None:
    """One of them has a block that enables its guider again."""
    model, fields = tiny(name), EFFECT[name]
    disabled = ours(model, parameters={"guider.enabled": False}, **fields)
    assert_equal_bits(disabled, ours(model, guidance_scale=1.0, **fields))
    with pytest.raises(InvalidRequest, match=r"guidance_scale is 7.0; accepted: at most 1 beside .*guider.enabled"):
        ours(model, guidance_scale=7.0, parameters={"guider.enabled": False}, **fields)
    assert_equal_bits(disabled, ours(model, guidance_scale=1.0, parameters={"guider.enabled": False}, **fields))


def test_off_is_off_for_every_guider_unless_one_is_named(tiny: Any) -> None:
    """The second one's scale alone has the negative prompt encoded, too."""
    model, fields = tiny("Wan22ModularPipeline"), EFFECT["Wan22ModularPipeline"]
    off = ours(model, guidance_scale=1.0, **fields)
    one = ours(model, guidance_scale=1.0, parameters={"guider_2.guidance_scale": 3.0}, **fields)
    assert differ(off, one)
    named = {"guider_2.guidance_scale": 3.0}
    assert differ(one, ours(model, guidance_scale=1.0, parameters=named, negative_prompt="blur", **fields))
    assert differ(one, ours(model, guidance_scale=4.0, parameters=named, **fields))


def test_a_scale_recommended_by_the_folder_gives_way_to_the_requests(tiny: Any) -> None:
    model = tiny("Wan22ModularPipeline")
    description = type(model.description).FromString(model.description.SerializeToString())
    description.defaults_json = '{"guidance_scale": 4.0, "guider_2.guidance_scale": 2.5}'
    assert options(description) == {"guider": {"guidance_scale": 4.0}, "guider_2": {"guidance_scale": 2.5}}
    both_off = {"guider": {"guidance_scale": 0.5}, "guider_2": {"guidance_scale": 1.0}}
    assert options(description, guidance_scale=0.5) == both_off
    named = options(description, guidance_scale=1.0, parameters={"guider_2.guidance_scale": 3.0})
    assert named == {"guider": {"guidance_scale": 1.0}, "guider_2": {"guidance_scale": 3.0}}


def options(description: Any, **fields: Any) -> Any:
    """Options of guiders that a request makes."""
    request = json_format.ParseDict({"prompt": "a red circle", **fields}, GenerationRequest())
    values: Any = resolve(request, description).for_encoder()["triptych.settings"]
    return values["overrides"]


@pytest.mark.parametrize("name", ["ltx", "qwenimage", "stable-diffusion-3", "stable-diffusion-xl", "anima"])
@pytest.mark.parametrize("scale", [1.0, 0.0])
def test_what_guidance_does_not_need_is_not_encoded(name: str, scale: float, tiny: Any) -> None:
    assert encodings(tiny(name), guidance_scale=scale, **SIZE) == 1
    assert encodings(tiny(name), guidance_scale=scale, negative_prompt="blur", **SIZE) == 1
    assert encodings(tiny(name), guidance_scale=7.0, negative_prompt="blur", **SIZE) == 2


def test_an_encoder_that_fails_without_the_branch_is_known_from_then_on(tiny: Any) -> None:
    """Each of its two runs encodes the prompt; later jobs run once."""
    encodings(tiny("wan"), guidance_scale=1.0, **SIZE)
    assert encodings(tiny("wan"), guidance_scale=1.0, **SIZE) == 2


def encodings(model: Any, **fields: Any) -> int:
    """How often the model's first text encoder ran for a request."""
    encoder, count = model.stages[0], [0]

    def counted(*_: object) -> None:
        count[0] += 1

    handle = encoder._pipeline._role_components.get("text_encoder").register_forward_hook(counted)
    try:
        request = json_format.ParseDict({"prompt": "a red circle", "seed": SEED, **fields}, GenerationRequest())
        encoder.run(resolve(request, model.description).for_encoder(), lambda step: None, lambda: False)
    finally:
        handle.remove()
    return count[0]
