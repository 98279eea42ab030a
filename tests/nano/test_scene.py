"""Scenes: determinism, distinct things, held-out pairs and right answers."""

import random

import pytest

from mmtune.nano.world.scene import (
    COLORS,
    HELD_OUT,
    NUMBERS,
    QUESTION_TYPES,
    SHAPES,
    TEMPLATES,
    Question,
    Scene,
    Thing,
    ask,
    caption,
    sample_scene,
)

SCENE = Scene((Thing("dinosaur", "green", "big", 1, 1), Thing("circle", "red", "small", 2, 0)))


def questions(scene: Scene, type: str, count: int = 60) -> list[Question]:
    rng = random.Random(5)
    return [ask(scene, rng, type) for _ in range(count)]


def test_same_seed_gives_the_same_scenes_and_questions() -> None:
    def draw() -> list[object]:
        rng = random.Random(11)
        scenes = [sample_scene(rng) for _ in range(20)]
        return [*scenes, *(ask(scene, rng, type) for scene in scenes for type in QUESTION_TYPES)]

    assert draw() == draw()


def test_things_of_a_scene_share_neither_shape_nor_color_nor_cell() -> None:
    rng = random.Random(0)
    for _ in range(500):
        things = sample_scene(rng, 1, 5).things
        for values in (
            [thing.shape for thing in things],
            [thing.color for thing in things],
            [(thing.row, thing.column) for thing in things],
        ):
            assert len(set(values)) == len(things)
        cells = [(thing.row, thing.column) for thing in things]
        assert cells == sorted(cells)


def test_held_out_pairs_cover_every_color_once_and_every_shape() -> None:
    assert sorted(color for color, _ in HELD_OUT) == sorted(COLORS)
    assert {shape for _, shape in HELD_OUT} == set(SHAPES)


@pytest.mark.parametrize("held_out", [False, True])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_held_out_is_obeyed(held_out: bool, number: int) -> None:
    rng = random.Random(1)
    scenes = [sample_scene(rng, number, number, held_out) for _ in range(200)]
    assert {scene.has_held_out for scene in scenes} == {held_out}
    assert {len(scene.things) for scene in scenes} == {number}


def test_number_of_things_is_even() -> None:
    rng = random.Random(2)
    counts = [len(sample_scene(rng, held_out=True).things) for _ in range(900)]
    assert all(counts.count(number) > 230 for number in (1, 2, 3))


def test_answers_are_those_of_the_thing_that_is_named() -> None:
    expected = {
        "color_of_shape": {"circle": "red", "dinosaur": "green"},
        "shape_of_color": {"red": "circle", "green": "dinosaur"},
        "size_of_shape": {"circle": "small", "dinosaur": "big"},
        "size_of_color": {"red": "small", "green": "big"},
        "position_of_shape": {"circle": "bottom left", "dinosaur": "middle center"},
        "position_of_color": {"red": "bottom left", "green": "middle center"},
    }
    for type, answers in expected.items():
        for question in questions(SCENE, type):
            (answer,) = [value for key, value in answers.items() if f" {key}" in question.text]
            assert question.answer == answer
    assert {question.answer for question in questions(SCENE, "count")} == {NUMBERS[2]}


def test_yesno_is_right_even_and_full_of_traps() -> None:
    asked = questions(SCENE, "yesno", 1000)
    for question in asked:
        there = "green dinosaur" in question.text or "red circle" in question.text
        assert question.answer == ("yes" if there else "no")
    no = [question for question in asked if question.answer == "no"]
    traps = [question for question in no if "green circle" in question.text or "red dinosaur" in question.text]
    assert 0.42 < len(no) / len(asked) < 0.58
    assert len(traps) >= 0.5 * len(no)


def test_caption_is_the_answer_to_describe() -> None:
    expected = "a big green dinosaur at the middle center and a small red circle at the bottom left."
    assert caption(SCENE) == expected
    assert {question.answer for question in questions(SCENE, "describe")} == {expected}


def test_every_phrasing_is_used_with_both_first_letters() -> None:
    for type in QUESTION_TYPES:
        texts = {question.text for question in questions(SCENE, type, 400)}
        assert {text[0].isupper() for text in texts} == {False, True}
        starts = {template.split("{")[0] for template in TEMPLATES[type]}
        assert all(any(text.lower().startswith(start.lower()) for text in texts) for start in starts)


def test_an_stands_before_orange() -> None:
    scene = Scene((Thing("star", "orange", "big", 0, 0),))
    assert any("an orange star" in question.text for question in questions(scene, "yesno"))
    assert not any("a orange" in question.text for question in questions(scene, "yesno"))
