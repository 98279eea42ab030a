"""The trainer's batches and its fast forward pass."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mmtune.nano.build.contexts import KINDS, Batch, BatchMaker
from mmtune.nano.build.reader import Reader, make_model
from mmtune.nano.build.vocabulary import EOS, Words, build_tokenizer


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Words:
    return Words(build_tokenizer(Path(tmp_path_factory.mktemp("tokenizer"))))


def maker(words: Words, seed: int = 3) -> BatchMaker:
    return BatchMaker(words, np.random.default_rng(seed))


def turns(batch: Batch, words: Words, row: int) -> list[tuple[str, str]]:
    """The questions and answers of a row, in words."""
    found = []
    for number in range(1, int(batch.segment[-1]) + 1):
        here = (batch.segment == number) & batch.valid[row]
        answer = here & (batch.scored[row] == 1)
        asked = here & (batch.scored[row] == 0)
        found.append((words.tokenizer.decode(batch.ids[row][asked]), words.tokenizer.decode(batch.ids[row][answer])))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_same_generator_gives_the_same_batch(words: Words, kind: str) -> None:
    first, second = (maker(words).batch(kind, 6, 4) for _ in range(2))
    np.testing.assert_array_equal(first.ids, second.ids)
    np.testing.assert_array_equal(first.bag_scale, second.bag_scale)


def test_text_batches_answer_what_they_tell(words: Words) -> None:
    batch = maker(words).batch("text", 40, 6)
    checked = 0
    for row in range(40):
        told = words.tokenizer.decode(batch.ids[row][(batch.segment == 0) & batch.valid[row]])
        for question, answer in turns(batch, words, row):
            assert question.startswith("\n")
            assert question.endswith(" ASSISTANT:")
            if "color" in question or "colour" in question or "shape" in question:
                assert answer in told
                checked += 1
            if question.lstrip().lower().startswith(("is there", "do you see", "can you see")):
                assert answer in (" yes", " no")
    assert checked > 20


def test_every_answer_ends(words: Words) -> None:
    batch = maker(words).batch("slots", 8, 5)
    assert (batch.ids[batch.scored == 2] == EOS).all()
    assert (batch.scored == 2).sum() == 8 * 5


def test_described_scenes_are_told_whole(words: Words) -> None:
    batch = maker(words).batch("grid", 8, 0)
    for row in range(8):
        ((_, answer),) = turns(batch, words, row)
        assert answer.count(" at the ") == batch.things[row]
        assert answer.endswith(".")


@pytest.mark.parametrize("turns_asked", [0, 4])
def test_every_scored_token_follows_a_token(words: Words, turns_asked: int) -> None:
    batch = maker(words).batch("text", 16, turns_asked)
    rows, places = np.nonzero(batch.scored)
    assert batch.valid[rows, places].all()
    assert batch.valid[rows, places - 1].all()


def test_inline_adds_only_to_the_words_of_turns(words: Words) -> None:
    batch = maker(words).batch("inline", 12, 5)
    touched = batch.bag_scale > 0
    assert touched.any()
    assert not touched[:, batch.segment == 0].any()
    keys = {*words.color, *words.shape, *(words.encode(word)[0] for word in (" many", "count", "Count"))}
    assert set(batch.ids[touched].tolist()) <= keys


@pytest.mark.parametrize("joined", [True, False])
def test_fast_pass_equals_transformers(words: Words, joined: bool) -> None:
    torch.manual_seed(0)
    model = make_model(len(words.tokenizer)).eval()
    batch = maker(words).batch("text", 3, 3, joined=joined)
    with torch.no_grad():
        for weight in model.model.layers.parameters():
            if weight.ndim == 2:
                weight.normal_(0, 0.08)
        found, _, _, (rows, places), _ = Reader(model, 0).logits(batch)
        for row in range(3):
            kept = batch.valid[row] & (np.ones_like(batch.segment, dtype=bool) if joined else batch.segment % 3 == 0)
            expected = model(torch.from_numpy(batch.ids[row][kept])[None]).logits[0]
            answers = np.nonzero(batch.scored[row][kept])[0]
            same = (rows == row) & torch.from_numpy(kept)[places]
            torch.testing.assert_close(found[same], expected[answers - 1], atol=0.06, rtol=0)
