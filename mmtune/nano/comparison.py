"""What a trained method knows of the nano world, beside three readers that do not see."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmtune.data.dataset import load_samples
from mmtune.data.sample import Media, Sample, Text, Turn
from mmtune.evaluation.run import evaluate
from mmtune.model.build import load
from mmtune.model.decoding import Decoding
from mmtune.nano.world.baselines import blind_prior, unbound_reader
from mmtune.nano.world.dataset import Row, row_scene
from mmtune.nano.world.draw import draw_scene
from mmtune.nano.world.scene import Scene, caption
from mmtune.report.gallery import Shown, pick, show, spread
from mmtune.train.display import Display

SPLITS = ("test", "test_heldout")
BATCH_SIZE = 64
DECODING = Decoding(max_new_tokens=8)  # the longest right answer has two words and an EOS
DESCRIBING = Decoding(max_new_tokens=64)
DESCRIBE = "What is in this picture?"
_DESCRIBED = 40  # test pictures that are also described in full
_SHOWN = 12
_SHOWN_DESCRIBED = 4


class Comparison:
    """Measures models on one drawn world.

    Args:
        world: Folder that ``write_dataset`` wrote.
        evaluations: Folder for the answers about both test splits, as ``mmtune eval`` would write them.
        controls: Folder for answers about empty pictures, and for descriptions. In both, what was answered before is
            not asked again.
    """

    def __init__(self, world: Path, evaluations: Path, controls: Path, display: Display) -> None:
        self.world, self.evaluations, self.controls, self.display = world, evaluations, controls, display

    def measure(self, source: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        """Scores of a model and of the readers to beat, on known combinations and, under ``held_out``, on new ones.

        Returns:
            ``{"exact_match", "contains", "types", "n", "held_out", "describe"}``, means over question types, and
            ``{"question_words", "blank_picture", "unbound", "types", "held_out"}``.
        """
        model, processor = load(source)
        train = _rows(self.world / "train.json")
        found = []
        for split in SPLITS:
            samples = list(load_samples(self.world / f"{split}.json"))
            asked = self.world / f"{split}.json"
            seen = self._ask(model, processor, asked, self.evaluations / split, name=str(source))
            blanked = [_blanked(one, self._blank()) for one in samples]
            blank = self._ask(model, processor, blanked, self.controls / f"{split}_blank")
            rows = _rows(self.world / f"{split}.json")
            found.append((_summary(seen), _lines(train, rows, blank)))
            self.display.note(f"{split}: {100 * found[-1][0]['exact_match']:.1f} % exactly right")
        folder = self.controls / "describe"
        self._ask(model, processor, descriptions(self.world), folder, DESCRIBING)
        told = [same_things(item) for item in _items(folder / "items.jsonl").values()]
        (scores, baselines), (held_out, held_out_lines) = found
        described = {"same_things": sum(told) / len(told), "n": len(told)}
        return {**scores, "held_out": held_out, "describe": described}, {**baselines, "held_out": held_out_lines}

    def _ask(
        self,
        model: Any,
        processor: Any,
        data: Path | Sequence[Sample],
        output: Path,
        decoding: Decoding = DECODING,
        name: str | None = None,
    ) -> dict[str, Any]:
        result = evaluate(
            model,
            processor,
            benchmark="qa",
            data=data,
            output=output,
            batch_size=BATCH_SIZE,
            decoding=decoding,
            model_name=name,
        )
        scores: dict[str, Any] = result["scores"]
        return scores | {"n": result["n"]}

    def _blank(self) -> str:
        """A picture of an empty scene."""
        path = self.world / "blank.png"
        if not path.is_file():
            draw_scene(Scene(()), seed=0).save(path)
        return str(path)


def descriptions(world: Path) -> list[Sample]:
    """Some test pictures, to be described whole."""
    rows = _rows(world / "test.json")
    samples = load_samples(world / "test.json")
    found = []
    for index in spread(_DESCRIBED, len(samples)):
        sample, gold = samples[index], caption(row_scene(rows[index]))
        asked = Turn("user", (*sample.media, Text(f"\n{DESCRIBE}")))
        found.append(Sample(sample.id, (asked, Turn("assistant", (Text(gold),))), sample.source))
    return found


def same_things(item: Mapping[str, Any]) -> bool:
    """Whether a description names exactly the things of the right one, in any order."""
    said, right = (sorted(str(item[key]).strip().rstrip(".").split(" and ")) for key in ("prediction", "gold"))
    return said == right


def _summary(scores: Mapping[str, Any]) -> dict[str, Any]:
    types = {name: found["exact_match"] for name, found in scores["types"].items()}
    return {**scores["mean_over_types"], "types": types, "n": scores["n"]}


def _lines(train: Sequence[Row], test: Sequence[Row], blank: Mapping[str, Any]) -> dict[str, Any]:
    """The three lines, as means over types and by type."""
    words, unbound = blind_prior(train, test), unbound_reader(test)
    blanks = {name: found["exact_match"] for name, found in blank["types"].items()}
    return {
        "question_words": words.pop("mean"),
        "blank_picture": blank["mean_over_types"]["exact_match"],
        "unbound": unbound.pop("mean"),
        "types": {"question_words": words, "blank_picture": blanks, "unbound": unbound},
    }


def _blanked(sample: Sample, picture: str) -> Sample:
    """The same row with an empty picture in place of its own."""
    turns = tuple(
        Turn(turn.role, tuple(Media(p.modality, picture) if isinstance(p, Media) else p for p in turn.parts))
        for turn in sample.turns
    )
    return Sample(sample.id, turns, sample.source, sample.extra)


def _rows(path: Path) -> list[Row]:
    found: list[Row] = json.loads(path.read_text(encoding="utf-8"))
    return found


def gallery(world: Path, answers: Mapping[str, tuple[Path, Path]], label: Callable[[str], str]) -> list[Shown]:
    """Cards of test pictures with the answers of all methods; wrong ones are shown more often than they occur.

    Args:
        answers: Method to the folders of evaluations and controls that its :class:`Comparison` wrote.
        label: How a method is spelt.
    """
    samples = load_samples(world / "test.json")
    asked = {name: _items(folder / "test" / "items.jsonl") for name, (folder, _) in answers.items()}
    told = {name: _items(folder / "describe" / "items.jsonl") for name, (_, folder) in answers.items()}
    several = [sample for sample in descriptions(world) if " and " in (sample.answer or "")]
    return [
        *_cards(several, told, label, same_things, _SHOWN_DESCRIBED),
        *_cards(samples, asked, label, lambda item: bool(item["exact_match"]), _SHOWN),
    ]


def _cards(
    samples: Sequence[Sample],
    items: Mapping[str, Mapping[str, Any]],
    label: Callable[[str], str],
    is_right: Callable[[Mapping[str, Any]], bool],
    count: int,
) -> list[Shown]:
    rows = [sample for sample in samples if all(sample.id in found for found in items.values())]
    wrong = [not all(is_right(found[sample.id]) for found in items.values()) for sample in rows]
    cards = []
    for place in pick(rows, wrong, count):
        found = {label(name): given[rows[place].id] for name, given in items.items()}
        said = {name: item["prediction"] for name, item in found.items()}
        cards.append(show(rows[place], said, {name: is_right(item) for name, item in found.items()}))
    return cards


def _items(path: Path) -> dict[str, dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return {row["id"]: row for row in map(json.loads, lines)}
