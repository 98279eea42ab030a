"""Answers do not depend on the company a prompt is in, and end where they should."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import StaticCache

from mmtune.core.errors import DataError, MMTuneError, NotPossibleError, ResourceError, UsageError
from mmtune.data.sample import Sample, conversation
from mmtune.model.batches import halving
from mmtune.model.build import build_model
from mmtune.model.decoding import Decoding, StopTexts, TextStream, row_seed
from mmtune.model.generation import answer, answers
from mmtune.model.seen import Seen
from tests.tiny import save_tiny_lm, save_tiny_vision


@pytest.fixture(scope="module", params=["llava", "vlora"])
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("tiny")
    base, vision = save_tiny_lm(folder / "lm"), save_tiny_vision(folder / "vision")
    settings = {"every": 1, "rank": 4, "dim": 16, "heads": 2, "depth": 1} if request.param == "vlora" else {}
    model, processor = build_model(base=base, encoders={"image": vision}, method=request.param, settings=settings)
    torch.manual_seed(0)
    with torch.no_grad():
        model.language_model.lm_head.weight[2] = 0  # rarely an EOS, so that answers are long
        for parameter in model.method.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model, processor


def rows(count: int = 7) -> list[Sample]:
    """Prompts of several lengths with no, one and two pictures."""
    found = []
    for index in range(count):
        pictures = [Image.new("RGB", (20, 16), (37 * index % 255, 90, 40 * k)) for k in range(index % 3)]
        found.append(conversation("why? " * (1 + index % 4), id=f"row{index}", media={"image": pictures}))
    return found


@pytest.mark.parametrize(
    "decoding",
    [
        Decoding(max_new_tokens=8),
        Decoding(max_new_tokens=8, num_beams=3),
        Decoding(max_new_tokens=8, temperature=1.0, top_p=0.9, seed=3),
    ],
    ids=["greedy", "beams", "sampling"],
)
def test_a_batch_answers_like_single_prompts_in_input_order(tiny: Any, decoding: Decoding) -> None:
    single = [answer(*tiny, [row], decoding)[0] for row in rows()]
    batched = answer(*tiny, rows(), decoding, batch_size=3)
    assert [found.id for found in batched] == [row.id for row in rows()]
    assert [found.token_ids for found in batched] == [found.token_ids for found in single]
    assert [found.prompt for found in batched] == [found.prompt for found in single]


def test_sampling_is_seeded(tiny: Any) -> None:
    def sampled(seed: int) -> list[list[int]]:
        decoding = Decoding(max_new_tokens=8, temperature=1.5, seed=seed)
        return [found.token_ids for found in answer(*tiny, rows(3), decoding)]

    assert sampled(1) == sampled(1)
    assert sampled(1) != sampled(2)
    assert row_seed(0, "a") != row_seed(0, "b")


def test_a_very_small_nucleus_is_greedy(tiny: Any) -> None:
    narrow = answer(*tiny, rows(4), Decoding(max_new_tokens=6, temperature=0.7, top_p=1e-6))
    greedy = answer(*tiny, rows(4), Decoding(max_new_tokens=6))
    assert [found.token_ids for found in narrow] == [found.token_ids for found in greedy]


@pytest.mark.parametrize("num_beams", [1, 2])
def test_logprobs_are_those_of_the_model(tiny: Any, num_beams: int) -> None:
    model, processor = tiny
    row = rows(3)[2]
    found = answer(model, processor, [row], Decoding(max_new_tokens=5, logprobs=True, num_beams=num_beams))[0]
    batch = processor.collate([processor.encode_prompt(row)])
    new = torch.tensor([found.token_ids])
    ids = torch.cat([batch["input_ids"], new], dim=1)
    with torch.no_grad():
        logits = model(ids, torch.ones_like(ids), media=batch["media"]).logits
    expected = logits[:, -new.shape[1] - 1 : -1].log_softmax(-1).gather(2, new[..., None])[0, :, 0]
    assert found.logprobs is not None
    assert torch.allclose(torch.tensor(found.logprobs), expected, atol=1e-4)


def test_a_stop_text_ends_the_answer_before_it(tiny: Any) -> None:
    full = answer(*tiny, rows(), Decoding(max_new_tokens=12))
    row = next(index for index, found in enumerate(full) if len(found.text) > 4)
    stop = full[row].text[2:4]
    pieces: list[str] = []
    found = answer(*tiny, [rows()[row]], Decoding(max_new_tokens=12, stop=(stop,)), on_token=pieces.append)[0]
    assert found.text == full[row].text[: full[row].text.index(stop)].strip()
    assert found.finish_reason == "stop"
    assert found.token_ids == full[row].token_ids[: found.new_tokens]
    assert found.new_tokens < full[row].new_tokens
    assert "".join(pieces) == found.text
    batched = answer(*tiny, rows(), Decoding(max_new_tokens=12, stop=(stop,)))[row]
    assert (batched.text, batched.token_ids) == (found.text, found.token_ids)


def test_streamed_pieces_are_the_answer(tiny: Any) -> None:
    pieces: list[str] = []
    found = answer(*tiny, rows(1), Decoding(max_new_tokens=10), on_token=pieces.append)[0]
    assert "".join(pieces) == found.text
    with pytest.raises(UsageError, match="single"):
        answer(*tiny, rows(2), on_token=pieces.append)


def test_eos_is_kept_in_the_ids_and_ends_the_answer(tiny: Any) -> None:
    model, processor = tiny
    usual = answer(model, processor, rows(1), Decoding(max_new_tokens=6))[0]
    assert (usual.finish_reason, usual.new_tokens) == ("length", 6)
    eos = usual.token_ids[2]
    config = model.language_model.generation_config
    before, config.eos_token_id = config.eos_token_id, [2, eos]
    try:
        found = answer(model, processor, rows(), Decoding(max_new_tokens=6))[0]
    finally:
        config.eos_token_id = before
    assert found.token_ids == usual.token_ids[: usual.token_ids.index(eos) + 1]
    assert found.finish_reason == "stop"


def test_an_overlong_prompt_is_an_error_with_the_numbers(tiny: Any) -> None:
    long = conversation("x" * 600, id="long")
    with pytest.raises(DataError, match="512") as caught:
        answer(*tiny, [long])
    assert "long" in str(caught.value.where)
    found = answer(*tiny, [long, *rows(2)], Decoding(max_new_tokens=3), on_error="record")
    assert [one.finish_reason for one in found] == ["error", "length", "length"]
    assert found[0].error is not None
    assert found[0].error["exit"] == 3


def test_a_prompt_near_the_limit_gets_what_is_left(tiny: Any) -> None:
    room = 512 - len(tiny[1].encode_prompt(conversation("")).input_ids)
    near = conversation("x" * (room - 4), id="near")
    found = answer(*tiny, [near, *rows(2)], Decoding(max_new_tokens=9))
    assert [one.new_tokens for one in found] == [4, 9, 9]


def test_gold_answers_are_not_given_away(tiny: Any) -> None:
    asked, told = conversation("what?", id="0"), conversation("what?", "a secret", id="0")
    decoding = Decoding(max_new_tokens=4)
    assert answer(*tiny, [told], decoding)[0].to_json() == answer(*tiny, [asked], decoding)[0].to_json()


def test_training_mode_survives(tiny: Any) -> None:
    model, processor = tiny
    model.train()
    answer(model, processor, rows(1), Decoding(max_new_tokens=2))
    assert model.training
    model.eval()


def test_answers_come_as_batches_finish(tiny: Any) -> None:
    stream = answers(*tiny, rows(5), Decoding(max_new_tokens=2), batch_size=2)
    assert sorted(index for index, _ in stream) == list(range(5))


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_new_tokens": 0},
        {"temperature": -1},
        {"temperature": float("inf")},
        {"top_p": 0},
        {"num_beams": 0},
        {"stop": ("",)},
    ],
)
def test_settings_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        Decoding(**wrong)
    assert caught.value.where in wrong


def test_memory_that_runs_out_halves_the_batch() -> None:
    sizes = []

    def work(part: Any) -> list[int]:
        sizes.append(len(part))
        if len(part) > 2:
            raise torch.OutOfMemoryError("no room")
        return [10 * item for item in part]

    assert list(halving([1, 2, 3, 4, 5], 5, work)) == [(item, 10 * item) for item in range(1, 6)]
    assert sizes == [5, 2, 2, 1]


def test_one_row_that_does_not_fit_is_an_error_or_a_record() -> None:
    def work(part: Any) -> list[int]:
        if 2 in part:
            raise MemoryError("no room")
        return list(part)

    with pytest.raises(ResourceError):
        list(halving([1, 2, 3], 1, work))

    def give_up(item: int, error: MMTuneError) -> int:
        return -item

    assert list(halving([1, 2, 3], 1, work, give_up)) == [(1, 1), (2, -2), (3, 3)]


def test_other_errors_are_not_taken_for_memory() -> None:
    def work(part: Any) -> list[int]:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes"):
        list(halving([1], 1, work))


def letters(ids: Any) -> str:
    return "".join("abcdefghij €"[index] for index in ids)


def test_a_stop_text_may_span_tokens_and_begin_early() -> None:
    stops = StopTexts(letters, ("cde", "de"))
    assert stops.cut([0, 1, 2, 3, 4, 5]) == ([0, 1, 2, 3, 4], "ab")
    assert stops.cut([0, 1]) is None
    assert stops(torch.tensor([[0, 1, 2], [2, 3, 4]]), None).tolist() == [False, True]


def test_a_stream_holds_back_what_may_become_a_stop_text() -> None:
    pieces: list[str] = []
    stream = TextStream(letters, pieces.append, ("cde",))
    stream.put(torch.zeros(1, 0))
    for token in (10, 0, 2, 10, 2, 3, 4, 5):  # " ac cdef"
        stream.put(torch.tensor([token]))
    stream.end()
    assert "".join(pieces) == "ac"
    assert pieces[0] == "a"


def test_a_second_question_about_the_same_picture_does_not_look_again(tiny: Any) -> None:
    picture, other = (Image.new("RGB", (20, 16), color) for color in ("red", "blue"))
    first, second, third = (
        conversation(text, id=text, media={"image": [image]})
        for text, image in (("why?", picture), ("what now?", picture), ("why?", other))
    )
    seen, decoding = Seen(), Decoding(max_new_tokens=6)
    for row, looks in ((first, 1), (second, 1), (third, 2), (conversation("no picture", id="t"), 2)):
        assert answer(*tiny, [row], decoding, seen=seen)[0].token_ids == answer(*tiny, [row], decoding)[0].token_ids
        assert seen.looks == looks


@pytest.mark.parametrize(
    ("settings", "positions", "in_order"),
    [({}, "training", False), ({}, "original", True), ({"routing": "batch0"}, "training", True)],
)
def test_batches_keep_the_order_of_the_input_where_a_sample_depends_on_its_company(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], positions: str, in_order: bool
) -> None:
    base, vision = save_tiny_lm(tmp_path / "lm"), save_tiny_vision(tmp_path / "vision")
    model, processor = build_model(base=base, encoders={"image": vision}, method="lavin", settings=settings)
    samples = [conversation("why? " * (1 + index % 4), id=str(index)) for index in range(6)]
    batches: list[list[str]] = []
    collate = processor.collate

    def watched(encoded: Any, **options: Any) -> Any:
        batches.append([one.id for one in encoded])
        return collate(encoded, **options)

    monkeypatch.setattr(processor, "collate", watched)
    found = answer(model, processor, samples, Decoding(max_new_tokens=2, positions=positions), batch_size=4)
    assert [one.id for one in found] == list("012345")
    assert (batches == [list("0123"), list("45")]) is in_order


def test_training_goes_on_after_answers(tmp_path: Path) -> None:
    """Answers are made in inference mode, whose tensors neither stay in the model nor reach who asked.

    Rotary frequencies that grow with the length are the kind of thing a model keeps from one call to the next.
    """
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    base = save_tiny_lm(tmp_path / "lm", max_position_embeddings=16, rope_parameters=rope)
    vision = save_tiny_vision(tmp_path / "vision")
    model, processor = build_model(base=base, encoders={"image": vision}, method="llava", settings={})
    encoded = processor.collate([processor.encode_prompt(rows(2)[1])], side="left")
    inputs = {key: encoded[key] for key in ("input_ids", "attention_mask", "media")}
    before = model.language_model.model.rotary_emb.inv_freq
    ids = model.eval().generate(**inputs, max_new_tokens=24, min_new_tokens=24, do_sample=False)
    after = model.language_model.model.rotary_emb.inv_freq
    assert after is not before, "the case does not test what it is for"
    after.mul_(1)  # as DDP does when it hands buffers around
    assert not any(tensor.is_inference() for tensor in (ids, *model.parameters(), *model.buffers()))
    model.set_trainable(["method", "language"])
    prompt = inputs["input_ids"]
    model.train()(**inputs, labels=prompt.masked_fill(prompt >= model.host.vocab_size, -100)).loss.backward()
    assert all(parameter.grad is not None for parameter in model.method.parameters())


@pytest.mark.parametrize("beams", [1, 3])
def test_what_generate_gives_may_be_trained_through_and_changed(tiny: Any, beams: int) -> None:
    model, _ = tiny
    asked = dict.fromkeys(("output_scores", "output_logits", "output_hidden_states"), True)
    options = {"max_new_tokens": 3, "num_beams": beams, "return_dict_in_generate": True}
    for wanted in ({}, asked):
        given = model.generate(torch.tensor([[1, 70, 80]]), **options, **wanted)
        tensors = [value for value in given.values() if isinstance(value, torch.Tensor)]
        tensors += given.logits or ()
        assert not any(tensor.is_inference() for tensor in tensors)
    weight = torch.ones(given.logits[0].shape[-1], requires_grad=True)
    (weight * given.logits[0]).sum().backward()
    given.scores[0].mul_(2)


def test_a_cache_lives_on_after_an_answer(tiny: Any) -> None:
    model, _ = tiny
    prompt, options = torch.tensor([[1, 70, 80]]), {"max_new_tokens": 3, "do_sample": False}
    first = model.generate(prompt, **options)
    cache = StaticCache(config=model.language_model.config, max_cache_len=16)
    for _ in range(2):
        assert torch.equal(model.generate(prompt, past_key_values=cache, **options), first)
        cache.reset()
    for generate in (model.generate, model.language_model.generate, model.generate):
        generate(prompt, cache_implementation="static", **options)


def test_an_assistant_model_is_refused(tiny: Any) -> None:
    model, _ = tiny
    with pytest.raises(NotPossibleError, match="embeddings"):
        model.generate(torch.tensor([[1, 70]]), assistant_model=model.language_model)
    assert model.generate(torch.tensor([[1, 70]]), prompt_lookup_num_tokens=2, max_new_tokens=3).shape[0] == 1
