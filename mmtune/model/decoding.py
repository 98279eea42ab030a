"""How an answer is decoded: its settings, when it stops, and sampling that ignores the neighbours in a batch."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LogitsProcessor, LogitsProcessorList, RepetitionPenaltyLogitsProcessor, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from mmtune.core.errors import NotPossibleError, UsageError

Decode = Callable[[Sequence[int]], str]
_KEPT = (
    "past_key_values",
    "cache_implementation",
    "output_scores",
    "output_logits",
    "output_hidden_states",
    "output_attentions",
)  # options of transformers' generate after which tensors of its steps are used on
_REPLACEMENT = "�"  # what decoding gives for the first bytes of a character whose last ones are still to come


@dataclass(frozen=True, slots=True)
class Decoding:
    """Settings of decoding; the defaults are greedy.

    Args:
        max_new_tokens: Upper limit of new tokens.
        temperature: 0 is greedy; above it, tokens are sampled.
        top_p: Sample from the smallest set of tokens that holds this much probability.
        num_beams: Width of beam search.
        stop: An answer ends before the first of these texts.
        seed: Seed of sampling. Each row's noise depends on the seed and the row's id alone (not under beams).
        logprobs: Also give the log-probability of each new token under the model, before temperature and top_p.
        positions: ``training`` or ``original``: which position numbers new tokens get (matters for masked slots only).
        template: Conversation template; None is the model's own. ``raw`` uses the prompt as given.
        system: System text in place of the template's own.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    num_beams: int = 1
    stop: tuple[str, ...] = ()
    seed: int = 0
    logprobs: bool = False
    positions: str = "training"
    template: str | None = None
    system: str | None = None

    def __post_init__(self) -> None:
        for name, value, valid, fix in (
            ("max_new_tokens", self.max_new_tokens, self.max_new_tokens >= 1, "give 1 or more"),
            (
                "temperature",
                self.temperature,
                0 <= self.temperature < math.inf,
                "give 0 for greedy, or a positive number",
            ),
            ("top_p", self.top_p, 0 < self.top_p <= 1, "give a number above 0 and up to 1"),
            ("num_beams", self.num_beams, self.num_beams >= 1, "give 1 or more"),
            ("positions", self.positions, self.positions in ("training", "original"), "give training or original"),
            ("stop", self.stop, all(self.stop), "leave out the empty stop text"),
        ):
            if not valid:
                raise UsageError(f"{name} is {value!r}.", where=name, fix=fix)

    @property
    def sampled(self) -> bool:
        """Whether tokens are drawn at random."""
        return self.temperature > 0


class StopTexts(StoppingCriteria):
    """Ends each row whose new text holds one of the stop texts."""

    def __init__(self, decode: Decode, stop: Sequence[str]) -> None:
        self._decode, self._stop = decode, tuple(stop)
        # A token may hold less than a character, so the window of tokens is wider than the longest stop text.
        self._window = 4 * max(len(text.encode()) for text in stop) + 4

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        found = [self.first(row) is not None for row in input_ids[:, -self._window :].tolist()]
        return torch.tensor(found, dtype=torch.bool, device=input_ids.device)

    def first(self, ids: Sequence[int]) -> int | None:
        """Where the first stop text begins in the text of these tokens, or None."""
        text = self._decode(ids)
        places = [text.find(stop) for stop in self._stop if stop in text]
        return min(places) if places else None

    def cut(self, ids: Sequence[int]) -> tuple[list[int], str] | None:
        """The tokens up to the one that completed a stop text, and the text before it; None when none occurs."""
        for end in range(1, len(ids) + 1):
            if self.first(ids[max(0, end - self._window) : end]) is None:
                continue
            kept = list(ids[:end])
            place = self.first(kept)
            if place is not None:
                return kept, self._decode(kept)[:place]
        return None


class RowSampler(LogitsProcessor):
    """Samples by adding Gumbel noise to the scores, so that the largest of them is a draw from their softmax.

    Each row has a generator of its own: what is drawn for a row does not depend on the rows beside it.

    Source:
        Gumbel-max trick, Maddison et al. 2014 (arXiv 1411.0030).
    """

    def __init__(self, decoding: Decoding, row_ids: Sequence[str]) -> None:
        self._temperature, self._top_p = decoding.temperature, decoding.top_p
        self._generators = [torch.Generator().manual_seed(row_seed(decoding.seed, name)) for name in row_ids]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scaled = _top_p(scores.float() / self._temperature, self._top_p)  # [B, V]
        uniform = torch.stack([torch.rand(scores.shape[-1], generator=each) for each in self._generators])
        noise = -torch.log(-torch.log(uniform.clamp(1e-20, 1 - 1e-7)))
        return scaled + noise.to(scaled.device)


