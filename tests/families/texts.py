"""Tiny tokenizers, processors and encoders of text and pictures, of the kinds that diffusers' families take."""

from __future__ import annotations

from typing import Any

import transformers
from tokenizers import pre_tokenizers

VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
CHAT_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *VISION_TOKENS, "<think>", "</think>")
MUSIC_TOKENS = tuple(f"<|{what}_{end}|>" for what in ("caption", "lyrics", "audio") for end in ("start", "end"))
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'text' %}{{ part.text }}"
    "{% elif part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}<|vision_start|><|video_pad|><|vision_end|>{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PLAIN_TEMPLATE = (
    "{% for message in messages %}{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}{% endif %}"
    "{% endfor %}"
)
HIDDEN = 32
"""Width of every text encoder here."""
CLIP_TOKENS = 1 + 4 * 4
"""Of a picture, by `clip_vision`."""
MROPE = {"mrope_section": [2, 1, 1], "rope_type": "default", "rope_theta": 1000000.0, "mrope_interleaved": True}


def _vocab(extra: tuple[str, ...]) -> dict[str, int]:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    return {token: index for index, token in enumerate((*letters, *extra))}


def chat_tokenizer(extra: tuple[str, ...] = ()) -> Any:
    """Byte-level, with the tokens of chats and pictures, and a chat template."""
    tokens = (*CHAT_TOKENS, *extra)
    return transformers.Qwen2Tokenizer(
        vocab=_vocab(tokens),
        merges=[],
        model_max_length=4096,
        additional_special_tokens=list(tokens[1:]),
        chat_template=CHAT_TEMPLATE,
    )


def music_tokenizer() -> Any:
    return chat_tokenizer(MUSIC_TOKENS)


def token_id(token: str) -> int:
    """Of a token of chats."""
    return 256 + CHAT_TOKENS.index(token)


def fast_tokenizer() -> Any:
    """Of no family: a tokenizer that `AutoTokenizer` finds by its files, with a plain chat template."""
    from tokenizers import Tokenizer, decoders, models, processors

    tokens = ("<pad>", "<s>", "</s>", "<unk>", "[IMG]", "[IMG_BREAK]", "[IMG_END]")
    raw = Tokenizer(models.BPE(vocab=_vocab(tokens), merges=[], unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 257)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=list(tokens[4:]),
        model_max_length=1024,
        chat_template=PLAIN_TEMPLATE,
    )


def byt5_tokenizer() -> Any:
    return transformers.ByT5Tokenizer()


def t5_encoder(vocab_size: int = 128, umt5: bool = False) -> Any:
    model, config = (
        (transformers.UMT5EncoderModel, transformers.UMT5Config)
        if umt5
        else (transformers.T5EncoderModel, transformers.T5Config)
    )
    sizes = {"d_model": HIDDEN, "d_kv": 8, "d_ff": 37, "num_layers": 2, "num_heads": 4}
    return model(config(vocab_size=vocab_size, relative_attention_num_buckets=8, **sizes))


def clip_text(projected: bool = False) -> Any:
    model = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    return model(
        transformers.CLIPTextConfig(
            vocab_size=514,
            hidden_size=HIDDEN,
            intermediate_size=37,
            projection_dim=HIDDEN,
            num_attention_heads=4,
            num_hidden_layers=3,
            bos_token_id=512,
            eos_token_id=513,
            pad_token_id=513,
        )
    )


def clip_vision(projected: bool = False, **others: Any) -> Any:
    model = transformers.CLIPVisionModelWithProjection if projected else transformers.CLIPVisionModel
    sizes = {"hidden_size": HIDDEN, "intermediate_size": 37, "num_hidden_layers": 3, "num_attention_heads": 4}
    return model(
        transformers.CLIPVisionConfig(
            **{"image_size": 32, "patch_size": 8, "projection_dim": HIDDEN, **sizes, **others}
        )
    )


def clip_images() -> Any:
    return transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


def siglip_vision() -> Any:
    sizes = {"hidden_size": HIDDEN, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}
    return transformers.SiglipVisionModel(transformers.SiglipVisionConfig(image_size=32, patch_size=8, **sizes))


def siglip_images() -> Any:
    return transformers.SiglipImageProcessor(size={"height": 32, "width": 32})


def _causal_sizes(layers: int, vocab_size: int = 300) -> dict[str, Any]:
    return {
        "vocab_size": vocab_size,
        "hidden_size": HIDDEN,
        "intermediate_size": 32,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
    }


