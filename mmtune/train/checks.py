"""Proof that a run does what it says: what is trained moves, what is frozen does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mmtune.core.errors import NumericalError
from mmtune.model.shares import local
from mmtune.train.team import Team

_SAMPLED = 256  # elements of each tensor that are compared


class MovementCheck:
    """A few elements of every tensor at the start, to be compared after some steps.

    Args:
        roles: All parameters of the model by role.
        perceiving: Roles that only learn from batches with media.
        team: Processes that share out the weights: a role moves when it does in one of them.
    """

    def __init__(
        self,
        model: nn.Module,
        roles: Mapping[str, Sequence[nn.Parameter]],
        perceiving: frozenset[str],
        team: Team | None = None,
    ) -> None:
        self._perceiving = perceiving
        self._team = team
        self._frozen = {name: p for name, p in model.named_parameters() if not p.requires_grad}
        self._trained = finest_roles(roles)
        parameters = [*self._frozen.values(), *(p for members in self._trained.values() for p in members)]
        self._before = {id(parameter): _sample(parameter) for parameter in parameters}

    def __call__(self, *, saw_media: bool) -> None:
        """Compare with the start.

        Args:
            saw_media: Whether enough batches had media; without, roles that learn from media are not judged.

        Raises:
            NumericalError: A trained role did not move at all, or a frozen tensor changed.
        """
        changed = [name for name, parameter in self._frozen.items() if self._moved(parameter)]
        if changed:
            message = f"The frozen weight '{changed[0]}' changed."
            raise NumericalError(
                message, where=changed[0], fix="a method must not write into the base; report it to its author"
            )
        judged = [role for role in self._trained if saw_media or role not in self._perceiving]
        moved = [float(any(self._moved(parameter) for parameter in self._trained[role])) for role in judged]
        for role, found in zip(judged, moved if self._team is None else self._team.sum(moved), strict=True):
            if not found:
                raise NumericalError(
                    f"The weights of '{role}' are trained but did not move.",
                    where=f"train.learning_rate.{role}",
                    fix="raise its learning rate, or take the role out of train.roles",
                )

    def _moved(self, parameter: nn.Parameter) -> bool:
        return not torch.equal(_sample(parameter), self._before[id(parameter)])


def finest_roles(roles: Mapping[str, Sequence[nn.Parameter]]) -> dict[str, list[nn.Parameter]]:
    """Every trained parameter under the smallest role that it belongs to."""
    owner: dict[int, str] = {}
    for role in sorted(roles, key=lambda name: len(roles[name]), reverse=True):
        owner.update({id(parameter): role for parameter in roles[role] if parameter.requires_grad})
    found: dict[str, dict[int, nn.Parameter]] = {}
    for parameters in roles.values():
        for parameter in parameters:
            if id(parameter) in owner:
                found.setdefault(owner[id(parameter)], {})[id(parameter)] = parameter
    return {role: list(members.values()) for role, members in found.items()}


def _sample(parameter: nn.Parameter) -> Tensor:
    flat = local(parameter).reshape(-1)
    return flat[:: max(1, flat.numel() // _SAMPLED)].clone()
