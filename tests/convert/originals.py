"""Random checkpoints in the originals' on-disk layouts, of sizes that the golden cases do not have."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

GOLDEN = Path(__file__).parents[1] / "golden"
LLAVA, VLORA = GOLDEN / "llava" / "a", GOLDEN / "vlora" / "a"
TOKENIZER = ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.json")
LLM = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
}
CLIP = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "patch_size": 7,
    "image_size": 28,
}


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1))


def read_json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))


def language_state(vocabulary: int, mistral: bool = False, **sizes: Any) -> dict[str, Tensor]:
    torch.manual_seed(1)
    kind, model = (MistralConfig, MistralForCausalLM) if mistral else (LlamaConfig, LlamaForCausalLM)
    made = model(kind(vocab_size=vocabulary, initializer_range=0.2, **{**LLM, **sizes}))
    state = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    if sizes.get("tie_word_embeddings"):
        del state["lm_head.weight"]
    return state


def make_tower(folder: Path, **sizes: Any) -> dict[str, Tensor]:
    torch.manual_seed(2)
    folder.mkdir(parents=True, exist_ok=True)
    model = CLIPVisionModel(CLIPVisionConfig(**{**CLIP, **sizes}))
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    preparation = read_json(LLAVA / "vision_tower" / "preprocessor_config.json")
    edge = {**CLIP, **sizes}["image_size"]
    write_json(
        folder / "preprocessor_config.json",
        {**preparation, "size": {"shortest_edge": edge}, "crop_size": {"height": edge, "width": edge}},
    )
    prefix = "model.vision_tower.vision_tower.vision_model."
    return {prefix + name: tensor.clone() for name, tensor in model.state_dict().items()}


def projector_state(kind: str, width: int, hidden: int) -> dict[str, Tensor]:
    torch.manual_seed(3)
    if kind == "identity":
        return {}
    if kind == "linear":
        return {"weight": torch.randn(hidden, width) / 4, "bias": torch.randn(hidden)}
    state = {}
    for index in range(int(kind[3 : kind.index("x")])):
        state[f"{2 * index}.weight"] = torch.randn(hidden, hidden if index else width) / 6
        state[f"{2 * index}.bias"] = torch.randn(hidden)
    return state


def generator_state(
    types: str, *, d: int, visual: int, positions: int, depth: int, layers: int, outputs: int, separate: bool
) -> dict[str, Tensor]:
    torch.manual_seed(4)
    state = {
        "visual_proj.weight": torch.randn(d, visual) / 4,
        "visual_proj.bias": torch.randn(d),
        "pos_embed": torch.randn(1, positions, d),
        "Bs": torch.randn(1, len(types) * layers, outputs) / 8,
    }
    for prefix in [f"gen.{index}." for index in range(len(types))] if separate else ["gen."]:
        state[f"{prefix}queries"] = torch.randn(1, layers if separate else layers * len(types), d)
        for block in range(depth):
            name = f"{prefix}decoders.{block}."
            for attention in ("self_attn", "multihead_attn"):
                state[f"{name}{attention}.in_proj_weight"] = torch.randn(3 * d, d) / 6
                state[f"{name}{attention}.in_proj_bias"] = torch.randn(3 * d) / 6
                state[f"{name}{attention}.out_proj.weight"] = torch.randn(d, d) / 6
                state[f"{name}{attention}.out_proj.bias"] = torch.randn(d) / 6
            state |= {f"{name}linear1.weight": torch.randn(4 * d, d) / 6, f"{name}linear1.bias": torch.randn(4 * d)}
            state |= {f"{name}linear2.weight": torch.randn(d, 4 * d) / 9, f"{name}linear2.bias": torch.randn(d)}
            for norm in ("norm1", "norm2", "norm3"):
                state |= {f"{name}{norm}.weight": 1 + torch.randn(d) / 4, f"{name}{norm}.bias": torch.randn(d) / 4}
        state |= {f"{prefix}norm.weight": 1 + torch.randn(d) / 4, f"{prefix}norm.bias": torch.randn(d) / 4}
        state |= {
            f"{prefix}weights_head.weight": torch.randn(outputs, d) / 20,
            f"{prefix}weights_head.bias": torch.randn(outputs) / 9,
        }
    return state


def save_weights(folder: Path, state: Mapping[str, Tensor], *, shards: int = 1, pickled: bool = False) -> None:
    """``model.safetensors`` or ``pytorch_model.bin``, in one file or several with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    stem, suffix = ("pytorch_model", "bin") if pickled else ("model", "safetensors")
    names = sorted(state)
    pieces = [names[start::shards] for start in range(shards)]
    weight_map = {}
    for number, piece in enumerate(pieces, 1):
        file = f"{stem}.{suffix}" if shards == 1 else f"{stem}-{number:05d}-of-{shards:05d}.{suffix}"
        part = {name: state[name].contiguous() for name in piece}
        torch.save(part, folder / file) if pickled else save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(piece, file)
    if shards > 1:
        write_json(folder / f"{stem}.{suffix}.index.json", {"metadata": {}, "weight_map": weight_map})


