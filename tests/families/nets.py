"""Tiny denoisers, autoencoders and schedulers of diffusers' families.

Scale factors and channel counts are not the defaults, so that code that falls back to one in silence is caught.
"""

from __future__ import annotations

from typing import Any

import diffusers

from tests.families.texts import HIDDEN

CHANNELS = 4
"""Channels of most latents here."""
AUDIO_CHANNELS = 8
"""Values of a step of sound, as many as the VAE of sound has statistics."""
NORMAL = {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [1.5, 0.8, 1.1, 2.0]}
HEADS = {"num_attention_heads": 2, "num_layers": 2}


def flow_euler(**settings: Any) -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(**{"shift": 2.5, **settings})


def dynamic_euler() -> Any:
    """With a shift that depends on the picture's size."""
    return diffusers.FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9, shift_terminal=0.02, time_shift_type="exponential"
    )


def unipc() -> Any:
    return diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)


def dpm_solver() -> Any:
    return diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )


def _image_vae(kind: Any, **settings: Any) -> Any:
    """Spatial factor 4."""
    return kind(
        block_out_channels=(8, 8, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=4,
        sample_size=32,
        **settings,
    )


def vae(**settings: Any) -> Any:
    return _image_vae(diffusers.AutoencoderKL, scaling_factor=1.3, **settings)


def vae_flux() -> Any:
    return vae(shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False)


def vae_flux2() -> Any:
    return _image_vae(diffusers.AutoencoderKLFlux2)


def vae_wan(halvings: int = 2, temporal: int = 1, **settings: Any) -> Any:
    """As many halvings of a frame, the last ones of time too: by default factors 4 and 2."""
    return diffusers.AutoencoderKLWan(
        base_dim=4,
        z_dim=CHANNELS,
        dim_mult=[1, *[2] * halvings],
        num_res_blocks=1,
        temperal_downsample=[False] * (halvings - temporal) + [True] * temporal,
        **NORMAL,
        scale_factor_temporal=2**temporal,
        scale_factor_spatial=2**halvings,
        **settings,
    )


def vae_qwen(input_channels: int = 3, halvings: int = 2) -> Any:
    return diffusers.AutoencoderKLQwenImage(
        base_dim=4,
        z_dim=CHANNELS,
        dim_mult=[1, *[2] * halvings],
        num_res_blocks=1,
        temperal_downsample=[False] * (halvings - 1) + [True],
        input_channels=input_channels,
        **NORMAL,
    )


def vae_qwen_edit(input_channels: int = 3) -> Any:
    """Spatial factor 16: pictures are edited at a million pixels, whatever their own size is."""
    return vae_qwen(input_channels, halvings=4)


def vae_qwen21() -> Any:
    """Spatial factor 8, as the patches of its text encoder's eye."""
    return diffusers.AutoencoderKLQwenImage21(
        base_dim=4,
        decoder_base_dim=4,
        z_dim=CHANNELS,
        dim_mult=[1, 2, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[False, False, True],
        **NORMAL,
        scale_factor_temporal=2,
        scale_factor_spatial=8,
    )


def vae_hunyuan() -> Any:
    return diffusers.AutoencoderKLHunyuanVideo15(
        latent_channels=CHANNELS,
        block_out_channels=(8, 16, 16),
        layers_per_block=1,
        spatial_compression_ratio=4,
        temporal_compression_ratio=2,
    )


def vae_ltx() -> Any:
    return diffusers.AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=(False, False, False, False, False),
        patch_size=2,
    )


def vae_ltx2() -> Any:
    return diffusers.AutoencoderKLLTX2Video(
        latent_channels=CHANNELS,
        block_out_channels=(8,),
        down_block_types=("LTX2VideoDownBlock3D",),
        decoder_block_out_channels=(8,),
        layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        spatio_temporal_scaling=(True,),
        decoder_spatio_temporal_scaling=(True,),
        decoder_inject_noise=(False, False),
        downsample_type=("spatiotemporal",),
        upsample_type=("spatiotemporal",),
        upsample_residual=(False,),
        upsample_factor=(1,),
        patch_size=4,
    )


def audio_vae_ltx2() -> Any:
    return diffusers.AutoencoderKLLTX2Audio(
        base_channels=8, ch_mult=(1,), num_res_blocks=1, resolution=32, latent_channels=2, mel_bins=16
    )


def vocoder_ltx2() -> Any:
    from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder

    return LTX2Vocoder(
        in_channels=32,
        hidden_channels=16,
        upsample_kernel_sizes=[4, 4],
        upsample_factors=[2, 2],
        resnet_kernel_sizes=[3],
        resnet_dilations=[[1, 3, 5]],
        output_sampling_rate=16000,
    )


def connectors(**settings: Any) -> Any:
    from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors

    sizes = {
        f"{kind}_connector_{name}": value
        for kind in ("video", "audio")
        for name, value in {"num_attention_heads": 4, "attention_head_dim": 8, "num_layers": 1}.items()
    }
    registers = {f"{kind}_connector_num_learnable_registers": 4 for kind in ("video", "audio")}
    return LTX2TextConnectors(caption_channels=HIDDEN, text_proj_in_factor=3, **sizes, **registers, **settings)


def ltx2_transformer(**settings: Any) -> Any:
    sizes = {"audio_in_channels": AUDIO_CHANNELS, "audio_out_channels": AUDIO_CHANNELS, **settings}
    return diffusers.LTX2VideoTransformer3DModel(
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        **HEADS,
        attention_head_dim=16,
        cross_attention_dim=HIDDEN,
        audio_num_attention_heads=2,
        audio_attention_head_dim=8,
        audio_cross_attention_dim=16,
        caption_channels=HIDDEN,
        **sizes,
    )


def wan(inputs: int = CHANNELS, kind: str = "WanTransformer3DModel", **settings: Any) -> Any:
    return getattr(diffusers, kind)(
        **HEADS,
        attention_head_dim=12,
        in_channels=inputs,
        out_channels=CHANNELS,
        text_dim=HIDDEN,
        freq_dim=16,
        ffn_dim=32,
        **settings,
    )


def flux(**settings: Any) -> Any:
    return diffusers.FluxTransformer2DModel(
        in_channels=4 * CHANNELS,
        **HEADS,
        num_single_layers=1,
        attention_head_dim=16,
        joint_attention_dim=HIDDEN,
        pooled_projection_dim=HIDDEN,
        axes_dims_rope=(4, 4, 8),
        **settings,
    )


def flux2(layers: int, **settings: Any) -> Any:
    return diffusers.Flux2Transformer2DModel(
        in_channels=4 * CHANNELS,
        **HEADS,
        num_single_layers=1,
        attention_head_dim=16,
        joint_attention_dim=layers * HIDDEN,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        **settings,
    )


def flux3(**settings: Any) -> Any:
    return diffusers.Flux3Transformer2DModel(
        in_channels=4 * CHANNELS,
        cond_in_channels=4 * CHANNELS,
        **HEADS,
        num_single_layers=1,
        attention_head_dim=16,
        joint_attention_dim=8 * HIDDEN,
        timestep_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        **settings,
    )


def qwen(kind: str = "QwenImageTransformer2DModel", **settings: Any) -> Any:
    return getattr(diffusers, kind)(
        in_channels=4 * CHANNELS,
        out_channels=CHANNELS,
        **HEADS,
        attention_head_dim=16,
        joint_attention_dim=HIDDEN,
        axes_dims_rope=(8, 4, 4),
        **settings,
    )


def helios() -> Any:
    return wan(kind="HeliosTransformer3DModel", rope_dim=(4, 4, 4))
