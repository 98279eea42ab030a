"""The optimizer: groups by role, and a learning rate that is a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import nn

from mmtune.core.errors import MissingExtraError, NumericalError, RecipeError, nearest
from mmtune.train.schema import TrainRecipe

KNOWN_ROLES = frozenset(
    {
        "method",
        "projector",
        "generator",
        "delta_b",
        "adapters",
        "router",
        "modality_embedding",
        "lora",
        "language",
        "encoder",
    }
)
"""Roles of the built-in methods: a learning rate for one that this model lacks is not a spelling mistake."""


@dataclass(frozen=True)
class Group:
    """Parameters that share a learning rate and a weight decay."""

    role: str
    learning_rate: float
    weight_decay: float
    parameters: tuple[nn.Parameter, ...]


def parameter_groups(roles: Mapping[str, Sequence[nn.Parameter]], train: TrainRecipe) -> list[Group]:
    """Sort the trained parameters by learning rate and decay.

    A parameter takes the rate of the smallest named role it belongs to, else ``default``. Only matrices decay, never
    vectors such as biases and the scales of norms.

    Raises:
        RecipeError: A learning rate for a role that does not exist.
        NumericalError: There is nothing to train, or at a learning rate of 0.
    """
    check_rate_names(roles, train)
    by_size = sorted((role for role in train.learning_rate if role in roles), key=lambda role: len(roles[role]))
    role_of = {}
    for role in reversed(by_size):  # the smallest role comes last and wins
        role_of.update({id(parameter): role for parameter in roles[role]})
    found: dict[tuple[str, bool], dict[int, nn.Parameter]] = {}
    for parameters in roles.values():
        for parameter in parameters:
            if parameter.requires_grad:
                key = (role_of.get(id(parameter), "default"), parameter.ndim > 1)
                found.setdefault(key, {})[id(parameter)] = parameter
    if not found:
        raise NumericalError(
            "There is nothing to train.", where="train.roles", fix="name a role with parameters in train.roles"
        )
    for name, _ in found:
        if train.learning_rate[name] == 0:
            raise NumericalError(
                f"The learning rate '{name}' is 0: the weights that it is for would not move.",
                where=f"train.learning_rate.{name}",
                fix="raise it, or take their role out of train.roles",
            )
    return [
        Group(role, train.learning_rate[role], train.weight_decay if matrices else 0.0, tuple(members.values()))
        for (role, matrices), members in found.items()
    ]


def check_rate_names(roles: Mapping[str, Sequence[nn.Parameter]], train: TrainRecipe) -> None:
    """Refuse a learning rate for a role that neither this model nor any built-in method has.

    Raises:
        RecipeError: With the nearest name.
    """
    allowed = ["default", *roles]
    for role in train.learning_rate:
        if role in allowed or role.partition(".")[0] in KNOWN_ROLES:
            continue
        guess = nearest(role, allowed)
        hint = f" Did you mean '{guess}'?" if guess else ""
        raise RecipeError(
            f"Unknown role '{role}' in train.learning_rate.{hint}",
            where="train.learning_rate",
            fix=f"write '{guess}'" if guess else f"use one of: {', '.join(allowed)}",
            allowed=allowed,
        )


def make_optimizer(groups: Sequence[Group], betas: tuple[float, float], kind: str = "adamw") -> torch.optim.Optimizer:
    """AdamW over the groups, with the fused kernel where there is one, or with moments in 8 bits by bitsandbytes.

    Raises:
        MissingExtraError: ``adamw_8bit`` without bitsandbytes.
    """
    parameters = [parameter for group in groups for parameter in group.parameters]
    entries = [
        {"params": list(group.parameters), "lr": group.learning_rate, "weight_decay": group.weight_decay}
        for group in groups
    ]
    if kind == "adamw_8bit":
        require_8bit()
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(entries, betas=betas, eps=1e-8)
    fused = all(p.device.type in ("cpu", "cuda") and p.dtype.is_floating_point for p in parameters)
    return torch.optim.AdamW(entries, betas=betas, eps=1e-8, fused=fused)


def require_8bit() -> None:
    """Notice a missing library before a model is loaded.

    Raises:
        MissingExtraError: bitsandbytes is not installed.
    """
    if find_spec("bitsandbytes") is None:
        raise MissingExtraError("train.optimizer: adamw_8bit", "quant")


def rate_multiplier(schedule: str, step: int, total: int, warmup_ratio: float) -> float:
    """What the peak learning rate is multiplied with at a step, counted from 0.

    Linear warm-up that never starts at zero, then cosine to zero, linear to zero, or constant.
    """
    warmup = math.ceil(total * warmup_ratio)
    if step < warmup:
        return (step + 1) / warmup
    return _decay(schedule, (step - warmup) / max(1, total - warmup))


def epoch_multiplier(schedule: str, epoch: float, epochs: float, warmup_epochs: float) -> float:
    """What the peak learning rate is multiplied with at a fraction of an epoch: warm-up from zero, then as scheduled.

    Args:
        epoch: Of the step to come, counted from 0, for example 1.5.
        epochs: Of the whole run.

    Source:
        LaVIN (arXiv 2305.15023), whose code has this schedule from MAE (arXiv 2111.06377).
    """
    if epoch < warmup_epochs:
        return epoch / warmup_epochs
    return _decay(schedule, (epoch - warmup_epochs) / max(epochs - warmup_epochs, 1e-9))


def _decay(schedule: str, progress: float) -> float:
    if schedule == "constant":
        return 1.0
    if schedule == "linear":
        return 1.0 - progress
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def set_rates(optimizer: torch.optim.Optimizer, groups: Sequence[Group], multiplier: float) -> dict[str, float]:
    """Give every group its rate for the coming step; returns role to rate."""
    for entry, group in zip(optimizer.param_groups, groups, strict=True):
        entry["lr"] = group.learning_rate * multiplier
    return {group.role: group.learning_rate * multiplier for group in groups}
