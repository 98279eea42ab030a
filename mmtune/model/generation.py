"""From samples to answers: batches of equal treatment, whatever the order, size and company a prompt comes in."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteriaList

from mmtune.core.errors import DataError, MMTuneError, UsageError
from mmtune.data.sample import Sample
from mmtune.model.batches import halving, to_device
from mmtune.model.decoding import Decoding, RowSampler, StopTexts, TextStream
from mmtune.model.seen import Seen

__all__ = ["Answer", "Decoding", "answer", "answers"]

_WINDOW = 16  # batches that are encoded ahead, to be sorted by length; bounds the memory that media take
OnError = Literal["raise", "record"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model said to one sample.

    Args:
        text: The new tokens decoded, special ones skipped, cut before a stop text, stripped.
        token_ids: All tokens produced, without BOS: the EOS, or the tokens that completed a stop text, are kept.
        logprobs: Log-probability of each of ``token_ids``, when asked for.
        finish_reason: ``stop`` (EOS or a stop text), ``length`` (the limit of new tokens or of positions) or ``error``.
        prompt: The rendered text that the model saw, one marker per item, without the BOS.
        prompt_tokens: Positions of the prompt, placeholders and BOS included.
        seconds: Time of the batch that the row was answered in, divided by its rows.
        error: The ``error`` object of a failed row; the text is empty then.
    """

    id: str
    text: str
    token_ids: list[int]
    logprobs: list[float] | None
    finish_reason: Literal["stop", "length", "error"]
    prompt: str
    prompt_tokens: int
    new_tokens: int
    seconds: float = 0.0
    error: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """The object of one row of a batch, and the base of ``generate``'s result."""
        found: dict[str, Any] = {"id": self.id, "text": self.text, "token_ids": self.token_ids}
        if self.logprobs is not None:
            found["logprobs"] = self.logprobs
        found |= {"finish_reason": self.finish_reason, "prompt": self.prompt, "prompt_tokens": self.prompt_tokens}
        found["new_tokens"] = self.new_tokens
        if self.error is not None:
            found["error"] = dict(self.error)
        return found


@dataclass(frozen=True, slots=True)
class _Prompt:
    """One sample made ready: its place in the input, its encoding and how many tokens it may get."""

    index: int
    sample: Sample
    text: str
    encoded: Any
    max_new_tokens: int

    @property
    def length(self) -> int:
        return len(self.encoded.input_ids)


def answer(
    model: Any,
    processor: Any,
    samples: Sequence[Sample],
    decoding: Decoding | None = None,
    *,
    batch_size: int = 8,
    on_token: Callable[[str], None] | None = None,
    on_error: OnError = "raise",
    seen: Seen | None = None,
) -> list[Answer]:
    """Answer samples, in their order. Arguments and errors as in :func:`answers`."""
    found: list[Answer | None] = [None] * len(samples)
    options: dict[str, Any] = {"on_token": on_token, "on_error": on_error, "seen": seen}
    for index, given in answers(model, processor, samples, decoding, batch_size=batch_size, **options):
        found[index] = given
    return [given for given in found if given is not None]


def answers(
    model: Any,
    processor: Any,
    samples: Sequence[Sample],
    decoding: Decoding | None = None,
    *,
    batch_size: int = 8,
    on_token: Callable[[str], None] | None = None,
    on_error: OnError = "raise",
    seen: Seen | None = None,
) -> Iterator[tuple[int, Answer]]:
    """Answer samples in batches of similar length, padded on the left; greedy ids are those of batches of one.

    With ``positions="original"``, or a method that couples the samples of a batch, batches keep the order of the input
    and ids may depend on them, as in the published code.

    Args:
        model: An ``MMTuneModel``.
        processor: Its ``MMTuneProcessor``.
        samples: Conversations that end with the user's turn; a last assistant turn is taken off.
        on_token: Called with each new piece of text; only for a single sample without beams.
        on_error: ``raise`` stops at the first row that cannot be answered; ``record`` answers it with its ``error``.
        seen: Keeps what was perceived from one call to the next, for a conversation about the same media.

    Yields:
        The index of each sample with its answer, batch by batch, not in input order.

    Raises:
        DataError: A prompt that cannot be encoded or does not fit into the model's positions.
        ResourceError: A single row does not fit into memory.
    """
    decoding = decoding or Decoding()
    if on_token is not None and (len(samples) != 1 or decoding.num_beams > 1):
        raise UsageError("Streaming needs a single prompt and no beams.", fix="use --no-stream")
    run = _Run(model, processor, decoding, on_token, seen or Seen())
    was_training = model.training
    model.eval()
    try:
        for start in range(0, len(samples), batch_size * _WINDOW):
            window = range(start, min(len(samples), start + batch_size * _WINDOW))
            yield from _answer_window(run, samples, window, batch_size, on_error)
    finally:
        model.train(was_training)


