"""A checkpoint's tokenizer files: found, and arranged so that they load with the ids of the training."""

from __future__ import annotations

import base64
import binascii
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor
from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerBase

from mmtune.convert.damage import damaged, read_json
from mmtune.convert.writer import write_json
from mmtune.core.errors import CheckpointError

NAMES = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
# Llama 3's own splitting of text before its byte pairs.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_NUM_SPECIAL = 256
_BEGIN, _END, _END_OF_TURN = "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"
_SPECIAL = {
    0: _BEGIN,
    1: _END,
    4: "<|finetune_right_pad_id|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    8: "<|eom_id|>",
    9: _END_OF_TURN,
    10: "<|python_tag|>",
}
_LLAMA_SETTINGS: Mapping[str, Any] = {
    "tokenizer_class": "LlamaTokenizer",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "add_bos_token": True,
    "add_eos_token": False,
    "clean_up_tokenization_spaces": False,
    "legacy": True,  # SentencePiece's own behaviour, with which Meta's models were trained
}


def find_tokenizer(folder: Path) -> Path | None:
    """The folder of a model's tokenizer: its own, or the one above it, where Meta's first releases keep it."""
    own = folder.resolve()
    for place in (folder, own.parent):
        if any((place / name).is_file() for name in NAMES[:2]):
            return place
    return None


def stage_tokenizer(source: Path, target: Path, *, legacy: bool = False, sentencepiece: bool = True) -> None:
    """Copy the tokenizer of a checkpoint into ``target``, in files that transformers reads.

    Args:
        legacy: Read the fast form as the legacy one, whatever ``tokenizer_config.json`` says.
        sentencepiece: Leave ``tokenizer.json`` out where the SentencePiece model itself is there.

    Raises:
        CheckpointError: A damaged file.
    """
    for name in NAMES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    model = target / "tokenizer.model"
    if model.is_file() and not (target / "tokenizer.json").is_file() and is_tiktoken(model):
        _write_byte_pairs(target, read_ranks(model))
        model.unlink()
        return
    bare = model.is_file() and not any(
        (target / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")
    )
    if bare:  # as Meta publishes it
        write_json(target / "tokenizer_config.json", _LLAMA_SETTINGS)
    if legacy:
        path = target / "tokenizer_config.json"
        write_json(path, {**(read_json(path) if path.is_file() else {}), "legacy": True})
    elif sentencepiece and model.is_file() and _is_llama(target / "tokenizer_config.json"):
        (target / "tokenizer.json").unlink(missing_ok=True)


def _is_llama(path: Path) -> bool:
    """Whether the SentencePiece model is what the tokenizer is read from: the config names no other class."""
    kind = read_json(path).get("tokenizer_class") if path.is_file() else None
    return kind in (None, "LlamaTokenizer", "LlamaTokenizerFast")


def with_control_tokens(tokenizer: PreTrainedTokenizerBase, names: Sequence[str]) -> PreTrainedTokenizerBase:
    """The tokenizer with these control tokens: behind all others if new, as they are in any text if known already."""
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in names], special_tokens=True)
    return tokenizer


def portable_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A tokenizer_config.json whose class every version of transformers knows."""
    kept = {key: value for key, value in settings.items() if key != "backend" and value is not None}
    return {**kept, "tokenizer_class": "PreTrainedTokenizerFast"}


def control_ids(folder: Path) -> dict[str, Any]:
    """BOS and EOS of a ``tokenizer.model`` for a config, as Meta's code takes them from it.

    Raises:
        CheckpointError: The file is neither SentencePiece nor ranks of byte pairs.
    """
    path = folder / "tokenizer.model"
    if not path.is_file():
        return {}
    if is_tiktoken(path):
        start = len(read_ranks(path))
        return {"bos_token_id": start, "eos_token_id": start + 1}
    try:
        model = SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError, ValueError) as error:
        raise damaged(path, error) from error
    return {"bos_token_id": model.bos_id(), "eos_token_id": model.eos_id()}


def is_tiktoken(path: Path) -> bool:
    """Whether a ``tokenizer.model`` is a text file of ranks, as Llama 3 has it, and no SentencePiece model."""
    with path.open("rb") as file:
        words = file.readline(4096).split()
    if len(words) != 2 or not words[1].isdigit():
        return False
    try:
        return bool(base64.b64decode(words[0], validate=True))
    except binascii.Error:
        return False


def read_ranks(path: Path) -> dict[bytes, int]:
    """Byte strings and their ranks, which are their ids.

    Raises:
        CheckpointError: A line that is no base64 and number, or ids that are not 0, 1, 2, and so on.
    """
    ranks: dict[bytes, int] = {}
    try:
        for line in path.read_bytes().splitlines():
            if line:
                token, rank = line.split()
                ranks[base64.b64decode(token, validate=True)] = int(rank)
    except (ValueError, binascii.Error) as error:
        raise damaged(path, error) from error
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise CheckpointError("The ranks of the tokenizer have gaps.", where=str(path), fix="copy the file again")
    return ranks


def _write_byte_pairs(folder: Path, ranks: Mapping[bytes, int]) -> None:
    tokenizer = byte_pair_tokenizer(ranks)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": _BEGIN,
        "eos_token": _END,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    write_json(folder / "tokenizer_config.json", settings)


def byte_pair_tokenizer(ranks: Mapping[bytes, int]) -> Tokenizer:
    """Llama 3's tokenizer from its ranks: byte pairs, 256 control tokens behind them, BOS before each text.

    Source:
        The tokenizer of Meta's Llama 3 release; merges follow from ranks, since a pair merges at its result's rank.
    """
    letters = _byte_letters()
    text = {token: "".join(letters[byte] for byte in token) for token in ranks}
    merges = []
    for token in sorted(ranks, key=lambda token: ranks[token]):
        halves = [(token[:place], token[place:]) for place in range(1, len(token))]
        known = [(left, right) for left, right in halves if left in ranks and right in ranks]
        known.sort(key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
        merges += [(text[left], text[right]) for left, right in known]
    vocabulary = {text[token]: rank for token, rank in ranks.items()}
    tokenizer = Tokenizer(BPE(vocabulary, merges, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(_special_names())
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_BEGIN} $A",
        pair=f"{_BEGIN} $A {_BEGIN}:1 $B:1",
        special_tokens=[(_BEGIN, len(ranks))],
    )
    return tokenizer


def _special_names() -> list[str]:
    names, reserved = [], 0
    for place in range(_NUM_SPECIAL):
        if place in _SPECIAL:
            names.append(_SPECIAL[place])
        else:
            names.append(f"<|reserved_special_token_{reserved}|>")
            reserved += 1
    return names


def _byte_letters() -> dict[int, str]:
    """GPT-2's printable letter for each byte: printable ones stand for themselves, others follow from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {
        **{byte: chr(byte) for byte in printable},
        **{byte: chr(256 + place) for place, byte in enumerate(others)},
    }
