"""What a run's model costs in use, measured on the spot: one picture, one question, one machine for all."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mmtune.core.errors import MMTuneError
from mmtune.data.sample import conversation
from mmtune.evaluation.fingerprint import model_fingerprint
from mmtune.model.batches import to_device
from mmtune.model.build import load, load_model
from mmtune.train.rehearsal import prompt_flops

NEW_TOKENS = 32
ROUNDS = 3
"""At least so many rounds."""
SECONDS = 2.0
"""Small models run more rounds, for about so long: a round of milliseconds meets whatever else the machine does."""
PROMPT = "What is in this picture?"


@dataclass(frozen=True)
class Measured:
    """Figures of one model; None where there is nothing to measure, with the reason in ``notes``.

    Attributes:
        visual_tokens: Positions that the picture takes.
        prefill_flops: Operations of reading picture and question, encoders included.
        first_token_s: From opened media to the first token: encoders, perception and the prompt.
        tokens_per_second: Of the tokens after the first.
        weights: The model's fingerprint with the dtype and device that it was taken in, as evaluations have it.
    """

    visual_tokens: int | None = None
    prompt_tokens: int | None = None
    prefill_flops: float | None = None
    encoder_flops: float | None = None
    first_token_s: float | None = None
    tokens_per_second: float | None = None
    weights: tuple[str, str, str] | None = None
    notes: list[str] = field(default_factory=list)


def how(device: str, picture: str) -> dict[str, Any]:
    """How :func:`measure` measures, for the JSON and the footer of the page."""
    return {
        "prompt": PROMPT,
        "picture": picture,
        "new_tokens": NEW_TOKENS,
        "warm_up": 1,
        "rounds": f"at least {ROUNDS}, for {SECONDS:g} s",
        "statistic": "fastest round, wall-clock seconds, batch of 1, greedy, from opened media",
        "device": device,
        "threads": torch.get_num_threads(),
    }


def measure(model: Path, picture: Any, device: str = "auto") -> Measured:
    """Load a model, ask it once to warm up, then take the fastest of a few rounds."""
    try:
        network, processor = load(model, device=device)
        sample = conversation(PROMPT, media={"image": [picture]})
        encoded = processor.encode_prompt(sample)
        raw = network.modalities["image"].load(picture) if "image" in network.modalities else None
    except MMTuneError as error:
        return Measured(notes=[f"not measured: {error.message}"])
    if raw is None:
        return Measured(weights=_weights(network), notes=["not measured: the model has no pictures"])
    visual = network.method.placeholders("image", network.modalities["image"].positions(raw))
    batch = to_device(dict(processor.collate([encoded], side="left")), network.device)
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask", "media") if batch.get(key) is not None}
    seconds = _fastest(network, inputs)
    decoding = seconds[NEW_TOKENS] - seconds[1]
    length = len(encoded.input_ids)
    flops, notes = _prefill(model, length - visual, picture)
    return Measured(
        visual_tokens=visual,
        prompt_tokens=length,
        prefill_flops=sum(flops) if flops else None,
        encoder_flops=flops[1] if flops else None,
        first_token_s=seconds[1],
        tokens_per_second=(NEW_TOKENS - 1) / decoding if decoding > 0 else None,
        weights=_weights(network),
        notes=notes,
    )


def _weights(model: Any) -> tuple[str, str, str]:
    return model_fingerprint(model), str(model.dtype).removeprefix("torch."), model.device.type


def _prefill(model: Path, text: int, picture: Any) -> tuple[tuple[float, float] | None, list[str]]:
    try:
        return prompt_flops(load_model(model, device="meta"), text, {"image": picture}), []
    except MMTuneError as error:
        return None, [f"no prefill operations: {error.message}"]


def _fastest(model: Any, inputs: Mapping[str, Any]) -> dict[int, float]:
    """Seconds of answers with one and with many new tokens, which take turns so that they meet the same load."""
    found: dict[int, float] = {}
    turn, start = 0, time.perf_counter()
    pad = model.language_model.generation_config.pad_token_id or 0
    with torch.no_grad():
        while turn <= ROUNDS or time.perf_counter() - start < SECONDS:
            for count in (1, NEW_TOKENS):
                options = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False, "pad_token_id": pad}
                _wait(model.device)
                began = time.perf_counter()
                model.generate(**inputs, **options)
                _wait(model.device)
                taken = time.perf_counter() - began
                if turn:
                    found[count] = min(found.get(count, taken), taken)
            turn += 1
    return found


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
