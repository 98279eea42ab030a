"""Real handwriting as conversations: scikit-learn's 1,797 digits become pictures and two LLaVA files.

    python examples/digits/make_digits.py data/digits

writes ``images/*.png``, ``train.json`` and ``test.json`` (a held-out fifth). To use data of your own, write the same
two files: one object a row with ``id``, ``image`` (a path beside the file) and ``conversations``.
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
WHITE, LEVELS = 255, 16  # of a picture, and of a scan's ink


def make_digits(folder: str | Path, *, seed: int = 0) -> dict[str, Any]:
    """Write the pictures and both files; the same seed gives the same bytes.

    Returns:
        Rows of each file, and how often each digit is in the test file.
    """
    from sklearn.datasets import load_digits

    folder = Path(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    scans = load_digits()
    order = list(range(len(scans.target)))
    dice = random.Random(seed)
    dice.shuffle(order)
    rows = []
    for index in order:
        name = f"images/{index:04d}.png"
        draw(scans.images[index]).save(folder / name)
        rows.append(as_row(f"digit-{index:04d}", name, dice.choice(QUESTIONS), str(scans.target[index])))
    held_out = len(rows) // 5
    parts = {"train": rows[held_out:], "test": rows[:held_out]}
    for part, own in parts.items():
        (folder / f"{part}.json").write_text(json.dumps(own, indent=1) + "\n", encoding="utf-8")
    return {
        **{part: len(own) for part, own in parts.items()},
        "test_digits": dict(sorted(Counter(row["type"] for row in parts["test"]).items())),
    }


def draw(scan: Any) -> Image.Image:
    """A scan ``[8, 8]`` with ink from 0 to 16 as a smooth picture, dark on white."""
    ink = (scan * (WHITE / LEVELS)).round().astype("uint8")
    return Image.fromarray(WHITE - ink).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)


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
    majority = max(made["test_digits"].values()) / made["test"]
    print(f"{made['train']} rows to learn from, {made['test']} held out; always the commonest digit: {majority:.1%}")


if __name__ == "__main__":
    main()
