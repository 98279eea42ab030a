"""Random Llamas in Meta's layout: any number of shards, made from a model of transformers by its own tensors."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from tests.convert.originals import LLAVA

SIZES = {"dim": 48, "n_layers": 2, "n_heads": 6, "norm_eps": 1e-5, "vocab_size": -1}
FEED_FORWARD = 96


def language_model(vocabulary: int, kv_heads: int, **config: Any) -> LlamaForCausalLM:
    torch.manual_seed(5)
    made = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=SIZES["dim"],
        intermediate_size=FEED_FORWARD,
        num_hidden_layers=SIZES["n_layers"],
        num_attention_heads=SIZES["n_heads"],
        num_key_value_heads=kv_heads,
        rms_norm_eps=SIZES["norm_eps"],
        initializer_range=0.2,
        **config,
    )
    model = LlamaForCausalLM(made).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data += 0.2 * torch.randn_like(parameter)
    return model


def side_by_side(weight: Tensor, heads: int) -> Tensor:
    """Rotary pairs beside each other, as Meta has them."""
    rows, width = weight.shape
    return weight.view(heads, 2, rows // heads // 2, width).transpose(1, 2).reshape(rows, width)


def meta_state(model: LlamaForCausalLM) -> dict[str, Tensor]:
    state, config = model.state_dict(), model.config
    found = {"tok_embeddings.weight": state["model.embed_tokens.weight"], "norm.weight": state["model.norm.weight"]}
    if not config.tie_word_embeddings:
        found["output.weight"] = state["lm_head.weight"]
    for layer in range(config.num_hidden_layers):
        ours, theirs = f"model.layers.{layer}.", f"layers.{layer}."
        for kind, heads in (("q", config.num_attention_heads), ("k", config.num_key_value_heads)):
            weight = state[f"{ours}self_attn.{kind}_proj.weight"]
            found[f"{theirs}attention.w{kind}.weight"] = side_by_side(weight, heads)
        found[f"{theirs}attention.wv.weight"] = state[f"{ours}self_attn.v_proj.weight"]
        found[f"{theirs}attention.wo.weight"] = state[f"{ours}self_attn.o_proj.weight"]
        for number, kind in ((1, "gate"), (2, "down"), (3, "up")):
            found[f"{theirs}feed_forward.w{number}.weight"] = state[f"{ours}mlp.{kind}_proj.weight"]
        found[f"{theirs}attention_norm.weight"] = state[f"{ours}input_layernorm.weight"]
        found[f"{theirs}ffn_norm.weight"] = state[f"{ours}post_attention_layernorm.weight"]
    return found


def slices(state: Mapping[str, Tensor], shards: int, *, by_vocabulary: bool, kv_rows: int) -> list[dict[str, Tensor]]:
    """What each of the shards holds; key and value heads are repeated when there are fewer of them than shards."""
    made: list[dict[str, Tensor]] = []
    for shard in range(shards):
        part: dict[str, Tensor] = {}
        for name, tensor in state.items():
            kind = name.removesuffix(".weight").rpartition(".")[2]
            if "norm" in kind:
                part[name] = tensor.clone()
            elif kind in ("wk", "wv"):
                rows = max(tensor.shape[0] // shards, kv_rows)
                start = shard * tensor.shape[0] // shards // rows * rows
                part[name] = tensor[start : start + rows].clone()
            else:
                axis = 1 if kind in ("wo", "w2") or (kind == "tok_embeddings" and not by_vocabulary) else 0
                part[name] = tensor.chunk(shards, dim=axis)[shard].clone()
        part["rope.freqs"] = torch.ones(4)
        made.append(part)
    return made


def make_meta(
    folder: Path,
    *,
    vocabulary: int = 440,
    kv_heads: int | None = None,
    shards: int = 1,
    by_vocabulary: bool = False,
    params: Mapping[str, Any] | None = None,
    nested: bool = False,
    tokenizer: str | None = "beside",
    dtype: torch.dtype = torch.float32,
    **config: Any,
) -> LlamaForCausalLM:
    """Write a checkpoint and return the model of transformers that it holds."""
    folder.mkdir(parents=True)
    model = language_model(vocabulary, kv_heads or SIZES["n_heads"], **config)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype).float()
    state = {name: tensor.to(dtype) for name, tensor in meta_state(model).items()}
    parts = slices(state, shards, by_vocabulary=by_vocabulary, kv_rows=model.config.head_dim)
    for number, part in enumerate(parts):
        torch.save(part, folder / f"consolidated.{number:02d}.pth")
    stated = {**SIZES, **({"n_kv_heads": kv_heads} if kv_heads else {}), **(params or {})}
    (folder / "params.json").write_text(json.dumps({"model": stated} if nested else stated))
    if tokenizer == "beside":
        shutil.copyfile(LLAVA / "base_llm" / "tokenizer.model", folder / "tokenizer.model")
    elif tokenizer == "above":
        shutil.copyfile(LLAVA / "base_llm" / "tokenizer.model", folder.parent / "tokenizer.model")
    elif tokenizer == "ranks":
        write_ranks(folder / "tokenizer.model")
    return model


RANKS = [bytes([byte]) for byte in range(256)] + [b"th", b"the", b" the", b"er", b"in", b" in", b"ing", b" b", b"oa"]


def write_ranks(path: Path) -> None:
    path.write_bytes(b"".join(base64.b64encode(t) + b" %d\n" % rank for rank, t in enumerate(RANKS)))
