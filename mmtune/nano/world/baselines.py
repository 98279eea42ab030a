"""Two readers to beat: one sees no picture, the other sees what occurs in it but not what belongs together."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from mmtune.nano.world.dataset import Row, question_keys, row_scene
from mmtune.nano.world.scene import Scene

Key = tuple[str, str | None, str | None]


def _summary(scores: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Average by type, and the types' mean under ``mean``."""
    by_type: dict[str, list[float]] = defaultdict(list)
    for type, score in scores:
        by_type[type].append(score)
    found = {type: sum(values) / len(values) for type, values in by_type.items()}
    return found | {"mean": sum(found.values()) / len(found) if found else 0.0}


def _question(row: Row) -> tuple[Key, Key, str]:
    """Return the key of a test row's question, its key without the words, and the answer."""
    type, answer = row["type"], row["conversations"][1]["value"]
    return (type, *question_keys(row["conversations"][0]["value"])), (type, None, None), answer


def blind_prior(train: Sequence[Row], test: Sequence[Row]) -> dict[str, float]:
    """Answer from the question's words alone, with what was most often right in training.

    Args:
        train: Rows of ``train.json``.
        test: Rows with one question each, as in ``test.json``.

    Returns:
        Share of right answers for each type of question, and under ``mean`` the mean over types.
    """
    answers: dict[Key, Counter[str]] = defaultdict(Counter)
    for row in train:
        turns = row["conversations"]
        for type, human, gpt in zip(row["types"], turns[::2], turns[1::2], strict=True):
            for key in {(type, *question_keys(human["value"])), (type, None, None)}:
                answers[key][gpt["value"]] += 1
    scores = []
    for row in test:
        key, plain, answer = _question(row)
        known = answers.get(key) or answers.get(plain)
        # Of equally frequent answers the first in the alphabet, so that the order of rows does not matter.
        guess = min(known, key=lambda text: (-known[text], text)) if known else None
        scores.append((row["type"], float(guess == answer)))
    return _summary(scores)


def _unbound_chance(scene: Scene, row: Row) -> float:
    """Return the chance that the unbound reader answers the row rightly."""
    (type, color, shape), _, answer = _question(row)
    things = scene.things
    if type == "count":
        return 1.0
    if type == "yesno":
        both = color in {thing.color for thing in things} and shape in {thing.shape for thing in things}
        return float((answer == "yes") == both)
    if type.startswith("size"):
        sizes = Counter(thing.size for thing in things)
        most = max(sizes.values())
        likely = [size for size, number in sizes.items() if number == most]
        return (answer in likely) / len(likely)
    return 1 / len(things)


def unbound_reader(test: Sequence[Row]) -> dict[str, float]:
    """Answer from the lists of shapes, colours, sizes and cells that occur, each list on its own.

    The reader counts without error, says yes to a pair when colour and shape both occur, names the more frequent
    size, and guesses evenly among the colours, shapes or places that occur. What is returned is its expected score,
    not a draw.

    Args:
        test: Rows with one question each and their ``scene``, as in ``test.json``.

    Returns:
        Expected share of right answers for each type of question, and under ``mean`` the mean over types.
    """
    return _summary((row["type"], _unbound_chance(row_scene(row), row)) for row in test)