def row_seed(seed: int, row_id: str) -> int:
    """A 63-bit seed from the seed of the request and the id of the row."""
    digest = hashlib.sha256(f"{seed}\n{row_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def _top_p(scores: Tensor, top_p: float) -> Tensor:
    """Scores with everything outside the nucleus at minus infinity; the likeliest token always stays."""
    if top_p >= 1:
        return scores
    ordered, order = scores.sort(dim=-1, descending=True)
    probabilities = ordered.softmax(dim=-1)
    outside = probabilities.cumsum(dim=-1) - probabilities >= top_p
    return scores.masked_fill(outside.scatter(-1, order, outside), float("-inf"))


class TextStream(BaseStreamer):
    """Hands the text of one row on as it grows: whole characters only, and nothing that may become a stop text."""

    def __init__(self, decode: Decode, on_text: Callable[[str], None], stop: Sequence[str]) -> None:
        self._decode, self._on_text, self._stop = decode, on_text, tuple(stop)
        self._ids: list[int] = []
        self._given = 0
        self._prompt_seen = False

    def put(self, value: Tensor) -> None:
        if not self._prompt_seen:  # generate hands the prompt's ids over first
            self._prompt_seen = True
            return
        self._ids.extend(value.flatten().tolist())
        self._emit(final=False)

    def end(self) -> None:
        self._emit(final=True)

    def _emit(self, *, final: bool) -> None:
        text = self._decode(self._ids).lstrip()
        places = [text.find(stop) for stop in self._stop if stop in text]
        if places:
            text = text[: min(places)]
        elif not final:
            text = text[: len(text) - self._held_back(text)]
        text = text.rstrip()  # blanks at the end wait for the word that follows them
        if len(text) > self._given:
            self._on_text(text[self._given :])
            self._given = len(text)

    def _held_back(self, text: str) -> int:
        """How many characters at the end may still change or begin a stop text."""
        held = len(text) - len(text.rstrip(_REPLACEMENT))
        for stop in self._stop:
            for size in range(min(len(stop) - 1, len(text)), held, -1):
                if text.endswith(stop[:size]):
                    held = size
                    break
        return held


def with_own_penalty(options: Mapping[str, Any], default: float | None) -> dict[str, Any]:
    """Options of transformers' ``generate`` whose repetition penalty counts new tokens alone, whatever the padding.

    A prompt of embeddings has no ids to count. For those, transformers leaves out as many of the *new* tokens as a row
    has padding, so that an answer would depend on its neighbours.

    Args:
        default: The penalty of the language model's own generation settings.
    """
    penalty = options.get("repetition_penalty", default)
    if penalty is None or penalty == 1.0:
        return dict(options)
    processors = [RepetitionPenaltyLogitsProcessor(float(penalty)), *(options.get("logits_processor") or ())]
    return {**options, "repetition_penalty": 1.0, "logits_processor": LogitsProcessorList(processors)}


def generate_quickly(
    language_model: Any, inputs: Mapping[str, Tensor], options: Mapping[str, Any], *, inference: bool
) -> Any:
    """Transformers' ``generate`` in inference mode, a step of which takes an eighth less time (docs/adr/0017).

    Inference mode's tensors can neither be changed in place nor be trained through outside of it. None of them is left
    behind: what stays in the model and what is returned is ordinary. Where more than ids is asked for, or a cache is
    kept for the next call, gradients are merely off.

    Args:
        options: Of ``generate``. A logits processor that needs gradients turns them on by
            ``torch.inference_mode(False)``.
        inference: Whether inference mode is allowed.

    Raises:
        NotPossibleError: An ``assistant_model``, which would need a prompt of ids.
    """
    if options.get("assistant_model") is not None:
        raise NotPossibleError(
            "An assistant model reads ids, and here prompts are embeddings.",
            where="assistant_model",
            fix="leave assistant_model out; prompt_lookup_num_tokens needs none",
        )
    given = options.get("generation_config") or language_model.generation_config
    kept = given.cache_implementation is not None or any(options.get(name) not in (None, False) for name in _KEPT)
    with torch.inference_mode(inference and not kept):
        output = language_model.generate(**inputs, **options)
    for name, tensor in list(language_model.named_buffers()):  # such as frequencies of rotary positions
        if tensor.is_inference():
            owner, _, own = name.rpartition(".")
            setattr(language_model.get_submodule(owner), own, tensor.clone())
    if isinstance(output, Tensor):
        return _ordinary(output)
    for name, value in output.items():
        output[name] = _ordinary(value)
    return output


def _ordinary(value: Any) -> Any:
    """A tensor, or tensors in tuples, with those of inference mode cloned."""
    if isinstance(value, tuple):
        return tuple(_ordinary(part) for part in value)
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value


@contextmanager
def steps_lowered(language_model: nn.Module, shift: Tensor | None) -> Iterator[None]:
    """Lower the positions of the decoding steps within one ``generate``, not those of its prompt.

    Args:
        language_model: Takes ``position_ids`` as a keyword.
        shift: ``[B]``, by how much; None lowers nothing.
    """
    if shift is None:
        yield
        return

    def lower(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        positions = kwargs.get("position_ids")
        if kwargs.get("inputs_embeds") is not None or positions is None:
            return args, kwargs
        rows = shift.repeat_interleave(positions.shape[0] // shift.shape[0])  # beams stand beside each other
        return args, {**kwargs, "position_ids": positions - rows.unsqueeze(-1)}

    handle = language_model.register_forward_pre_hook(lower, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
