"""The shipped nano language model: it reads, its tokenizer keeps every text, its chat template is exact."""

import random
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mmtune.nano.build.gate import ASSETS, KINDS, Teller, load, measure
from mmtune.nano.world.scene import COLORS, COLUMNS, QUESTION_TYPES, ROWS, SHAPES, SIZES, ask, sample_scene

pytestmark = pytest.mark.skipif(not (ASSETS / "model.safetensors").exists(), reason="the nano weights are not here")

SMALL_FLOOR = 0.9
"""Looser than the gate's own floor: 60 questions err by a few points."""


@pytest.fixture(scope="module")
def reader() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    return load(ASSETS)


@pytest.mark.parametrize("kind", KINDS)
def test_every_lookup_is_read(reader: tuple[PreTrainedModel, PreTrainedTokenizerBase], kind: str) -> None:
    figures = measure(*reader, questions=60, seed=3, kinds=(kind,))[kind]
    assert min(figures.values()) >= SMALL_FLOOR, figures


def test_generate_gives_the_answer_and_stops(reader: tuple[PreTrainedModel, PreTrainedTokenizerBase]) -> None:
    model, tokenizer = reader
    rng = random.Random(4)
    teller = Teller(model, tokenizer, rng)
    right = 0
    for index in range(24):
        scene = sample_scene(rng, 2, 3)
        question = ask(scene, rng, QUESTION_TYPES[index % 8])
        case = teller.case("text", scene, question)
        prompt = torch.tensor([case.ids[: case.start]])
        found = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=8)[0, case.start :]
        right += found.tolist() == case.ids[case.start :]
    assert right >= 22


def test_chat_template_is_the_prompt_of_training(reader: tuple[PreTrainedModel, PreTrainedTokenizerBase]) -> None:
    tokenizer = reader[1]
    turns = [
        {"role": "user", "content": "<image>\nwhat color is the star?"},
        {"role": "assistant", "content": "red"},
        {"role": "user", "content": "where is it?"},
    ]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert text == ("<s>USER: <image>\nwhat color is the star? ASSISTANT: red</s>USER: where is it? ASSISTANT:")
    system = tokenizer.apply_chat_template([{"role": "system", "content": "Be short."}, turns[2]], tokenize=False)
    assert system == "<s>Be short. USER: where is it? "
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids.count(tokenizer.eos_token_id) == 1


@pytest.mark.parametrize("text", ["", "plain words", " Ünï ☃ 汉字\t\n\n x", "emoji 🦕 and \x00 bytes", "a  b   c\r\n"])
def test_tokenizer_keeps_every_text(reader: tuple[PreTrainedModel, PreTrainedTokenizerBase], text: str) -> None:
    tokenizer = reader[1]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert tokenizer.unk_token_id not in ids


def test_words_of_the_world_are_single_tokens(reader: tuple[PreTrainedModel, PreTrainedTokenizerBase]) -> None:
    tokenizer = reader[1]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 0)
    for word in (*SHAPES, *COLORS, *SIZES, *ROWS, *COLUMNS, "yes", "no", "two"):
        assert len(tokenizer(f" {word}", add_special_tokens=False)["input_ids"]) == 1
    assert tokenizer("x")["input_ids"][0] == 1


def test_weights_are_small() -> None:
    assert Path(ASSETS / "model.safetensors").stat().st_size < 6_000_000
