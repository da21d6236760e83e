"""Names that diffusers publishes and that a file of means may have: configurations of caches and quantization with
their options, backends of attention. A test compares them with the installed diffusers; here they need no torch."""

from __future__ import annotations

from collections.abc import Mapping

CACHES: Mapping[str, tuple[str, ...]] = {
    "FirstBlockCacheConfig": ("threshold",),
    "TaylorSeerCacheConfig": (
        *("cache_interval", "disable_cache_before_step", "disable_cache_after_step", "max_order"),
        *("taylor_factors_dtype", "skip_predict_identifiers", "cache_identifiers", "use_lite_mode"),
    ),
    "MagCacheConfig": (
        *("threshold", "max_skip_steps", "retention_ratio", "num_inference_steps", "mag_ratios", "calibrate"),
    ),
    "FasterCacheConfig": (
        *("spatial_attention_block_skip_range", "temporal_attention_block_skip_range"),
        *("spatial_attention_timestep_skip_range", "temporal_attention_timestep_skip_range"),
        *("low_frequency_weight_update_timestep_range", "high_frequency_weight_update_timestep_range"),
        *("alpha_low_frequency", "alpha_high_frequency", "unconditional_batch_skip_range"),
        *("unconditional_batch_timestep_skip_range", "spatial_attention_block_identifiers"),
        *("temporal_attention_block_identifiers", "tensor_format", "is_guidance_distilled"),
    ),
    "PyramidAttentionBroadcastConfig": (
        *("spatial_attention_block_skip_range", "temporal_attention_block_skip_range"),
        *("cross_attention_block_skip_range", "spatial_attention_timestep_skip_range"),
        *("temporal_attention_timestep_skip_range", "cross_attention_timestep_skip_range"),
        *("spatial_attention_block_identifiers", "temporal_attention_block_identifiers"),
        "cross_attention_block_identifiers",
    ),
}
"""Configurations of step caches (`diffusers.hooks`), with those of their fields that a file can say: no callbacks."""

QUANTIZATIONS: Mapping[str, tuple[str, ...]] = {
    "TorchAoConfig": ("quant_type", "modules_to_not_convert"),
    "BitsAndBytesConfig": (
        *("load_in_8bit", "load_in_4bit", "llm_int8_threshold", "llm_int8_skip_modules"),
        *("llm_int8_enable_fp32_cpu_offload", "llm_int8_has_fp16_weight", "bnb_4bit_compute_dtype"),
        *("bnb_4bit_quant_type", "bnb_4bit_use_double_quant", "bnb_4bit_quant_storage"),
    ),
    "QuantoConfig": ("weights_dtype", "modules_to_not_convert"),
    "GGUFQuantizationConfig": ("compute_dtype",),
}
"""Configurations of quantization (`diffusers.quantizers`) that models in full precision, or single files, are loaded
with."""

BACKEND_PACKAGES: Mapping[str, str] = {
    "TorchAoConfig": "torchao",
    "BitsAndBytesConfig": "bitsandbytes",
    "QuantoConfig": "optimum-quanto",
    "GGUFQuantizationConfig": "gguf",
}
"""What each of them needs installed."""

ATTENTIONS = (
    *("flash", "flash_hub", "flash_varlen", "flash_varlen_hub", "flash_4_hub", "_flash_3", "_flash_varlen_3"),
    *("_flash_3_hub", "_flash_3_varlen_hub", "aiter_fa2_hub", "flex", "native", "_native_cudnn"),
    *("_native_efficient", "_native_flash", "_native_math", "_native_npu", "_native_xla", "sage", "sage_hub"),
    *("sage_blackwell_hub", "sage_varlen", "_sage_qk_int8_pv_fp8_cuda", "_sage_qk_int8_pv_fp8_cuda_sm90"),
    *("_sage_qk_int8_pv_fp16_cuda", "_sage_qk_int8_pv_fp16_triton", "xformers"),
)
"""Backends of attention, for `set_attention_backend`."""