def copy_tokenizer(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def make_llava(
    root: Path,
    *,
    projector: str = "mlp2x_gelu",
    llm: Mapping[str, Any] | None = None,
    clip: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    extra: Mapping[str, Tensor] | None = None,
    dtype: torch.dtype = torch.float32,
    mistral: bool = False,
    shards: int = 1,
    pickled: bool = False,
    inside: bool = True,
) -> Path:
    """A full LLaVA checkpoint in ``root/checkpoint`` with its tower in ``root/tower``."""
    sizes, vision = {**LLM, **(llm or {})}, {**CLIP, **(clip or {})}
    tower = make_tower(root / "tower", **(clip or {}))
    state = language_state(440, mistral, **(llm or {}))
    for layer in range(sizes["num_hidden_layers"]):
        state[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    state |= {
        f"model.mm_projector.{name}": value
        for name, value in projector_state(projector, vision["hidden_size"], sizes["hidden_size"]).items()
    }
    state |= {**(tower if inside else {}), **(extra or {})}
    folder = root / "checkpoint"
    save_weights(folder, {name: tensor.to(dtype) for name, tensor in state.items()}, shards=shards, pickled=pickled)
    base = read_json(LLAVA / "checkpoint" / "config.json")
    base |= {
        **sizes,
        "mm_projector_type": projector,
        "mm_vision_tower": "tower",
        "mm_hidden_size": vision["hidden_size"],
    }
    if mistral:
        base |= {"model_type": "llava_mistral", "sliding_window": None}
    write_json(folder / "config.json", {**base, **(config or {})})
    copy_tokenizer(LLAVA / "checkpoint", folder)
    return folder


def make_vlora(
    root: Path,
    *,
    types: str = "qkvom",
    separate: bool = True,
    every: int = 1,
    rank: int = 3,
    alpha: int | None = 6,
    depth: int = 1,
    llm: Mapping[str, Any] | None = None,
    config: Mapping[str, Any] | None = None,
    zero: bool = False,
    shards: int = 1,
    pickled: bool = False,
    adapter_only: bool = False,
) -> Path:
    """A VLoRA checkpoint in ``root/checkpoint`` or its generator in ``root/adapter``, the tower in ``root/tower``."""
    sizes = {**LLM, "num_key_value_heads": 6, **(llm or {})}
    tower = make_tower(root / "tower")
    hidden, layers = sizes["hidden_size"], sizes["num_hidden_layers"] // every
    positions = (CLIP["image_size"] // CLIP["patch_size"]) ** 2
    generator = generator_state(
        types,
        d=32,
        visual=CLIP["hidden_size"],
        positions=positions,
        depth=depth,
        layers=layers,
        outputs=hidden * rank,
        separate=separate,
    )
    if zero:
        generator["Bs"] = torch.zeros_like(generator["Bs"])
    named = {f"model.mm_projector.{name}": value for name, value in generator.items()}
    base = read_json(VLORA / "checkpoint" / "config.json")
    base |= {
        **sizes,
        "mm_vision_tower": "tower",
        "mm_hidden_size": CLIP["hidden_size"],
        "vlora_visual_dim": CLIP["hidden_size"],
    }
    base |= {
        "vlora_dim": 32,
        "vlora_depth": depth,
        "vlora_pos_num": positions,
        "vlora_llm_dim": hidden,
        "vlora_rank": rank,
    }
    base |= {"vlora_llm_depth": sizes["num_hidden_layers"], "vlora_type": types, "vlora_alpha": alpha}
    base |= {"weights_sep": separate, "skip_layers": every, "vocab_size": 384, **(config or {})}
    state = language_state(384, **sizes)
    if adapter_only:
        folder, llm_folder = root / "adapter", root / "llm"
        folder.mkdir(parents=True)
        torch.save(named, folder / "mm_projector.bin")
        save_weights(llm_folder, state)
        plain = {key: value for key, value in base.items() if not key.startswith(("mm_", "vlora_"))}
        write_json(llm_folder / "config.json", {**plain, "model_type": "llama", "architectures": ["LlamaForCausalLM"]})
        copy_tokenizer(VLORA / "checkpoint", llm_folder)
    else:
        folder = root / "checkpoint"
        save_weights(folder, {**state, **named, **tower}, shards=shards, pickled=pickled)
        copy_tokenizer(VLORA / "checkpoint", folder)
    write_json(folder / "config.json", base)
    return folder
