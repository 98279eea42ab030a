"""Text to token ids with the characters that each token stands for, and tokenizers that keep their original ids."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import normalizers
from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils import cached_file

from mmtune.core.errors import CheckpointError, DataError, NotPossibleError

GUARD = "\ue000"  # private use: never part of real text, and no vocabulary merges it with its neighbours
_DOUBLING = "doubles_leading_space"  # key in tokenizer_config.json
_PROBES = ("Hello world", " two  spaces", "\nWhat?", "a b", "é你 x", "USER: yes.")


@dataclass(frozen=True, slots=True)
class Token:
    """A token and the characters of the text it was made from, ``text[start:end]``."""

    id: int
    start: int
    end: int


class PieceTokenizer:
    """Tokenise pieces of a prompt one by one, as the original systems do around each medium.

    Special tokens that a *template* writes become their ids. The same characters in *data* are kept apart by
    :meth:`guard`, so that a row cannot write control tokens.

    Args:
        tokenizer: A tokenizer of the ``tokenizers`` library, which knows the characters of each token.

    Raises:
        NotPossibleError: A tokenizer that cannot report characters.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not tokenizer.is_fast:
            raise NotPossibleError(
                f"{type(tokenizer).__name__} does not report which characters a token stands for.",
                fix="use a tokenizer that has a tokenizer.json",
            )
        self.tokenizer = tokenizer
        self._doubles = bool(tokenizer.init_kwargs.get(_DOUBLING, False))

    @cached_property
    def opening(self) -> list[int]:
        """The ids that the tokenizer puts before a text: its BOS, or nothing."""
        plain = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        full = self.tokenizer("a")["input_ids"]
        found = next((at for at in range(len(full)) if full[at : at + len(plain)] == plain), 0)
        return list(full[:found])

    @cached_property
    def control_texts(self) -> list[str]:
        """The texts that the tokenizer turns into control tokens, longest first."""
        added = {str(token) for token in self.tokenizer.added_tokens_decoder.values() if token.special}
        return sorted({*added, *self.tokenizer.all_special_tokens} - {""}, key=len, reverse=True)

    def guard(self, text: str) -> str:
        """The same text with a guard inside each control text, which keeps it ordinary.

        Raises:
            DataError: The text holds the guard character itself.
        """
        if GUARD in text:
            raise DataError("The text holds the private-use character U+E000.", fix="remove it from the text")
        for control in self.control_texts:
            if control in text:
                text = text.replace(control, control[0] + GUARD + control[1:])
        return text

    def tokens(self, piece: str) -> list[Token]:
        """The tokens of a piece of guarded text, without opening ids, and without the guards.

        Raises:
            DataError: A guard that this tokenizer does not keep apart from its neighbours.
        """
        shift = 1 if self._doubles and piece[:1] in (" ", "▁") else 0
        text = " " * shift + piece
        made = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        tokens = [
            Token(token_id, max(0, start - shift), max(0, end - shift))
            for token_id, (start, end) in zip(made["input_ids"], made["offset_mapping"], strict=True)
        ]
        return self._without_guards(piece, tokens) if GUARD in piece else tokens

    def _without_guards(self, piece: str, tokens: list[Token]) -> list[Token]:
        kept = []
        for token in tokens:
            covered = piece[token.start : token.end]
            if covered == GUARD:
                continue
            if GUARD in covered:
                raise DataError(
                    f"The text holds a control token's name near '{covered.replace(GUARD, '')}'.",
                    fix="rewrite the text",
                )
            kept.append(token)
        return kept


def load_tokenizer(source: str | Path, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Load a tokenizer so that it gives the ids its model was trained with.

    A ``tokenizer.json`` is taken as it is. A Llama ``tokenizer.model`` alone is read as the SentencePiece tokenizer of
    transformers 4.37 did: with ``legacy`` true, which a missing value means, each text after a special token begins
    with a word mark; with ``legacy`` false only the first one does.

    Args:
        source: A folder or a hub id.

    Raises:
        CheckpointError: No tokenizer there, or one whose ids cannot be reproduced.
    """
    name = str(source)
    try:
        if _file(name, "tokenizer.json", revision) is not None:
            return PreTrainedTokenizerFast.from_pretrained(name, revision=revision)
        model_file = _file(name, "tokenizer.model", revision)
        settings = _settings(_file(name, "tokenizer_config.json", revision))
        kind = str(settings.get("tokenizer_class") or "LlamaTokenizer")
        if model_file is not None and kind in ("LlamaTokenizer", "LlamaTokenizerFast"):
            return _sentencepiece_llama(name, model_file, settings, revision)
        return AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"No tokenizer can be read from '{name}': {reason}",
            where=name,
            fix="give a folder or hub id that holds tokenizer.json or tokenizer.model",
        ) from error


def _file(source: str, name: str, revision: str | None) -> str | None:
    if Path(source).is_dir():
        path = Path(source) / name
        return str(path) if path.is_file() else None
    return cached_file(source, name, revision=revision, _raise_exceptions_for_missing_entries=False)


def _settings(path: str | None) -> dict[str, Any]:
    return json.loads(Path(path).read_text(encoding="utf-8")) if path is not None else {}


def _sentencepiece_llama(
    source: str, model_file: str, settings: dict[str, Any], revision: str | None
) -> PreTrainedTokenizerBase:
    legacy = settings.get("legacy")
    legacy = True if legacy is None else bool(legacy)
    read = LlamaTokenizer.from_pretrained(source, revision=revision, legacy=legacy)
    backend = read.backend_tokenizer
    if legacy:  # SentencePiece's own dummy prefix: a mark before each text, even one that begins with a space
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        backend.pre_tokenizer = None
    tokens = {name: value for name, value in read.special_tokens_map.items() if isinstance(value, str)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=settings.get("model_max_length", read.model_max_length),
        padding_side=settings.get("padding_side", "right"),
        clean_up_tokenization_spaces=False,
        chat_template=read.chat_template,
        **{_DOUBLING: not legacy},
        **tokens,
    )
    _check_against(model_file, tokenizer)
    return tokenizer


def _check_against(model_file: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Compare with SentencePiece itself, so that an unusual model file is found here and not in a bad answer."""
    from sentencepiece import SentencePieceProcessor

    reference = SentencePieceProcessor(model_file=model_file)
    pieces = PieceTokenizer(tokenizer)
    for probe in _PROBES:
        expected, got = reference.encode(probe), [token.id for token in pieces.tokens(probe)]
        if expected != got:
            raise CheckpointError(
                f"The tokenizer cannot be reproduced: '{probe}' gives {got}, SentencePiece gives {expected}.",
                where=model_file,
                fix="save the tokenizer as tokenizer.json beside it",
            )
