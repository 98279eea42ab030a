"""Tiny random models, made on the spot: no files, no network, a second or less each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    BitImageProcessorPil,
    CLIPImageProcessorPil,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    SiglipImageProcessorPil,
)

from mmtune.core.errors import unknown_name

SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<pad>")  # ids 0 to 3; the 256 bytes follow
VOCAB_SIZE = len(SPECIAL_TOKENS) + 256
IMAGE_SIZE, PATCH_SIZE = 16, 8

_CHAT_TEMPLATE = (
    "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)

_COMMON: Mapping[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": VOCAB_SIZE,
    "unk_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
    "initializer_range": 0.1,  # ten times what the families use, so that random models have opinions
}
_MODERN = {**_COMMON, "intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512}
_EARLY = {**_COMMON, "max_position_embeddings": 512}
_GEMMA2 = {**_MODERN, "query_pre_attn_scalar": 8, "sliding_window": 64}

_ROPE = {"rope_type": "default", "rope_theta": 10000.0}

_LANGUAGE_MODELS: Mapping[
    str, Mapping[str, Any]
] = {  # what differs from _MODERN is spelled out, the rest is llama-like
    "gemma2": _GEMMA2,
    "gemma3_text": _GEMMA2,
    "cohere": {**_MODERN, "logit_scale": 1.0},
    "cohere2": {**_MODERN, "logit_scale": 1.0},
    "granite": {**_MODERN, "embedding_multiplier": 2.0, "residual_multiplier": 0.5},
    "apertus": {**_MODERN, "rope_parameters": _ROPE},
    "gpt_oss": {**_MODERN, "rope_parameters": _ROPE, "num_local_experts": 4, "num_experts_per_tok": 2},
    "mixtral": {**_MODERN, "num_local_experts": 4},
    "gpt_neox": {**_EARLY, "intermediate_size": 48},
    "persimmon": {**_EARLY, "intermediate_size": 48},
    "falcon": {**_EARLY, "ffn_hidden_size": 48},
    "gpt2": _EARLY,
    "gpt_bigcode": _EARLY,
    "gptj": {**_EARLY, "rotary_dim": 4},
    "codegen": {**_EARLY, "rotary_dim": 4},
    "gpt_neo": {**_EARLY, "attention_types": [[["global", "local"], 1]], "intermediate_size": 48},
    "opt": {**_EARLY, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "xglm": {**_EARLY, "ffn_dim": 48, "attention_heads": 4, "num_layers": 2, "d_model": 32},
    "biogpt": {**_EARLY, "intermediate_size": 48},
    "bloom": _COMMON,
    "mpt": {**_COMMON, "max_seq_len": 512},
}
_ENCODER = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}
_ENCODERS: Mapping[str, str] = {"clip": "clip_vision_model", "siglip": "siglip_vision_model", "dinov2": "dinov2"}
_PROCESSORS: Mapping[str, Any] = {
    "clip": CLIPImageProcessorPil,
    "siglip": SiglipImageProcessorPil,
    "dinov2": BitImageProcessorPil,
}


def tiny_lm(family: str = "llama", *, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A causal LM of two layers with random weights, in evaluation mode.

    Args:
        family: A ``model_type`` of transformers, for example ``qwen3``.
        overrides: Keys of its configuration.
    """
    config = AutoConfig.for_model(family, **{**_LANGUAGE_MODELS.get(family, _MODERN), **overrides})
    return _random(AutoModelForCausalLM, config, seed)


def tiny_vision(kind: str = "clip", *, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A vision encoder of three blocks that cuts pictures of 16 pixels into four patches, in evaluation mode.

    Raises:
        UsageError: ``kind`` is none of clip, siglip and dinov2.
    """
    if kind not in _ENCODERS:
        raise unknown_name("tiny encoder", kind, _ENCODERS)
    sizes = {**_ENCODER, "image_size": IMAGE_SIZE, "patch_size": PATCH_SIZE, "initializer_range": 0.1}
    return _random(AutoModel, AutoConfig.for_model(_ENCODERS[kind], **{**sizes, **overrides}), seed)


def tiny_image_processor(kind: str = "clip") -> Any:
    """The picture preparation that belongs to ``tiny_vision(kind)``."""
    square = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    if kind == "siglip":
        return SiglipImageProcessorPil(size=square)
    return _PROCESSORS[kind](size={"shortest_edge": IMAGE_SIZE}, crop_size=square)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens are single bytes, after ``<unk> <s> </s> <pad>``; it writes ``<s>`` first."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate((*SPECIAL_TOKENS, *alphabet))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    wrapped.chat_template = _CHAT_TEMPLATE
    return wrapped


def save_tiny_lm(folder: str | Path, family: str = "llama", *, seed: int = 0, **overrides: Any) -> str:
    """Write a tiny LM and its tokenizer as a base model's folder; returns the folder."""
    tiny_lm(family, seed=seed, **overrides).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def save_tiny_vision(folder: str | Path, kind: str = "clip", *, seed: int = 0, **overrides: Any) -> str:
    """Write a tiny encoder and its picture preparation as an encoder's folder; returns the folder."""
    tiny_vision(kind, seed=seed, **overrides).save_pretrained(folder)
    tiny_image_processor(kind).save_pretrained(folder)
    return str(folder)


def _random(factory: Any, config: Any, seed: int) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: PreTrainedModel = factory.from_config(config)
    return model.eval()
