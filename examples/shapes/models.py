"""The demo model's five components, at their full (tiny) size with fresh weights, and how they are saved.

The architecture is that of Wan 2.1 text-to-video; only the sizes differ.
"""

from __future__ import annotations

import copy
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKLWan, DiffusionPipeline, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import Unigram
from torch import nn
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

import clips
import factors
from language import Language, States, words

Z_DIM = 8
TEXT_DIM = 128
TEXT_LENGTH_MAX = 512  # what Wan's pipelines pad every prompt to
WORDS_MAX = 32  # the longest wording takes 17 tokens
FLOW_SHIFT = 3.0


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A Unigram tokenizer over the prompts' words, then letters, then bytes: any script tokenizes, nothing is learned.

    Each piece costs the same, so whole words win over letters; a byte costs most.
    """
    letters = "▁abcdefghijklmnopqrstuvwxyz0123456789.,;:!?'\"()-"
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocab += [(f"<0x{byte:02X}>", -20.0) for byte in range(256)]
    vocab += [(letter, -10.0) for letter in letters]
    vocab += [(f"▁{word}", -2.0) for word in words(clips.CLIP_WORDINGS)]
    tokenizer = Tokenizer(Unigram(vocab, unk_id=2, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=TEXT_LENGTH_MAX,
    )


def make_text_encoder(vocab_size: int) -> UMT5EncoderModel:
    """A UMT5 encoder of two layers, last_hidden_state [batch, length, TEXT_DIM]."""
    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=vocab_size,
            d_model=TEXT_DIM,
            d_kv=32,
            d_ff=256,
            num_layers=2,
            num_heads=4,
            relative_attention_num_buckets=16,
            relative_attention_max_distance=64,
            dropout_rate=0.0,
        )
    )


def tokenize(tokenizer: PreTrainedTokenizerFast, prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask, both [batch, WORDS_MAX]."""
    text = tokenizer(prompts, padding="max_length", max_length=WORDS_MAX, truncation=True, return_tensors="pt")
    return text.input_ids, text.attention_mask


def make_language() -> Language:
    """The text encoder, fresh; every token must tell."""
    tokenizer = make_tokenizer()
    encoder = make_text_encoder(len(tokenizer))

    def encode(prompts: list[str]) -> States:
        ids, mask = tokenize(tokenizer, prompts)
        states = encoder(ids, mask).last_hidden_state
        return States(states * mask[..., None], mask, mask)

    return Language(encoder, TEXT_DIM, encode, clips.CLIP_WORDINGS)


def _init_pointwise(conv: nn.Conv3d) -> None:
    """Kaiming weights for a shortcut; for halving or doubling the frames, a start that keeps or repeats each frame."""
    if conv.kernel_size[0] == 1:
        nn.init.kaiming_normal_(conv.weight)
        return
    nn.init.zeros_(conv.weight)
    channels = torch.arange(conv.out_channels)
    with torch.no_grad():
        conv.weight[channels, channels % conv.in_channels, -1] = 1.0


def make_vae() -> AutoencoderKLWan:
    """Wan's causal video VAE: [batch, 3, 1 + 4n, 8h, 8w] to [batch, Z_DIM, 1 + n, h, w].

    With PyTorch's own initialisation this stack of RMS norms and convolutions never leaves the mean colour. Kaiming
    weights with zero bias train; the small last layer starts inside `decode`'s clamp to [-1, 1], beyond which there is
    no gradient. Only the newest tap in time starts above zero, so the video model starts as an image model run on
    each frame, and what single frames teach it holds for clips.
    """
    vae = AutoencoderKLWan(
        base_dim=16,
        z_dim=Z_DIM,
        dim_mult=[1, 2, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * Z_DIM,
        latents_std=[1.0] * Z_DIM,
    )
    for module in vae.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]  # all of Wan's convolutions have a bias
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, nn.Conv3d) and module.kernel_size[1:] != (1, 1):
            nn.init.zeros_(module.weight)
            nn.init.kaiming_normal_(module.weight[:, :, -1])
        elif isinstance(module, nn.Conv3d):
            _init_pointwise(module)
    with torch.no_grad():
        vae.decoder.conv_out.weight.mul_(0.1)
    return vae


def make_transformer() -> WanTransformer3DModel:
    """Wan's denoiser, about 3.3 M parameters: six layers of width 192."""
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=6,
        attention_head_dim=32,
        in_channels=Z_DIM,
        out_channels=Z_DIM,
        text_dim=TEXT_DIM,
        freq_dim=128,
        ffn_dim=512,
        num_layers=6,
    )


def make_scheduler() -> UniPCMultistepScheduler:
    """Wan's own sampler: UniPC over flow sigmas."""
    return UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=FLOW_SHIFT, num_train_timesteps=1000
    )


def parameter_count(module: nn.Module) -> int:
    """Parameters in `module`."""
    return sum(math.prod(parameter.shape) for parameter in module.parameters())


def _settle(folder: Path) -> None:
    """Make the saved folder load alike everywhere: in transformers 4 and 5, in fp32 unless asked otherwise."""
    for name in ("model_index.json", "tokenizer/tokenizer_config.json"):
        path = folder / name
        path.write_text(path.read_text().replace("TokenizersBackend", "PreTrainedTokenizerFast"))
    for config in folder.glob("*/config.json"):
        text = config.read_text().replace('"dtype": "float16"', '"dtype": "float32"')
        config.write_text(re.sub(r' *"_name_or_path".*\n', "", text))  # where a part was loaded from
    for path in folder.rglob("*.safetensors"):
        path.chmod(0o644)


RECOMMENDED = {
    "defaults": {
        "height": clips.SIDE_PX,
        "width": clips.SIDE_PX,
        "num_frames": clips.FRAMES,
        "num_inference_steps": 16,
    },
    "frames_per_second": clips.FPS,
}
"""What Triptych takes where a request says nothing: the sizes that the model was trained on."""


def save(pipeline: DiffusionPipeline, folder: Path, recommended: dict[str, Any]) -> None:
    """Save `pipeline` as `folder`, in place of what was there, so that no reader ever sees half a model.

    `triptych.json` holds what is `recommended`, and the factors for previews.
    """
    fresh, stale = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    for leftover in (fresh, stale):
        shutil.rmtree(leftover, ignore_errors=True)
    pipeline.save_pretrained(fresh)
    preview = factors.fit(copy.deepcopy(pipeline.vae).float(), "num_frames" in recommended["defaults"])
    (fresh / "triptych.json").write_text(json.dumps(recommended | {"preview": preview}, indent=2) + "\n")
    _settle(fresh)
    if folder.exists():
        folder.rename(stale)
    fresh.rename(folder)
    shutil.rmtree(stale, ignore_errors=True)


def export(folder: Path, vae: nn.Module, text_encoder: nn.Module, transformer: nn.Module) -> None:
    """Save the pipeline in fp16 as `folder`; the modules are rounded to fp16 in place."""
    pipeline = WanPipeline(
        tokenizer=make_tokenizer(),
        text_encoder=text_encoder.half(),
        vae=vae.half(),
        scheduler=make_scheduler(),
        transformer=transformer.half(),
    )
    save(pipeline, folder, RECOMMENDED)
