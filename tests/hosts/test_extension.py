"""Changes made inside a module's forward."""

from __future__ import annotations

import copy
import pickle

import torch
from torch import Tensor, nn

from mmtune.hosts.extension import extend


class Plus:
    def __init__(self, amount: float) -> None:
        self.amount = amount

    def change(self, x: Tensor, output: Tensor) -> Tensor:
        return output + self.amount * x.sum()


def test_changes_follow_each_other_and_go_in_any_order() -> None:
    module, x = nn.Identity(), torch.ones(2)
    first, second = extend(module, Plus(1).change), extend(module, Plus(10).change)
    assert module(x).tolist() == [23, 23]
    first.remove()
    assert module(x).tolist() == [21, 21]
    second.remove()
    assert torch.equal(module(x), x)
    extend(module, Plus(5).change)
    assert module(x).tolist() == [11, 11]


def test_hooks_of_others_see_what_leaves() -> None:
    module, seen = nn.Identity(), []
    module.register_forward_hook(lambda _module, _args, output: seen.append(output.tolist()))
    extend(module, Plus(1).change)
    module(torch.ones(1))
    assert seen == [[2]]


def test_a_forward_of_somebody_else_stays_inside() -> None:
    module = nn.Identity()
    module.forward = lambda x: 3 * x  # type: ignore[method-assign]
    extend(module, Plus(1).change)
    assert module(torch.ones(1)).tolist() == [4]


def test_copies_change_by_copies() -> None:
    plus, x = Plus(1), torch.ones(1)
    module = nn.Linear(1, 1, bias=False)
    nn.init.ones_(module.weight)
    extend(module, plus.change)
    twin, stored = copy.deepcopy(module), pickle.loads(pickle.dumps(module))
    plus.amount = 100
    nn.init.zeros_(module.weight)
    assert (module(x).item(), twin(x).item(), stored(x).item()) == (100, 2, 2)
    assert list(module.state_dict()) == ["weight"]
