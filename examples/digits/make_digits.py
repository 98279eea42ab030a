"""Real handwriting as conversations: scikit-learn's 1,797 digits become pictures and two LLaVA files.

    python examples/digits/make_digits.py data/digits

writes ``images/*.png`` and ``train.json``, ``val.json`` and ``test.json`` (a held-out fifth). To use data of your own,
write the same files: one object a row with ``id``, ``image`` (a path beside the file) and ``conversations``. Few
pictures go further when each is shown in several ways: a training scan is also drawn a little turned and moved.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

from PIL import Image

QUESTIONS = (
    "which digit is this?",
    "what number is this?",
    "name the digit in the picture.",
    "which number do you see?",
    "what digit is shown here?",
    "tell me the number in the image.",
)
SIDE = 96  # what nano's image encoder reads; the scans have 8
COPIES = 4  # pictures of a training scan: as it is, and turned and moved
TURN, MOVE = 8, 3  # at most so many degrees, and pixels of 96
WHITE, LEVELS = 255, 16  # of a picture, and of a scan's ink


def make_digits(folder: str | Path, *, seed: int = 0) -> dict[str, dict[str, int]]:
    """Write the pictures and the files; the same seed gives the same bytes.

    Returns:
        How often each digit is in each file.
    """
    from sklearn.datasets import load_digits

    folder = Path(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    scans = load_digits()
    order = list(range(len(scans.target)))
    dice = random.Random(seed)
    dice.shuffle(order)
    held_out, checked = len(order) // 5, len(order) // 12
    parts = {
        "test": order[:held_out],
        "val": order[held_out : held_out + checked],
        "train": order[held_out + checked :],
    }
    counts = {}
    for part, members in parts.items():
        rows = []
        for index in members:
            picture, answer = draw(scans.images[index]), str(scans.target[index])
            for copy in range(COPIES if part == "train" else 1):
                name = f"{index:04d}-{copy}"
                shown = turned(picture, dice) if copy else picture
                shown.save(folder / "images" / f"{name}.png")
                rows.append(as_row(name, f"images/{name}.png", dice.choice(QUESTIONS), answer))
        (folder / f"{part}.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        counts[part] = dict(sorted(Counter(row["type"] for row in rows).items()))
    return counts


def draw(scan: Any) -> Image.Image:
    """A scan ``[8, 8]`` with ink from 0 to 16 as a smooth picture, dark on white."""
    ink = (scan * (WHITE / LEVELS)).round().astype("uint8")
    return Image.fromarray(WHITE - ink).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def turned(picture: Image.Image, dice: random.Random) -> Image.Image:
    """The picture as another hand might have put it on the paper."""
    move = dice.randint(-MOVE, MOVE), dice.randint(-MOVE, MOVE)
    paper = (WHITE, WHITE, WHITE)
    return picture.rotate(dice.uniform(-TURN, TURN), Image.Resampling.BICUBIC, translate=move, fillcolor=paper)


def as_row(id: str, image: str, question: str, answer: str) -> dict[str, Any]:
    """One row in LLaVA's form; ``type`` lets the evaluation score each digit on its own."""
    return {
        "id": id,
        "image": image,
        "type": answer,
        "conversations": [
            {"from": "human", "value": f"<image>\n{question}"},
            {"from": "gpt", "value": answer},
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Write scikit-learn's handwritten digits as a LLaVA data set.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    made = make_digits(arguments.folder, seed=arguments.seed)
    rows = {part: sum(counts.values()) for part, counts in made.items()}
    guess = max(made["train"], key=lambda digit: made["train"][digit])
    share = made["test"][guess] / rows["test"]
    print(f"{rows['train']} rows to learn from, {rows['val']} to validate with, {rows['test']} held out")
    print(f"always '{guess}', the commonest digit to learn from, would be right for {share:.1%} of the held-out ones")


if __name__ == "__main__":
    main()
