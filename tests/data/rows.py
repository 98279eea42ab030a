"""A small data file with pictures, good and bad rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image


def picture(path: Path, color: str = "red") -> Path:
    """Write a small picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), color).save(path)
    return path


def talk(question: str = "<image>\nWhat is it?", answer: str = "A cat.") -> list[dict[str, str]]:
    """One round in LLaVA's form."""
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def good_rows(folder: Path, count: int = 6) -> list[dict[str, Any]]:
    """Rows with a picture each, except every third."""
    rows: list[dict[str, Any]] = []
    for index in range(count):
        if index % 3 == 2:
            rows.append({"id": f"r{index}", "conversations": talk("Name a colour.", "Red.")})
            continue
        picture(folder / "pictures" / f"{index}.png", ("red", "blue", "green")[index % 3])
        rows.append({"id": f"r{index}", "image": f"pictures/{index}.png", "conversations": talk(), "type": "what"})
    return rows


def write_json(path: Path, rows: list[Any]) -> Path:
    """A JSON list, one row a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n", encoding="utf-8")
    return path


def write_lines(path: Path, rows: list[Any]) -> Path:
    """JSON Lines; a text is written as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
