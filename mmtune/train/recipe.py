"""From defaults, preset, file, flags and ``--set`` to one recipe that re-runs alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mmtune.core.config import parse_settings
from mmtune.core.errors import CheckpointError, RecipeError, UsageError, nearest
from mmtune.core.registry import canonical
from mmtune.train.layers import (
    FLAGS,
    Layer,
    checkpoint_layer,
    file_layer,
    flag_layer,
    flat,
    merge,
    nano_layers,
    origin,
    preset_layer,
    section,
    set_layer,
)
from mmtune.train.presets import list_presets, load_preset
from mmtune.train.schema import ROLES_OF_KIND, SCHEMA, Recipe

__all__ = [
    "FLAGS",
    "VERBS",
    "Recipe",
    "check_method_settings",
    "difference",
    "dump",
    "list_presets",
    "load_preset",
    "recipe_hash",
    "resolve",
]

VERBS = ("pretrain", "finetune")
_VERB_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "pretrain": {"data": {"template": "plain"}, "train": {"batch_size": 32, "learning_rate": {"default": 1e-3}}},
    "finetune": {"train": {"learning_rate": {"default": 2e-4}}},
}


def resolve(
    verb: str,
    preset: str | None = None,
    file: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    sets: Sequence[str] = (),
) -> Recipe:
    """Put the layers on top of each other: defaults < preset < file < flags < ``--set``.

    Args:
        verb: ``pretrain`` or ``finetune``; decides the built-in defaults.
        overrides: Dotted keys to values, as the flags give them; a None is a flag that was not given.
        sets: ``key=value`` with the value in YAML.

    Raises:
        RecipeError: An unknown key (with the nearest one), a wrong value, broken YAML; with file and line.
        UsageError: No such preset or verb, or no method named anywhere.
        CheckpointError: The checkpoint to go on from holds another method.
    """
    if verb not in VERBS:
        raise UsageError(f"Unknown training verb '{verb}'.", fix="use pretrain or finetune", allowed=VERBS)
    above = [layer for layer in (file_layer(file), flag_layer(overrides or {}), set_layer(sets)) if layer is not None]
    named = [preset_layer(preset)] if preset else []
    merged = merge([*named, *above])
    checkpoint = checkpoint_layer(section(merged, "model").get("checkpoint"))
    if checkpoint is not None:
        above.insert(0, checkpoint)
        merged = merge([*named, *above])
        _refuse_other_base(checkpoint, merged)
    if merged.get("method") is None:
        _refuse_unknown_sections(above)
        _refuse_no_checkpoint(section(merged, "model").get("checkpoint"))
        raise UsageError("No method is named.", fix=f"mmtune {verb} --method vlora (or llava)", where="--method")
    model = section(merged, "model")
    unknown = model.get("checkpoint") is not None and checkpoint is None
    if not preset and not unknown and model.get("base", "nano") == "nano":
        named = nano_layers(str(merged["method"]), verb)
    layers = [Layer("built-in defaults", dict(_VERB_DEFAULTS[verb])), *named, *above]
    return _validate(layers)


def recipe_hash(recipe: Recipe, verb: str = "") -> str:
    """Eight hex digits that name what a recipe does; where it runs and its documentation are left out."""
    values = recipe.model_dump(mode="json", exclude={"run": True, "describe": True, "source": True})
    text = json.dumps([verb, values], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML that gives the same recipe when it is read alone."""
    values = {"schema": SCHEMA, **recipe.model_dump(mode="json")}
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120)


def difference(old: Recipe, new: Recipe) -> list[str]:
    """Lines ``key: old -> new`` for every setting that changes what a run does."""
    before, after = flat(_comparable(old)), flat(_comparable(new))
    keys = sorted(set(before) | set(after))
    return [f"{key}: {before.get(key)!r} -> {after.get(key)!r}" for key in keys if before.get(key) != after.get(key)]


def check_method_settings(recipe: Recipe) -> None:
    """Validate ``model.settings`` against the settings of the method; imports the method.

    Raises:
        UsageError: No such method.
        RecipeError: A setting that the method does not have, with the nearest one.
    """
    from mmtune.methods import METHODS

    try:
        method = METHODS.load(recipe.method)
    except UsageError as error:
        raise UsageError(error.message, where=recipe.where("method"), fix=error.fix, allowed=error.allowed) from None
    try:
        parse_settings(method.Settings, recipe.model.settings, where="model.settings")
    except RecipeError as error:
        path = error.where or "model.settings"
        raise RecipeError(
            error.message, where=f"{recipe.where(path)} ({path})", fix=error.fix, allowed=error.allowed
        ) from error


def _validate(layers: Sequence[Layer]) -> Recipe:
    values = merge(layers)
    schema = values.pop("schema", SCHEMA)
    if schema != SCHEMA:
        raise RecipeError(
            f"Recipe schema '{schema}' is not known.",
            where=origin(layers, "schema"),
            fix=f"schema: {SCHEMA}",
            allowed=[SCHEMA],
        )
    _settle_roles(layers, values)
    values["method"] = canonical(str(values["method"]))
    try:
        recipe = parse_settings(Recipe, values, where="")
    except RecipeError as error:
        path = error.where or ""
        place = origin(layers, path) if path else "recipe"
        shown = f"{place} ({path})" if path and path not in place else place
        message = error.message.removeprefix("Value error, ")
        raise RecipeError(message, where=shown, fix=error.fix, allowed=error.allowed) from error
    recipe._origins.update({path: layer.where(path) for layer in layers for path in flat(layer.values, parents=True)})
    check_consistency(recipe)
    return recipe