def qwen3(layers: int = 3, headed: bool = False, vocab_size: int = 300) -> Any:
    model = transformers.Qwen3ForCausalLM if headed else transformers.Qwen3Model
    return model(transformers.Qwen3Config(**_causal_sizes(layers, vocab_size), use_sliding_window=False))


def qwen2_5_vl(text_only: bool = False) -> Any:
    """Qwen2.5-VL: its rotary sections cover half of a head's sixteen numbers."""
    text = {key: value for key, value in _causal_sizes(2).items() if key != "head_dim"}
    text["rope_parameters"] = {"mrope_section": [4, 2, 2], "rope_type": "default", "rope_theta": 1000000.0}
    if text_only:
        return transformers.Qwen2_5_VLTextModel(transformers.models.qwen2_5_vl.Qwen2_5_VLTextConfig(**text))
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": HIDDEN}
    return transformers.Qwen2_5_VLForConditionalGeneration(
        transformers.Qwen2_5_VLConfig(
            text_config=text, vision_config={**vision, "fullatt_block_indexes": [0]}, **_vision_ids()
        )
    )


def qwen3_vl(layers: int = 2, headed: bool = True) -> Any:
    config = transformers.Qwen3VLConfig(
        text_config={**_causal_sizes(layers), "rope_parameters": MROPE},
        vision_config={**_vision_sizes(), "deepstack_visual_indexes": [0]},
        **_vision_ids(),
    )
    return (transformers.Qwen3VLForConditionalGeneration if headed else transformers.Qwen3VLModel)(config)


def qwen3_5() -> Any:
    linear = {f"linear_{what}": 2 for what in ("num_key_heads", "num_value_heads")}
    linear |= {f"linear_{what}_head_dim": 8 for what in ("key", "value")}
    rope = {**MROPE, "mrope_section": [1, 1, 0], "partial_rotary_factor": 0.5}
    config = transformers.Qwen3_5Config(
        text_config={**_causal_sizes(2), **linear, "rope_parameters": rope, "full_attention_interval": 2},
        vision_config=_vision_sizes(),
        **_vision_ids(),
    )
    return transformers.Qwen3_5ForConditionalGeneration(config)


def _vision_sizes() -> dict[str, Any]:
    sizes = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": HIDDEN}
    return {**sizes, "patch_size": 8, "num_position_embeddings": 16}


def _vision_ids() -> dict[str, int]:
    names = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")
    return {name: token_id(token) for name, token in zip(names, VISION_TOKENS, strict=True)}


def qwen2_processor() -> Any:
    limits = {"min_pixels": 28 * 28, "max_pixels": 56 * 56}
    return transformers.Qwen2VLProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(**limits),
        tokenizer=chat_tokenizer(),
        video_processor=transformers.Qwen2VLVideoProcessor(**limits),
        chat_template=CHAT_TEMPLATE,
    )


def qwen3_processor() -> Any:
    limits = {"size": {"shortest_edge": 256, "longest_edge": 4096}, "patch_size": 8}
    return transformers.Qwen3VLProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(**limits),
        tokenizer=chat_tokenizer(),
        video_processor=transformers.Qwen3VLVideoProcessor(**limits),
        chat_template=CHAT_TEMPLATE,
    )


def mistral3(layers: int = 2, headed: bool = True) -> Any:
    text = {"model_type": "mistral", **_causal_sizes(layers)}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.Mistral3Config(
        text_config=text,
        vision_config={"model_type": "pixtral", **vision, "head_dim": 8, "image_size": 32, "patch_size": 8},
        image_token_index=260,
    )
    return (transformers.Mistral3ForConditionalGeneration if headed else transformers.Mistral3Model)(config)


def ministral3() -> Any:
    return transformers.Ministral3ForCausalLM(
        transformers.Ministral3Config(**_causal_sizes(2), pad_token_id=256, bos_token_id=257, eos_token_id=258)
    )


def pixtral_processor() -> Any:
    return transformers.PixtralProcessor(
        image_processor=transformers.PixtralImageProcessor(size={"longest_edge": 32}, patch_size=8),
        tokenizer=fast_tokenizer(),
        patch_size=8,
        chat_template=PLAIN_TEMPLATE,
    )


def gemma3() -> Any:
    text = {**_causal_sizes(2), "query_pre_attn_scalar": 8, "pad_token_id": 256, "bos_token_id": 257}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return transformers.Gemma3ForConditionalGeneration(
        transformers.Gemma3Config(
            text_config={**text, "eos_token_id": 258},
            vision_config={**vision, "image_size": 32, "patch_size": 8},
            mm_tokens_per_image=4,
            image_token_index=260,
            boi_token_index=261,
            eoi_token_index=262,
        )
    )
