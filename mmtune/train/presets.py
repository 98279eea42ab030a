"""The recipes that ship with the package."""

from __future__ import annotations

from pathlib import Path

from mmtune.core.errors import unknown_name
from mmtune.train.yaml_marks import parse_mapping

_FOLDER = Path(__file__).parent.parent / "recipes"


def preset_name(name: str) -> str:
    """The one spelling of a preset's name."""
    return name.strip().lower().replace("_", "-")


def list_presets() -> dict[str, str]:
    """Every preset's name and its one-line description, sorted by name."""
    found = {}
    for name, entry in sorted(_entries().items()):
        values = parse_mapping(entry.read_text(encoding="utf-8"), where=name).values
        found[name] = str(values.get("describe", ""))
    return found


def preset_text(name: str) -> str:
    """A preset as it is written, comments and sources included.

    Raises:
        UsageError: No such preset, with the nearest name.
    """
    entries = _entries()
    key = preset_name(name)
    if key not in entries:
        raise unknown_name("preset", name, entries, where="--preset")
    return entries[key].read_text(encoding="utf-8")


def load_preset(name: str) -> dict[str, object]:
    """The settings of a preset as a plain mapping (a partial recipe).

    Raises:
        UsageError: No such preset.
    """
    return parse_mapping(preset_text(name), where=f"preset {name}").values


def _entries() -> dict[str, Path]:
    return {entry.stem: entry for entry in _FOLDER.glob("*.yaml")}
