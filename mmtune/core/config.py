"""Typed settings: unknown keys are errors that name the nearest key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mmtune.core.errors import RecipeError, nearest

# Beyond all that was ever trained, and small enough that products of three sizes can be counted and modules be made.
LARGEST_SIZE = 2**20
Size = Annotated[int, Field(ge=1, le=LARGEST_SIZE)]
"""A width, rank or number of tokens."""
Count = Annotated[int, Field(ge=1, le=2**10)]
"""A number of layers or heads."""


class Settings(BaseModel):
    """Base of all typed settings: frozen, no unknown keys, finite numbers alone."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


SettingsType = TypeVar("SettingsType", bound=BaseModel)


def parse_settings(kind: type[SettingsType], values: Mapping[str, Any], *, where: str) -> SettingsType:
    """Validate a mapping as settings of the given kind.

    Args:
        where: Key path or file that the values come from, used in the message.

    Raises:
        RecipeError: An unknown key (with the nearest known one) or a value of the wrong type.
    """
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        raise _translate(kind, error, where) from error


def _translate(kind: type[BaseModel], error: ValidationError, where: str) -> RecipeError:
    first = min(
        error.errors(), key=lambda found: found["type"] != "extra_forbidden"
    )  # a mistyped key explains a missing one
    path = ".".join(str(part) for part in first["loc"])
    place = f"{where}.{path}" if path and where else (path or where)
    if first["type"] == "extra_forbidden":
        parent = _model_at(kind, first["loc"][:-1])
        allowed = sorted(parent.model_fields) if parent is not None else []
        given = str(first["loc"][-1])
        guess = nearest(given, allowed)
        hint = f" Did you mean '{guess}'?" if guess else ""
        fix = f"write '{guess}' instead of '{given}'" if guess else f"use one of: {', '.join(allowed)}"
        return RecipeError(
            f"Unknown key '{given}'.{hint} Allowed: {', '.join(allowed)}.", where=place, fix=fix, allowed=allowed
        )
    return RecipeError(f"{first['msg']}, got {first['input']!r}.", where=place, fix=f"change '{path}'")


def _model_at(kind: type[BaseModel], path: tuple[Any, ...]) -> type[BaseModel] | None:
    """The settings class that the keys of ``path`` lead to, or None inside a free-form mapping."""
    current: type[BaseModel] | None = kind
    inside_mapping = False
    for part in path:
        if isinstance(part, int) or inside_mapping:  # an index, or a key of the user's choice
            inside_mapping = False
            continue
        field = current.model_fields.get(part) if current is not None else None
        current = _settings_class(field.annotation) if field is not None else None
        inside_mapping = field is not None and get_origin(field.annotation) is dict
    return current


def _settings_class(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = _settings_class(inner)
        if found is not None:
            return found
    return None
