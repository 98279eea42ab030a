"""Ids of a SentencePiece Llama tokenizer equal those of the slow tokenizer that the originals used."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from sentencepiece import SentencePieceProcessor
from sentencepiece import sentencepiece_model_pb2 as proto

from mmtune.core.errors import CheckpointError, DataError
from mmtune.model.tokenization import GUARD, PieceTokenizer, load_tokenizer
from tests.model import golden
from tests.tiny import tiny_tokenizer

WORDS = [
    "USER:",
    "</s>",
    " ",
    "  ",
    "\n",
    "What",
    "red",
    "is",
    " color",
    "é",
    "你",
    "<s>",
    ".",
    "3",
    "\t",
    "[INST]",
    "▁",
]


def slow_tokenizer(model_file: Path, *, legacy: bool) -> Callable[[str], list[int]]:
    """What transformers 4.37's slow LlamaTokenizer does, written from its behaviour."""
    spec = proto.ModelProto()
    spec.ParseFromString(model_file.read_bytes())
    spec.normalizer_spec.add_dummy_prefix = legacy
    model = SentencePieceProcessor(model_proto=spec.SerializeToString())
    special = {"<unk>": 0, "<s>": 1, "</s>": 2}
    unknown = len(model.encode("<unk>"))

    def encode(text: str) -> list[int]:
        if legacy or not text.startswith(("▁", " ")):
            return model.encode(text)
        return model.encode("<unk>" + text)[unknown:]

    def tokenize(text: str) -> list[int]:
        if text and not legacy:
            text = "▁" + text.replace("▁", " ")
        ids: list[int] = []
        for piece in filter(None, re.split("(<unk>|<s>|</s>)", text)):
            ids += [special[piece]] if piece in special else encode(piece)
        lone_mark = not legacy and len(ids) > 1 and model.id_to_piece(ids[0]) == "▁" and ids[1] in special.values()
        return ids[1:] if lone_mark else ids

    return tokenize


def folder_with(case: Path, folder: Path, legacy: bool | None) -> Path:
    """A folder with tokenizer.model alone."""
    shutil.copy(case / "checkpoint" / "tokenizer.model", folder)
    settings = json.loads((case / "checkpoint" / "tokenizer_config.json").read_text())
    settings.pop("legacy")
    if legacy is not None:
        settings["legacy"] = legacy
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize("case", [golden.LLAVA, golden.VLORA])
@pytest.mark.parametrize("legacy", [True, False, None])
def test_sentencepiece_alone(tmp_path: Path, case: Path, legacy: bool | None) -> None:
    folder = folder_with(case, tmp_path, legacy)
    tokenizer = load_tokenizer(folder)
    pieces = PieceTokenizer(tokenizer)
    expected = slow_tokenizer(folder / "tokenizer.model", legacy=legacy is not False)
    tokenizer.save_pretrained(tmp_path / "saved")
    saved = PieceTokenizer(load_tokenizer(tmp_path / "saved"))
    chance = random.Random(0)
    for _ in range(400):
        text = "".join(chance.choice(WORDS) for _ in range(chance.randint(1, 9)))
        ids = [token.id for token in pieces.tokens(text)]
        assert ids == expected(text), text
        assert [token.id for token in saved.tokens(text)] == ids
    assert pieces.opening == saved.opening == [1]


def test_tokenizer_json_is_taken_as_it_is() -> None:
    tokens = PieceTokenizer(load_tokenizer(golden.VLORA / "checkpoint")).tokens("a</s>USER")
    assert tokens[1].id == 2
    assert [(token.start, token.end) for token in tokens[:3]] == [(0, 1), (1, 5), (5, 6)]


@pytest.mark.parametrize("case", [golden.LLAVA, golden.VLORA])
def test_control_tokens_in_data_stay_text(case: Path) -> None:
    pieces = PieceTokenizer(load_tokenizer(case / "checkpoint"))
    text = "say </s> and <s>, not <unk>"
    guarded = pieces.guard(text)
    assert GUARD in guarded
    tokens = pieces.tokens(guarded)
    assert not {token.id for token in tokens} & {0, 1, 2}
    assert pieces.tokenizer.decode([token.id for token in tokens]) == text
    assert pieces.guard("nothing special") == "nothing special"


def test_the_guard_itself_is_refused() -> None:
    pieces = PieceTokenizer(load_tokenizer(golden.LLAVA / "checkpoint"))
    with pytest.raises(DataError, match="private-use"):
        pieces.guard(f"a{GUARD}b")


def test_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No tokenizer"):
        load_tokenizer(tmp_path)


def test_control_tokens_in_data_stay_text_in_byte_level_tokenizers() -> None:
    pieces = PieceTokenizer(tiny_tokenizer())
    text = "é </s><s>!"
    tokens = pieces.tokens(pieces.guard(text))
    assert not {token.id for token in tokens} & set(pieces.tokenizer.all_special_ids)
    assert pieces.tokenizer.decode([token.id for token in tokens]) == text
