"""The layers that a recipe is put together from, each knowing where its settings were said."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmtune.core.errors import RecipeError, UsageError
from mmtune.train.presets import list_presets, preset_name, preset_text
from mmtune.train.yaml_marks import parse_mapping, parse_value

_BUNDLED = Path(__file__).parent.parent / "nano" / "assets" / "adapter"
FLAGS: Mapping[str, str] = {
    "method": "--method",
    "model.base": "--base",
    "model.vision": "--vision",
    "model.checkpoint": "--model",
    "data.train": "--data",
    "data.media_root": "--media-root",
    "tune.kind": "--tune",
    "train.epochs": "--epochs",
    "train.max_steps": "--max-steps",
    "train.batch_size": "--batch-size",
    "train.learning_rate": "--learning-rate",
    "train.seed": "--seed",
    "run.output": "--output",
    "run.num_processes": "--num-processes",
    "run.device": "--device",
}
"""Dotted keys that have an option of their own, and its name."""
_SECTIONS = ("model", "tune", "data", "train", "save", "run")


class Whole(dict[str, Any]):
    """A mapping that replaces what is below it instead of merging with it."""


@dataclass(frozen=True)
class Layer:
    """Settings from one place; ``lines`` makes its origin exact."""

    name: str
    values: dict[str, Any]
    lines: Mapping[str, int] = field(default_factory=dict)
    flags: Mapping[str, str] = field(default_factory=dict)

    def where(self, path: str) -> str:
        """How to name the place of a dotted key to a person; a key that was filled in stands where its parent does."""
        while path:
            if path in self.flags:
                return self.flags[path]
            if path in self.lines:
                return f"{self.name}:{self.lines[path]}"
            path, _, _ = path.rpartition(".")
        return self.name


def section(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The mapping under a key, empty when there is none or something else stands there."""
    found = values.get(name)
    return found if isinstance(found, Mapping) else {}


def merge(layers: Iterable[Layer]) -> dict[str, Any]:
    """The values of all layers, later ones on top.

    A layer that says ``train.epochs`` alone also lifts a ``train.max_steps`` from below, which would cut them short;
    flags and ``--set`` stand in one command and lift nothing of each other.
    """
    merged: dict[str, Any] = {}
    limited = False
    for layer in layers:
        said = section(layer.values, "train")
        if "epochs" in said and "max_steps" not in said and not limited:
            merged = over(merged, {"train": {"max_steps": None}})
        limited = bool(layer.flags) and "max_steps" in said
        merged = over(merged, layer.values)
    return merged


def over(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings merge key by key; everything else, lists included, replaces what was below."""
    result = dict(lower)
    for key, value in upper.items():
        below = result.get(key)
        merges = isinstance(below, Mapping) and isinstance(value, Mapping) and not isinstance(value, Whole)
        result[key] = over(below, value) if merges else value
    return result


def file_layer(file: str | Path | None) -> Layer | None:
    """A recipe file.

    Raises:
        UsageError: It cannot be read.
        RecipeError: Broken YAML, with the line.
    """
    if file is None:
        return None
    try:
        text = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        fix = "give a .yaml file, or a preset's name with --preset (mmtune presets lists them)"
        raise UsageError(f"The recipe cannot be read: {error}.", where=str(file), fix=fix) from error
    marked = parse_mapping(text, where=str(file))
    return Layer(str(file), _normalise(marked.values), marked.lines)


def preset_layer(name: str) -> Layer:
    """A preset of the package."""
    marked = parse_mapping(preset_text(name), where=f"preset {preset_name(name)}")
    return Layer(f"preset {preset_name(name)}", _normalise(marked.values), marked.lines)


def nano_layers(method: str, verb: str) -> list[Layer]:
    """The settings that fit the embedded base, when there are some for this method."""
    name = preset_name(f"nano-{method}-{verb}")
    return [preset_layer(name)] if name in list_presets() else []


def flag_layer(overrides: Mapping[str, Any]) -> Layer | None:
    """Options of the command line by dotted key; a None or an empty list was not given."""
    given = {key: value for key, value in overrides.items() if value is not None and value != () and value != []}
    values: dict[str, Any] = {}
    for key, value in given.items():
        values = over(values, _nested(key, value))
    return Layer("flags", _normalise(values), flags={key: FLAGS.get(key, key) for key in given}) if given else None


def checkpoint_layer(checkpoint: Any) -> Layer | None:
    """What a checkpoint says of itself; None when there is none, or it cannot be read before it is loaded."""
    if checkpoint is None:
        return None
    folder = _BUNDLED if str(checkpoint) == "nano" else Path(str(checkpoint))
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        model = {"base": config["base"]["source"], "settings": config["settings"]}
        image = config["encoders"].get("image")
        vision = {"vision": image["source"]} if image else {}
        values = {"method": config["method"], "model": {**model, **vision}}
        lora = folder / "lora" / "adapter_config.json"
        if lora.is_file():
            found = json.loads(lora.read_text(encoding="utf-8"))
            values["tune"] = {"rank": found["r"], "alpha": found["lora_alpha"], "dropout": found["lora_dropout"]}
        return Layer(f"checkpoint {checkpoint}", values)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # a hub id or a damaged folder: loading it says what is wrong


def set_layer(sets: Sequence[str]) -> Layer | None:
    """The ``--set key=value`` options, values in YAML.

    Raises:
        RecipeError: No ``key=value``, or a value that is no YAML.
    """
    values: dict[str, Any] = {}
    flags: dict[str, str] = {}
    for text in sets:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals or not key:
            raise RecipeError(f"'{text}' is no key=value.", where="--set", fix="--set train.batch_size=8")
        values = over(values, _nested(key, parse_value(value, where=f"--set {key}")))
        flags[key] = f"--set {key}"
    return Layer("--set", _normalise(values), flags=flags) if sets else None


def _nested(dotted: str, value: Any) -> dict[str, Any]:
    for part in reversed(dotted.split(".")):
        value = {part: value}
    return value


def _normalise(values: dict[str, Any]) -> dict[str, Any]:
    """One number for the learning rate means its default, and a preset's other rates stay; a table with a default of
    its own stands for itself. A section under whose key nothing stands says nothing."""
    values = {key: value for key, value in values.items() if value is not None or key not in _SECTIONS}
    train = section(values, "train")
    rate = train.get("learning_rate")
    if isinstance(rate, (int, float)) and not isinstance(rate, bool):
        return {**values, "train": {**train, "learning_rate": {"default": float(rate)}}}
    if isinstance(rate, Mapping) and "default" in rate and len(rate) > 1:
        return {**values, "train": {**train, "learning_rate": Whole(rate)}}
    return values


def flat(values: Mapping[str, Any], prefix: str = "", parents: bool = False) -> dict[str, Any]:
    """Dotted keys to values; with ``parents``, the keys of the mappings too."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            if parents:
                found[path] = value
            found.update(flat(value, f"{path}.", parents))
        else:
            found[path] = value
    return found


def origin(layers: Sequence[Layer], path: str) -> str:
    """The topmost layer that sets a key or its nearest parent."""
    parts = path.split(".")
    for length in range(len(parts), 0, -1):
        part = ".".join(parts[:length])
        for layer in reversed(layers):
            if part in layer.lines or part in layer.flags or part in flat(layer.values, parents=True):
                return layer.where(part)
    return "recipe"
