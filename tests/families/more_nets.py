"""Tiny networks of the families that share none: see `nets`."""

from __future__ import annotations

from typing import Any

import diffusers
import torch

from tests.families.nets import CHANNELS, HEADS, NORMAL
from tests.families.texts import HIDDEN

MUSIC_VOCAB = 151675 + 16384
"""The music model's code has its token numbers in it."""
ACTION_DIM = 16
_UNET: dict[str, Any] = {
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "attention_head_dim": (2, 4),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "transformer_layers_per_block": (1, 1),
    "projection_class_embeddings_input_dim": 6 * 8 + HIDDEN,
    "cross_attention_dim": 2 * HIDDEN,
    "norm_num_groups": 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
}


def unet(**settings: Any) -> Any:
    return diffusers.UNet2DConditionModel(
        sample_size=16, up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), **_UNET, **settings
    )


def controlnet_union() -> Any:
    """Its defaults for the transformer of conditions are large, too."""
    return diffusers.ControlNetUnionModel(
        **_UNET,
        conditioning_embedding_out_channels=(4, 8, 8),
        num_trans_channel=8,
        num_trans_head=2,
        num_proj_channel=8,
    )


def controlnet() -> Any:
    return diffusers.ControlNetModel(**_UNET, conditioning_embedding_out_channels=(4, 8, 8))


def sd3() -> Any:
    return diffusers.SD3Transformer2DModel(
        sample_size=16,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=HIDDEN,
        caption_projection_dim=32,
        pooled_projection_dim=2 * HIDDEN,
        pos_embed_max_size=32,
    )


def wan_animate() -> Any:
    return diffusers.WanAnimate2Transformer3DModel(
        in_dim=2 * CHANNELS + 4,
        dim=24,
        ffn_dim=32,
        freq_dim=16,
        text_dim=HIDDEN,
        out_dim=CHANNELS,
        num_heads=2,
        num_layers=2,
    )


def ideogram() -> Any:
    return diffusers.Ideogram4Transformer2DModel(
        in_channels=4 * CHANNELS,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        intermediate_size=32,
        adaln_dim=16,
        llm_features_dim=13 * HIDDEN,
        mrope_section=(4, 2, 2),
    )


def ideogram_head() -> Any:
    from diffusers.pipelines.ideogram4 import Ideogram4PromptEnhancerHead

    return Ideogram4PromptEnhancerHead(hidden_size=HIDDEN, vocab_size=300)


def krea() -> Any:
    return diffusers.Krea2Transformer2DModel(
        in_channels=4 * CHANNELS,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=32,
        timestep_embed_dim=16,
        text_hidden_dim=HIDDEN,
        text_num_attention_heads=2,
        text_num_key_value_heads=2,
        text_intermediate_size=32,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(8, 4, 4),
    )


def qwen21() -> Any:
    return diffusers.QwenImage21Transformer2DModel(
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        **HEADS,
        attention_head_dim=16,
        context_in_dim=HIDDEN,
        axes_dims_rope=(8, 4, 4),
    )


def anima() -> Any:
    return diffusers.CosmosTransformer3DModel(
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        **HEADS,
        attention_head_dim=16,
        mlp_ratio=2.0,
        text_embed_dim=HIDDEN,
        adaln_lora_dim=8,
        max_size=(4, 32, 32),
        rope_scale=(1.0, 1.0, 1.0),
        extra_pos_embed_type=None,
        encoder_hidden_states_channels=HIDDEN,
    )


def anima_conditioner() -> Any:
    return diffusers.AnimaTextConditioner(
        source_dim=HIDDEN,
        target_dim=HIDDEN,
        model_dim=HIDDEN,
        num_layers=1,
        num_attention_heads=2,
        target_vocab_size=128,
        min_sequence_length=16,
    )


def z_image() -> Any:
    return diffusers.ZImageTransformer2DModel(
        in_channels=CHANNELS,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=HIDDEN,
        axes_dims=[8, 4, 4],
        axes_lens=[256, 32, 32],
    )


def cosmos3() -> Any:
    return diffusers.Cosmos3OmniTransformer(
        head_dim=16,
        hidden_size=32,
        intermediate_size=32,
        latent_channel=CHANNELS,
        num_attention_heads=2,
        num_hidden_layers=2,
        num_key_value_heads=2,
        patch_latent_dim=4 * CHANNELS,
        rope_scaling={"mrope_section": [4, 2, 2], "rope_type": "default", "mrope_interleaved": True},
        action_dim=ACTION_DIM,
        action_gen=True,
        sound_dim=8,
        sound_gen=True,
        vocab_size=300,
    )


def cosmos3_sound() -> Any:
    return diffusers.Cosmos3AVAEAudioTokenizer(
        vocoder_input_dim=8,
        dec_dim=4,
        dec_c_mults=(1, 2),
        dec_strides=(2, 4),
        enc_dim=8,
        enc_intermediate_dim=16,
        enc_num_layers=1,
        enc_num_blocks=1,
        enc_n_fft=16,
        enc_hop_length=4,
        enc_latent_dim=16,
        enc_c_mults=(1, 2),
        enc_strides=(2, 1),
    )