def _answer_window(
    run: _Run, samples: Sequence[Sample], window: range, batch_size: int, on_error: OnError
) -> Iterator[tuple[int, Answer]]:
    prompts: list[_Prompt] = []
    for index in window:
        try:
            prompts.append(run.prepare(index, samples[index]))
        except MMTuneError as error:
            if on_error == "raise":
                raise
            yield index, failed(samples[index].id, error)

    def give_up(prompt: _Prompt, error: MMTuneError) -> Answer:
        return failed(prompt.sample.id, error, prompt.text)

    # Rows near the limit of positions get fewer new tokens; only rows with the same limit share a batch.
    for limit in sorted({prompt.max_new_tokens for prompt in prompts}, reverse=True):
        alike = [p for p in prompts if p.max_new_tokens == limit]
        if not run.keeps_order:
            alike.sort(key=lambda p: (-p.length, p.index))
        for prompt, given in halving(alike, batch_size, run.generate, give_up if on_error == "record" else None):
            yield prompt.index, given


def failed(row_id: str, error: MMTuneError, prompt: str = "") -> Answer:
    """The answer of a row that could not be answered."""
    return Answer(row_id, "", [], None, "error", prompt, 0, 0, error=error.to_json())


class _Run:
    """One model with one set of decoding settings."""

    def __init__(
        self, model: Any, processor: Any, decoding: Decoding, on_token: Callable[[str], None] | None, seen: Seen
    ) -> None:
        self.model, self.processor, self.decoding, self.on_token, self.seen = model, processor, decoding, on_token, seen
        self.tokenizer = processor.tokenizer
        self.limit: int | None = model.host.max_positions
        # What the published code makes of a sample depends on its company: batches are then those of the input.
        self.keeps_order = decoding.positions == "original" or model.method.couples_samples
        added = self.tokenizer.get_added_vocab()
        stop = (*decoding.stop, *processor.template_of(decoding.template).stop)
        self.eos_ids = _eos_ids(model, self.tokenizer) | {added[text] for text in stop if text in added}
        self.stop = tuple(text for text in stop if text not in added)
        pad = self.tokenizer.pad_token_id
        self.pad_id = pad if pad is not None else min(self.eos_ids, default=0)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special ones skipped, not stripped."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    def prepare(self, index: int, sample: Sample) -> _Prompt:
        """Render and encode one sample, and settle how many tokens it may get."""
        sample = sample.without_answer()
        options = {"template": self.decoding.template, "system": self.decoding.system}
        text = self.processor.render_prompt(sample, **options)
        encoded = self.processor.encode_prompt(sample, **options)
        room = self.decoding.max_new_tokens
        if self.limit is not None:
            room = min(room, self.limit - len(encoded.input_ids))
        if room < 1:
            raise DataError(
                f"The prompt has {len(encoded.input_ids)} positions; the language model has {self.limit} "
                "(max_position_embeddings), and at least one is needed for the answer.",
                where=sample.source or sample.id,
                fix="shorten the text, give fewer media, or use a base with more positions",
            )
        return _Prompt(index, sample, text, encoded, room)

    @torch.no_grad()
    def generate(self, prompts: Sequence[_Prompt]) -> list[Answer]:
        """Answer one batch of prompts that share their limit of new tokens."""
        start = time.perf_counter()
        batch = dict(self.processor.collate([prompt.encoded for prompt in prompts], side="left"))
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask", "media") if batch.get(key) is not None}
        inputs = to_device(inputs, self.model.device)
        inputs["perception"] = self.seen.perceive(self.model, inputs.get("media"), len(prompts))
        seed = self.decoding.seed
        with torch.random.fork_rng(enabled=self.decoding.sampled and self.decoding.num_beams > 1):
            if self.decoding.sampled and self.decoding.num_beams > 1:
                torch.manual_seed(seed)
            output = self.model.generate(
                **inputs, positions=self.decoding.positions, **self._options(prompts), return_dict_in_generate=True
            )
        rows = output.sequences.tolist()
        logprobs = _logprobs(output) if self.decoding.logprobs else None
        share = (time.perf_counter() - start) / len(prompts)
        return [
            replace(self._read(prompt, row, logprobs[place] if logprobs is not None else None), seconds=share)
            for place, (prompt, row) in enumerate(zip(prompts, rows, strict=True))
        ]

    def _options(self, prompts: Sequence[_Prompt]) -> dict[str, Any]:
        decoding = self.decoding
        options: dict[str, Any] = {
            "max_new_tokens": prompts[0].max_new_tokens,
            "num_beams": decoding.num_beams,
            "do_sample": decoding.sampled and decoding.num_beams > 1,
            "output_logits": decoding.logprobs,
            "eos_token_id": sorted(self.eos_ids) or None,
            "pad_token_id": self.pad_id,
        }
        if options["do_sample"]:
            options |= {"temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": 0}
        elif decoding.sampled:
            options["logits_processor"] = LogitsProcessorList([RowSampler(decoding, [p.sample.id for p in prompts])])
        if self.stop:
            options["stopping_criteria"] = StoppingCriteriaList([StopTexts(self.decode, self.stop)])
        if self.on_token is not None:
            options["streamer"] = TextStream(self.decode, self.on_token, self.stop)
        return options

    def _read(self, prompt: _Prompt, row: Sequence[int], logprobs: Sequence[float] | None) -> Answer:
        ends = [place for place, token in enumerate(row) if token in self.eos_ids]
        ids = list(row[: ends[0] + 1] if ends else row)
        stopped = StopTexts(self.decode, self.stop).cut(ids) if self.stop else None
        ids, text = stopped or (ids, self.decode(ids))
        return Answer(
            id=prompt.sample.id,
            text=text.strip(),
            token_ids=ids,
            logprobs=list(logprobs[: len(ids)]) if logprobs is not None else None,
            finish_reason="stop" if ends or stopped else "length",
            prompt=prompt.text,
            prompt_tokens=prompt.length,
            new_tokens=len(ids),
        )


def _eos_ids(model: Any, tokenizer: Any) -> set[int]:
    """All tokens that end an answer: those of the generation config and the tokenizer's own."""
    given = model.language_model.generation_config.eos_token_id
    found = {given} if isinstance(given, int) else set(given or ())
    return found | ({tokenizer.eos_token_id} if tokenizer.eos_token_id is not None else set())


def _logprobs(output: Any) -> list[list[float]]:
    """Log-probabilities of the chosen tokens under the raw logits, float32, ``[B][T]``."""
    tokens: Tensor = output.sequences  # [B, T]
    beams = getattr(output, "beam_indices", None)  # [B, T], -1 after the end; None without beams
    columns = []
    for step, logits in enumerate(output.logits[: tokens.shape[1]]):  # each [B * k, V]
        rows = torch.arange(tokens.shape[0], device=logits.device) if beams is None else beams[:, step].clamp(min=0)
        chosen = logits[rows].float().log_softmax(dim=-1).gather(1, tokens[:, step : step + 1].to(logits.device))
        columns.append(chosen[:, 0].tolist())
    return [list(row) for row in zip(*columns, strict=True)]
