"""One measurement in a process of its own: ``python case.py '{"base": "nano", "method": "llava", …}'`` prints JSON."""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoModelForCausalLM,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from mmtune.core.memory import memory_in_use, peak_memory_bytes
from mmtune.methods import METHODS
from mmtune.modalities.image import ImageModality
from mmtune.model.configuration import MMTuneConfig
from mmtune.model.modeling import MMTuneModel
from mmtune.model.sources import resolve_source
from mmtune.train.files import folder_bytes
from mmtune.train.presets import load_preset
from mmtune.train.rehearsal import prompt_flops

# The published generator (dim 512, depth 8, rank 64) has 12 % of a 7B model's parameters and would have three times
# those of a 100M model: it is made smaller with the language model.
SETTINGS_100M: Mapping[str, Mapping[str, Any]] = {
    "llava": {"projector": "mlp2x_gelu"},
    "multi_token": {"projectors": {"image": {"kind": "patch"}}},
    "lavin": {"adapter_dim": 8, "hidden": 128},
    "vlora": {"rank": 16, "dim": 256, "depth": 4, "heads": 8, "types": "qkvom", "every": 4, "alpha": 16},
}
LANGUAGE_100M = {
    "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12,
    "vocab_size": 20480, "tie_word_embeddings": True, "max_position_embeddings": 2048,
}  # fmt: skip
VISION_B16 = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "image_size": 224, "patch_size": 16,
}  # fmt: skip


def main() -> None:
    case = json.loads(sys.argv[1])
    torch.set_num_threads(case["threads"])
    load_before, before = psutil.getloadavg()[0], memory_in_use()
    with tempfile.TemporaryDirectory() as scratch:
        model = build(case["base"], case["method"], Path(scratch))
        batch = make_batch(model, case["batch_size"], case["text"])
        found = {"operations": count_operations(model, batch), **measure(model, batch, case)}
        found["peak_memory_bytes"] = peak_memory_bytes() - before
        found["checkpoint_bytes"] = checkpoint_bytes(model, Path(scratch) / "checkpoint")
    found["parameters"] = {
        "language": sum(p.numel() for p in model.language_model.parameters()),
        "encoder": sum(p.numel() for p in model.encoders.parameters()),
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }
    found["flops"] = flops(model, case)
    found["load"] = [round(load_before, 2), round(psutil.getloadavg()[0], 2)]
    print(json.dumps({**case, "settings": dict(settings_of(case["base"], case["method"])), **found}))


def settings_of(base: str, method: str) -> Mapping[str, Any]:
    """The settings of the method: for nano those of its own recipe."""
    if base == "nano":
        return load_preset(f"nano-{method}-finetune")["model"]["settings"]  # type: ignore[no-any-return]
    return SETTINGS_100M[method]


def image_settings(base: str, method: str) -> dict[str, Any]:
    """How the method wants pictures read, and for nano how its own recipe does."""
    wanted = dict(METHODS.load(method).modality_settings.get("image", {}))
    if base == "nano":
        encoders = load_preset(f"nano-{method}-finetune")["model"].get("encoders", {})
        wanted |= encoders.get("image", {}).get("settings", {})
    return wanted


def build(base: str, method: str, scratch: Path) -> MMTuneModel:
    """The model of a case, with only the method trained; random weights where the base is not nano."""
    torch.manual_seed(0)
    if base == "nano":
        vision = resolve_source("nano", "vision")
        lm = AutoModelForCausalLM.from_pretrained(resolve_source("nano", "llm"), dtype=torch.float32)
    else:
        CLIPVisionConfig(**VISION_B16).save_pretrained(scratch)
        side = VISION_B16["image_size"]
        CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side}).save_pretrained(
            scratch
        )
        vision = str(scratch)
        lm = LlamaForCausalLM(LlamaConfig(**LANGUAGE_100M))
    image = ImageModality.from_source(vision, settings=image_settings(base, method))
    encoder = image.load_encoder(torch.float32) if base == "nano" else CLIPVisionModel(image.encoder_config)
    config = MMTuneConfig(
        method=method, settings=dict(settings_of(base, method)), encoders={"image": {"source": vision}}
    )
    model = MMTuneModel(config, lm, {"image": encoder}, {"image": image})
    model.requires_grad_(False)
    model.set_trainable(["method"])
    return model


def make_batch(model: MMTuneModel, size: int, text: int) -> dict[str, Any]:
    """Rows of one random picture and so many random text tokens, of which the second half is learnt."""
    image = model.modalities["image"]
    slots = model.method.placeholders("image", image.num_positions)
    words = torch.randint(3, model.host.vocab_size, (size, text))
    picture = torch.full((size, slots), model.placeholder_ids["image"])
    ids = torch.cat([words[:, :1], picture, words[:, 1:]], dim=1)  # [B, slots + text]
    labels = ids.clone()
    labels[:, : slots + text // 2] = -100
    side = image.encoder_config.image_size
    media = {"pixel_values": torch.randn(size, 3, side, side), "owner": torch.arange(size)}
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels, "media": {"image": media}}


def measure(model: MMTuneModel, batch: dict[str, Any], case: Mapping[str, Any]) -> dict[str, Any]:
    """Times of a training step, and of reading a prompt with the encoder and without it."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    prompt = {key: value for key, value in batch.items() if key != "labels"}

    def step() -> None:
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    def read() -> None:
        with torch.no_grad():
            model(**prompt, use_cache=False)

    model.train()
    step_times = timed(step, case["steps"])
    model.eval()
    with_encoder = timed(read, case["steps"])
    image = model.modalities["image"]
    with torch.no_grad():
        seen = image.encode(model.encoders["image"], batch["media"]["image"])
    image.encode = lambda encoder, inputs: seen  # type: ignore[method-assign]
    return {
        "train_step": step_times,
        "forward": with_encoder,
        "forward_without_encoder": timed(read, case["steps"]),
        "positions": batch["input_ids"].shape[1],
    }


class _Counting(TorchDispatchMode):
    """Counts the tensor operations that run meanwhile, those of backward included."""

    number = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += 1
        return func(*args, **(kwargs or {}))


def count_operations(model: MMTuneModel, batch: dict[str, Any]) -> int:
    """Tensor operations of forward and backward, which no other program can change."""
    model.train()
    with _Counting() as counting:
        model(**batch).loss.backward()
    model.zero_grad(set_to_none=True)
    return counting.number


def timed(work: Callable[[], None], times: int, warm_up: int = 1) -> dict[str, float]:
    """Seconds of wall clock (median and least) and of processor time (least) for one call."""
    for _ in range(warm_up):
        work()
    walls, processor = [], []
    for _ in range(times):
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        walls.append(time.perf_counter() - wall)
        processor.append(time.process_time() - cpu)
    return {"median_s": statistics.median(walls), "least_s": min(walls), "processor_s": min(processor)}


def checkpoint_bytes(model: MMTuneModel, folder: Path) -> int:
    """What is written when this model is saved: the method alone."""
    model.save_pretrained(str(folder))
    return folder_bytes(folder)


def flops(model: MMTuneModel, case: Mapping[str, Any]) -> dict[str, float]:
    """Operations of reading one row, counted on empty tensors, encoder apart; the model loses its weights."""
    image = model.modalities["image"]
    vars(image).pop("encode", None)  # measured without it
    side = image.encoder_config.image_size
    language_side, encoder = prompt_flops(model.to("meta"), case["text"], {"image": Image.new("RGB", (side, side))})
    return {"language_side": language_side, "encoder": encoder}


if __name__ == "__main__":
    main()
