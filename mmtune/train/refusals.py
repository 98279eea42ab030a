"""What a run refuses before anything is loaded, asked by whoever plans one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from mmtune.core.errors import MissingExtraError, NotPossibleError
from mmtune.train.model_setup import refuse_impossible
from mmtune.train.recipe import Recipe
from mmtune.train.strategy import refuse_sharing, refuse_strategy


def refuse_planned(recipe: Recipe, kind: str, precision: str, *, here: bool) -> None:
    """Say no where the run would.

    Args:
        kind: ``cpu`` or ``cuda``.
        here: Whether the run is to be on this machine; elsewhere other libraries may be installed.

    Raises:
        MissingExtraError: A library that the run needs is not installed here.
        NotPossibleError: What cannot be done at all.
    """
    strategy = refuse_strategy if here else refuse_sharing
    checks: list[Callable[[], None]] = [
        lambda: refuse_impossible(recipe, torch.device(kind)),
        lambda: strategy(recipe, precision),
    ]
    for check in checks:
        try:
            check()
        except MissingExtraError:
            if here:
                raise


def is_possible(
    recipe: Recipe, changes: Mapping[str, Mapping[str, Any]], kind: str, precision: str, *, here: bool
) -> bool:
    """Whether a run with other settings, section by section, would not be refused."""
    sections = {name: getattr(recipe, name).model_copy(update=dict(values)) for name, values in changes.items()}
    try:
        refuse_planned(recipe.model_copy(update=sections), kind, precision, here=here)
    except NotPossibleError:
        return False
    return True
