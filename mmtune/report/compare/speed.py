"""What a run's model costs in use, measured on the spot: one picture, one question, one machine for all."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch

from mmtune.core.errors import MMTuneError, NotPossibleError
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
        visual_tokens: Positions that the picture takes and the text attends to.
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
        "rounds": f"at least {ROUNDS}, for {SECONDS:g} s a model; models that fit into memory together take turns",
        "statistic": "fastest round, wall-clock seconds, batch of 1, greedy, from opened media",
        "device": device,
        "threads": torch.get_num_threads(),
    }


def measure(models: Mapping[str, Path], picture: Any, device: str = "auto") -> dict[str, Measured]:
    """Load models, ask each once to warm up, then take its fastest round.

    Small models are in memory together and take turns, so that they meet the same load; large ones follow each other.
    """
    found: dict[str, Measured] = {}
    waiting: dict[str, _Contestant] = {}
    for name, folder in models.items():
        try:
            waiting[name] = _Contestant(folder, picture, device)
        except MMTuneError as error:
            found[name] = Measured(notes=[f"not measured: {error.message}"])
            continue
        if not waiting[name].fits(len(models)):
            found |= _finish(waiting)
    found |= _finish(waiting)
    return {name: found[name] for name in models}


class _Contestant:
    """A model with the picture and the question in its memory."""

    def __init__(self, folder: Path, picture: Any, device: str) -> None:
        self.folder, self.picture = folder, picture
        self.model, processor = load(folder, device=device)
        if "image" not in self.model.modalities:
            raise NotPossibleError("the model has no pictures")
        raw = self.model.modalities["image"].load(picture)
        self.visual = self.model.method.placeholders("image", self.model.modalities["image"].positions(raw))
        encoded = processor.encode_prompt(conversation(PROMPT, media={"image": [picture]}))
        self.length = len(encoded.input_ids)
        batch = to_device(dict(processor.collate([encoded], side="left")), self.model.device)
        self.inputs = {
            key: batch[key] for key in ("input_ids", "attention_mask", "media") if batch.get(key) is not None
        }
        self.seconds: dict[int, float] = {}

    def fits(self, times: int) -> bool:
        """Whether so many like it are well within the memory that is left."""
        size = sum(parameter.numel() * parameter.element_size() for parameter in self.model.parameters())
        device = self.model.device
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
        return size * times < free / 4

    def answer(self, count: int) -> None:
        """Answer with so many tokens, and keep the time if it is the shortest."""
        pad = self.model.language_model.generation_config.pad_token_id or 0
        options = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False, "pad_token_id": pad}
        self._wait()
        began = time.perf_counter()
        self.model.generate(**self.inputs, **options)
        self._wait()
        taken = time.perf_counter() - began
        self.seconds[count] = min(self.seconds.get(count, taken), taken)

    def _wait(self) -> None:
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)

    def measured(self) -> Measured:
        """What came out."""
        decoding = self.seconds[NEW_TOKENS] - self.seconds[1]
        flops, notes = _prefill(self.folder, self.length - self.visual, self.picture)
        return Measured(
            visual_tokens=0 if self.model.method.masked_slots else self.visual,
            prompt_tokens=self.length,
            prefill_flops=sum(flops) if flops else None,
            encoder_flops=flops[1] if flops else None,
            first_token_s=self.seconds[1],
            tokens_per_second=(NEW_TOKENS - 1) / decoding if decoding > 0 else None,
            weights=_weights(self.model),
            notes=notes,
        )


def _finish(waiting: dict[str, _Contestant]) -> dict[str, Measured]:
    """Rounds of those that wait, until there were enough; they are let go after it."""
    turn, start = 0, time.perf_counter()
    with torch.no_grad():
        while waiting and (turn <= ROUNDS or time.perf_counter() - start < SECONDS * len(waiting)):
            for one in waiting.values():
                for count in (1, NEW_TOKENS):
                    one.answer(count)
            if turn == 0:
                for one in waiting.values():
                    one.seconds.clear()  # a warm-up
            turn += 1
    found = {name: one.measured() for name, one in waiting.items()}
    waiting.clear()
    return found


def _weights(model: Any) -> tuple[str, str, str]:
    return model_fingerprint(model), str(model.dtype).removeprefix("torch."), model.device.type


def _prefill(model: Path, text: int, picture: Any) -> tuple[tuple[float, float] | None, list[str]]:
    try:
        return prompt_flops(load_model(model, device="meta"), text, {"image": picture}), []
    except MMTuneError as error:
        return None, [f"no prefill operations: {error.message}"]
