"""A checkpoint looked at: its parts, its files, where it comes from, and what it says to one picture."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmtune.data.sample import Sample, conversation
from mmtune.model.build import checkpoint_folder
from mmtune.model.generation import Decoding, answer
from mmtune.report.gallery import Shown, show
from mmtune.report.page import render

_QUESTION = "What is in this picture?"
_HASHED = (".safetensors", "config.json")


def inspect_checkpoint(model: Any, processor: Any, source: str, picture: Any) -> tuple[dict[str, Any], Shown]:
    """The numbers of a checkpoint that is loaded, and its answer.

    Args:
        source: What it was loaded from.
        picture: Path of the picture that it is asked about, or a picture in memory.
    """
    folder = Path(checkpoint_folder(source))
    files = [
        {"file": str(path.relative_to(folder)), "bytes": path.stat().st_size}
        for path in sorted(folder.rglob("*")) if path.is_file()
    ]  # fmt: skip
    config = model.config
    sample = _question(processor, picture)
    said = answer(model, processor, [sample], Decoding(max_new_tokens=48), on_error="record")[0]
    text = said.text if said.error is None else f"(none: {said.error.message})"
    components = [{**row, "bytes": _num_bytes(model, row["component"])} for row in model.describe()]
    found = {
        "kind": "checkpoint",
        "path": source,
        "folder": str(folder),
        "method": config.method,
        "base": _reference(config.base),
        "encoders": {name: _reference(entry) for name, entry in config.encoders.items()},
        "template": processor.template,
        "parameters": sum(row["parameters"] for row in components),
        "components": components,
        "files": files,
        "bytes": sum(entry["bytes"] for entry in files),
        "sha256": _hash(folder),
        "settings": dict(config.settings),
        "answer": {"question": sample.turns[-1].text.strip(), "text": text},
    }
    return found, show(sample, {"model": text})


def checkpoint_page(found: Mapping[str, Any], shown: Shown) -> str:
    """The page."""
    return render("inspect_checkpoint.html.j2", title=f"Checkpoint · {found['method']}", found=found, shown=[shown])


def _question(processor: Any, picture: Any) -> Sample:
    """A question about the picture; only the question where the model takes no pictures."""
    return conversation(
        _QUESTION, id="one picture", media={"image": [picture]} if "image" in processor.modalities else {}
    )


def _reference(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {name: entry.get(name) for name in ("source", "revision")}


def _num_bytes(model: Any, role: str) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.roles()[role])


def _hash(folder: Path) -> str:
    """Over the names and contents of configuration and weights."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name.endswith(_HASHED):
            digest.update(f"{path.relative_to(folder)}\0".encode())
            with path.open("rb") as file:
                while block := file.read(1 << 22):
                    digest.update(block)
    return digest.hexdigest()