def hunyuan() -> Any:
    return diffusers.HunyuanVideo15Transformer3DModel(
        in_channels=2 * CHANNELS + 1,
        out_channels=CHANNELS,
        **HEADS,
        attention_head_dim=16,
        num_refiner_layers=1,
        mlp_ratio=2.0,
        text_embed_dim=HIDDEN,
        text_embed_2_dim=HIDDEN,
        image_embed_dim=HIDDEN,
        rope_axes_dim=(8, 4, 4),
        target_size=64,
    )


def ltx() -> Any:
    return diffusers.LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, **HEADS, attention_head_dim=12, cross_attention_dim=24, caption_channels=HIDDEN
    )


def ltx2_duration() -> Any:
    from diffusers.pipelines.ltx2.duration_head import LTX2DurationHead

    return LTX2DurationHead(
        video_cross_attention_dim=32,
        audio_cross_attention_dim=32,
        pooler_hidden_dim=16,
        num_pooler_heads=2,
        mlp_hidden_dim=16,
    )


def ltx2_diffusion_decoder() -> Any:
    """With the scale factors of `nets.vae_ltx2`: its attention of windows takes the square of all places on a CPU."""
    from diffusers.models.autoencoders.ltx2_diffusion_decoder import LTX2VideoDiffusionDecoderModel

    return LTX2VideoDiffusionDecoderModel(
        latent_channels=CHANNELS,
        patch_size=4,
        decoder_head_dim=8,
        decoder_stage_channels=(64, 32, 16, 16, 8),
        decoder_stage_depths=(1, 1, 1, 1, 1),
        decoder_stage_kernels=((3, 3, 3),) * 4,
        decoder_upsample_strides=((1, 1, 1), (1, 1, 1), (1, 1, 1), (2, 2, 2)),
        decoder_stage5_kernel=(3, 3, 3),
        decoder_t_emb_dim=16,
        spatial_compression_ratio=8,
        temporal_compression_ratio=2,
    )


def h3_vae() -> Any:
    return diffusers.AutoencoderKLMiniMaxH3(
        latent_channels=CHANNELS,
        block_out_channels=(8, 8, 8),
        layers_per_block=1,
        spatial_downsample_factors=(2, 2, 2),
        temporal_downsample_factors=(1, 2, 2),
        norm_num_groups=4,
        decoder_num_layers=1,
        decoder_num_attention_heads=2,
        decoder_attention_head_dim=16,
        decoder_num_register_tokens=1,
        decoder_ffn_mult=1,
        **NORMAL,
    )


def h3_audio_vae() -> Any:
    return diffusers.AutoencoderKLMiniMaxH3Audio(
        latents_mean=[0.1] * 8,
        latents_std=[1.5] * 8,
        encoder_dim=4,
        encoder_rates=(2, 4),
        latent_dim=16,
        latent_channels=8,
        num_attention_heads=2,
        decoder_dim=16,
        decoder_rates=(4, 2),
        decoder_kernel_sizes=(8, 4),
        resblock_kernel_sizes=(3,),
        resblock_dilation_sizes=((1, 3),),
    )


def h3() -> Any:
    return diffusers.MiniMaxH3Transformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        hidden_size=32,
        num_layers=2,
        num_refiner_layers=1,
        ffn_dim=32,
        in_channels=CHANNELS,
        audio_in_channels=8,
        text_dim=HIDDEN,
        freq_dim=16,
        time_embed_hidden_dim=32,
        time_embed_dim=16,
        rope_freq_dim=2,
    )


def music_depth() -> Any:
    from diffusers.models import MiniMaxMusic3RVQDepthDecoder

    return MiniMaxMusic3RVQDepthDecoder(
        hidden_size=HIDDEN,
        num_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        audio_vocab_size=64,
        num_codebooks=3,
    )


def music_condition() -> Any:
    from diffusers.models.condition_embedders.condition_embedder_minimax_music3 import MiniMaxMusic3ConditionEncoder

    return MiniMaxMusic3ConditionEncoder(condition_hidden_dim=HIDDEN, num_condition_layers=3, out_dim=HIDDEN)


def music() -> Any:
    return diffusers.MiniMaxMusic3Transformer1DModel(
        in_channels=8,
        condition_dim=HIDDEN,
        **HEADS,
        attention_head_dim=16,
        ff_inner_dim=32,
        rotary_dim=8,
        fourier_embedding_dim=16,
    )


def music_vocoder() -> Any:
    from diffusers.models.autoencoders.minimax_music3_vocoder import MiniMaxMusic3Vocoder

    return MiniMaxMusic3Vocoder(
        latent_channels=8, decoder_input_dim=16, decoder_hidden_dim=32, upsampling_ratios=(8, 8, 4, 2)
    )


def ernie() -> Any:
    """With weights where the class has zeros, which would make the same of every prompt."""
    model = diffusers.ErnieImageTransformer2DModel(
        hidden_size=32,
        **HEADS,
        ffn_hidden_size=32,
        in_channels=4 * CHANNELS,
        out_channels=4 * CHANNELS,
        text_in_dim=HIDDEN,
        rope_axes_dim=(8, 4, 4),
    )
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return model