def check_consistency(recipe: Recipe) -> None:
    """Refuse settings that are valid alone and contradict each other.

    Raises:
        RecipeError: LoRA is to be trained but not set up, set up but not trained, quantised weights are to be trained,
            or the original order of batches is to have a limit of tokens.
    """
    kind, roles = recipe.tune.kind, recipe.train.roles
    if "lora" in roles and kind not in ("lora", "qlora"):
        message = f"train.roles has 'lora' but tune.kind is '{kind}'."
        raise RecipeError(
            message, where=recipe.where("train.roles"), fix="--tune lora (or qlora)", allowed=["lora", "qlora"]
        )
    if kind in ("lora", "qlora") and "lora" not in roles:
        message = f"tune.kind is '{kind}' but train.roles {roles} leaves 'lora' out."
        raise RecipeError(
            message, where=recipe.where("train.roles"), fix=f"--set 'train.roles=[{', '.join([*roles, 'lora'])}]'"
        )
    if recipe.train.grouping == "modality" and recipe.train.tokens_per_batch is not None:
        raise RecipeError(
            "train.grouping modality is the original's order of batches of equal size, train.tokens_per_batch is not.",
            where=recipe.where("train.grouping"),
            fix="--set train.grouping=length, or leave train.tokens_per_batch at null",
        )
    if recipe.tune.bits is not None and (kind not in ("method", "qlora") or "language" in roles):
        message = f"tune.bits is {recipe.tune.bits} but tune.kind is '{kind}': quantised weights cannot be trained."
        fix = "--tune method or --tune qlora, or tune.bits: null"
        raise RecipeError(message, where=recipe.where("tune.bits"), fix=fix)
    if recipe.tune.bits is None and kind != "qlora" and recipe.tune.quantiser != "bitsandbytes":
        message = f"tune.quantiser is {recipe.tune.quantiser} but nothing is quantised: tune.bits is null."
        raise RecipeError(message, where=recipe.where("tune.quantiser"), fix="--set tune.bits=8, or leave it out")


def _refuse_unknown_sections(layers: Sequence[Layer]) -> None:
    """A mistyped ``method`` is a mistyped key, not a missing one."""
    allowed = sorted({"schema", *Recipe.model_fields})
    for layer in layers:
        for key in map(str, layer.values):
            if key not in allowed:
                guess = nearest(key, allowed)
                hint = f" Did you mean '{guess}'?" if guess else ""
                fix = f"write '{guess}' instead of '{key}'" if guess else f"use one of: {', '.join(allowed)}"
                raise RecipeError(f"Unknown key '{key}'.{hint}", where=layer.where(key), fix=fix, allowed=allowed)


def _refuse_no_checkpoint(given: Any) -> None:
    """A checkpoint that cannot be read names no method, which is then not what is missing."""
    if given is None:
        return
    inside = Path(str(given)) / "model"
    fix = "check the path, or for a hub id say which method it holds: --method vlora (or llava)"
    if (inside / "config.json").is_file():
        fix = f"--model {inside}"
    raise CheckpointError(f"There is no model in '{given}'.", where="model.checkpoint (--model)", fix=fix)


def _settle_roles(layers: Sequence[Layer], values: dict[str, Any]) -> None:
    """``tune.kind`` names the roles, unless ``train.roles`` is said at the same place or later."""

    def last(name: str, key: str) -> int:
        levels = [level for level, layer in enumerate(layers) if section(layer.values, name).get(key) is not None]
        return max(levels, default=-1)

    kind_level, roles_level = last("tune", "kind"), last("train", "roles")
    kind = section(values, "tune").get("kind", "method")
    if (
        (roles_level < 0 or kind_level > roles_level)
        and kind in ROLES_OF_KIND
        and isinstance(values.get("train", {}), dict)
    ):
        values["train"] = {**values.get("train", {}), "roles": list(ROLES_OF_KIND[kind])}


def _refuse_other_base(checkpoint: Layer, merged: dict[str, Any]) -> None:
    method = checkpoint.values["method"]
    if canonical(str(merged["method"])) != canonical(str(method)):
        message = f"The checkpoint holds the method '{method}', '{merged['method']}' is asked for."
        raise CheckpointError(message, where=checkpoint.name, fix="leave --method out, or give another --model")
    for key, flag in (("base", "--base"), ("vision", "--vision")):
        own, given = checkpoint.values["model"].get(key), section(merged, "model").get(key)
        if own != given:
            message = f"The checkpoint stands on '{own}'; '{given}' is asked for."
            raise RecipeError(message, where=f"model.{key}", fix=f"leave {flag} out: a checkpoint keeps its own")


def _comparable(recipe: Recipe) -> dict[str, Any]:
    return recipe.model_dump(mode="json", exclude={"run": True, "describe": True, "source": True})
