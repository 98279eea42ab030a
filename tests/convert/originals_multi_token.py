"""multi_token checkpoints of any modalities and sizes, as its own code saves them, on tiny random parts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from mmtune.modalities import MODALITIES
from mmtune.testing.encoders import TINY_ENCODERS
from tests.tiny import save_tiny_lm, save_tiny_vision

INSTRUCTION = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ m.content + eos_token + ' ' }}{% endif %}{% endfor %}"
)
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def projector_state(width: int, hidden: int, layers: int, count: int | None) -> dict[str, Tensor]:
    """A patch projector, or ``count`` MLPs."""
    state = {}
    for start in [""] if count is None else [f"mlps.{index}." for index in range(count)]:
        for layer in range(layers):
            state[f"{start}{2 * layer}.weight"] = torch.randn(hidden, hidden if layer else width) * 0.3
            state[f"{start}{2 * layer}.bias"] = torch.randn(hidden) * 0.1
    return state


def make(
    folder: Path,
    projectors: Mapping[str, tuple[int, int | None]],
    *,
    family: str = "mistral",
    prefix: str = "base_model.model.model.",
    lora: bool = True,
    trained: bool = True,
    pickled: bool = False,
    dtype: torch.dtype = torch.float32,
    chat_template: str = INSTRUCTION,
) -> dict[str, Any]:
    """Write base, encoders and checkpoint; returns the options of a conversion.

    Args:
        projectors: Name in the checkpoint to (layers, MLPs or None for a patch projector).
    """
    torch.manual_seed(1)
    base = Path(
        save_tiny_lm(folder / "base", family, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1)
    )
    tokenizer = json.loads((base / "tokenizer_config.json").read_text())
    (base / "chat_template.jinja").unlink(missing_ok=True)
    (base / "tokenizer_config.json").write_text(json.dumps({**tokenizer, "chat_template": chat_template}))
    encoders, state = {}, {}
    hidden = json.loads((base / "config.json").read_text())["hidden_size"]
    for name, (layers, count) in projectors.items():
        place = folder / "towers" / name
        encoders[name] = save_tiny_vision(place) if name == "vision_clip" else TINY_ENCODERS[name].save(place)
        kind = MODALITIES.load("image" if name == "vision_clip" else name)
        made = projector_state(kind.from_source(encoders[name]).width, hidden, layers, count)
        state |= {f"{prefix}{name}_lmm_projector.{key}": value.to(dtype) for key, value in made.items()}
    checkpoint = folder / "checkpoint"
    checkpoint.mkdir()
    torch.save(state, checkpoint / "non_lora_trainables.bin")
    config = json.loads((base / "config.json").read_text())
    ours = {"model_type": f"{family}-lmm", "model_cls": "MistralLMMForCausalLM", "modality_builder": "anything_x8"}
    (checkpoint / "config.json").write_text(json.dumps({**config, **ours, "modalities": list(projectors)}))
    if lora:
        _save_lora(base, checkpoint, trained=trained, pickled=pickled)
    return {"llm": str(base), "encoders": encoders}


def _save_lora(base: Path, checkpoint: Path, *, trained: bool, pickled: bool) -> None:
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS)
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name and trained:
            parameter.data.normal_(0, 0.2)
    model.save_pretrained(checkpoint)
    if pickled:
        path = checkpoint / "adapter_model.safetensors"
        torch.save(load_file(path), checkpoint / "adapter_model.bin")
        path.unlink()


def edit_state(checkpoint: Path, change: Any) -> None:
    """Change the tensors of the projector's file."""
    path = checkpoint / "non_lora_trainables.bin"
    state = torch.load(path)
    change(state)
    torch.save(state, path)


def edit_lora(checkpoint: Path, change: Any) -> None:
    """Change the tensors of the LoRA's file."""
    path = checkpoint / "adapter_model.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path)


def same_tensors(left: Path, right: Path, names: Sequence[str]) -> bool:
    """Whether weight files hold the same tensors, bit by bit."""
    for name in names:
        read = load_file if name.endswith("safetensors") else torch.load
        first, second = read(left / name), read(right / name)
        if first.keys() != second.keys() or not all(torch.equal(first[key], second[key]) for key in first):
            return False
    return True
