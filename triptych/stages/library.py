"""The one place that imports diffusers (and, with it, torch, transformers and accelerate).

Importing this module costs seconds; packages that only sometimes need a stage import `triptych.stages` late.
It raises `MissingExtra` where one of the packages isn't installed, or can't be imported.

Used of diffusers beyond its documented surface, to be checked at an upgrade:
`ModularPipeline._blocks`, `._component_specs`, `ModularPipelineBlocks.sub_blocks`, `.inputs`,
`.intermediate_outputs`, `.block_trigger_inputs`, `InputParam.kwargs_type`, `PipelineState.kwargs_mapping`;
`CacheMixin._reset_stateful_cache`, `_diffusers_hook` and its `hooks`, `ModelMixin._repeated_blocks`,
`diffusers.models.attention_dispatch`; `_lora_loadable_modules`, `diffusers.utils.set_adapter_layers`,
`.set_weights_and_activate_adapters`, `.delete_adapter_layers`; `ModularIPAdapterMixin.load_ip_adapter`,
`UNet2DConditionModel.encoder_hid_proj` and its config's `encoder_hid_dim_type`.
"""

from __future__ import annotations

import logging

from triptych.stages.library_errors import told

with told("running a stage"):
    import diffusers
    import transformers
    from accelerate import cpu_offload, dispatch_model, init_empty_weights  # type: ignore[import-untyped]
    from diffusers import (
        AutoencoderTiny,
        ConfigMixin,
        ContextParallelConfig,
        ModelMixin,
        ModularPipeline,
        SchedulerMixin,
    )
    from diffusers.guiders import BaseGuidance
    from diffusers.hooks import apply_group_offloading
    from diffusers.models import ParallelConfig
    from diffusers.models.attention_dispatch import attention_backend
    from diffusers.models.embeddings import ImageProjection
    from diffusers.modular_pipelines import (
        LoopSequentialPipelineBlocks,
        ModularPipelineBlocks,
        SequentialPipelineBlocks,
    )
    from diffusers.modular_pipelines.modular_pipeline import PipelineState
    from diffusers.modular_pipelines.modular_pipeline_utils import INPUT_PARAM_TEMPLATES, ComponentSpec, InputParam
    from diffusers.utils import delete_adapter_layers, set_adapter_layers, set_weights_and_activate_adapters
    from transformers import Cache, PreTrainedModel
    from transformers.modeling_outputs import BaseModelOutput
    from transformers.utils import ModelOutput

__all__ = [
    "INPUT_PARAM_TEMPLATES",
    "AutoencoderTiny",
    "BaseGuidance",
    "BaseModelOutput",
    "Cache",
    "ComponentSpec",
    "ConfigMixin",
    "ContextParallelConfig",
    "ImageProjection",
    "InputParam",
    "LoopSequentialPipelineBlocks",
    "ModelMixin",
    "ModelOutput",
    "ModularPipeline",
    "ModularPipelineBlocks",
    "ParallelConfig",
    "PipelineState",
    "PreTrainedModel",
    "SchedulerMixin",
    "SequentialPipelineBlocks",
    "apply_group_offloading",
    "attention_backend",
    "cpu_offload",
    "delete_adapter_layers",
    "diffusers",
    "dispatch_model",
    "init_empty_weights",
    "set_adapter_layers",
    "set_weights_and_activate_adapters",
    "transformers",
]


# Their messages quote prompts (the part cut off by a tokenizer, the text of an error), and prompts are never logged.
# What matters comes out as exceptions, and progress through `on_step`.
diffusers.utils.logging.disable_progress_bar()
transformers.utils.logging.disable_progress_bar()
for _name in ("diffusers", "transformers"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)
