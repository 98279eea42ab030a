"""Groups by role and the learning rate as a function of the step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from mmtune.core.errors import NumericalError, RecipeError
from mmtune.train.checks import MovementCheck, finest_roles
from mmtune.train.optim import epoch_multiplier, make_optimizer, parameter_groups, rate_multiplier, set_rates
from mmtune.train.schema import TrainRecipe


def roles_of(model: nn.Sequential) -> dict[str, list[nn.Parameter]]:
    first, second = model[0], model[1]
    return {
        "generator": list(first.parameters()),
        "generator.bias": [first.bias],
        "delta_b": list(second.parameters()),
        "method": list(model.parameters()),
    }


def make() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))


def test_the_smallest_named_role_decides_and_only_matrices_decay() -> None:
    model = make()
    train = TrainRecipe(learning_rate={"default": 1.0, "generator": 0.5, "generator.bias": 0.25}, weight_decay=0.1)
    found = {id(p): group for group in parameter_groups(roles_of(model), train) for p in group.parameters}
    assert found[id(model[0].weight)].learning_rate == 0.5
    assert found[id(model[0].weight)].weight_decay == 0.1
    assert found[id(model[0].bias)].learning_rate == 0.25
    assert found[id(model[0].bias)].weight_decay == 0.0
    assert found[id(model[1].weight)].learning_rate == 1.0
    assert len(found) == 4


def test_frozen_parameters_are_in_no_group() -> None:
    model = make()
    model[1].requires_grad_(False)
    groups = parameter_groups(roles_of(model), TrainRecipe())
    assert sum(len(group.parameters) for group in groups) == 2
    model.requires_grad_(False)
    with pytest.raises(NumericalError, match="nothing to train"):
        parameter_groups(roles_of(model), TrainRecipe())


def test_an_unknown_role_in_the_rates_is_refused_and_another_methods_role_is_not() -> None:
    with pytest.raises(RecipeError, match="Did you mean 'generator'"):
        parameter_groups(roles_of(make()), TrainRecipe(learning_rate={"default": 1.0, "generatr": 0.5}))
    parameter_groups(roles_of(make()), TrainRecipe(learning_rate={"default": 1.0, "projector": 0.5}))


def test_schedules() -> None:
    cosine = [rate_multiplier("cosine", step, 100, 0.1) for step in range(100)]
    assert cosine[0] == pytest.approx(0.1)
    assert cosine[9] == cosine[10] == 1.0
    assert cosine[55] == pytest.approx(0.5)
    assert 0 < cosine[99] < 0.01
    linear = [rate_multiplier("linear", step, 10, 0.0) for step in range(10)]
    assert linear == pytest.approx([1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])
    assert rate_multiplier("constant", 99, 100, 0.03) == 1.0
    assert rate_multiplier("cosine", 0, 1, 0.03) == 1.0


def test_rates_reach_the_optimizer() -> None:
    groups = parameter_groups(roles_of(make()), TrainRecipe(learning_rate={"default": 1.0, "delta_b": 4.0}))
    optimizer = make_optimizer(groups, (0.9, 0.999))
    assert set_rates(optimizer, groups, 0.5) == {"default": 0.5, "delta_b": 2.0}
    assert {group["lr"] for group in optimizer.param_groups} == {0.5, 2.0}


def test_movement_is_judged_by_role() -> None:
    model = make()
    model[0].weight.requires_grad_(False)
    roles = roles_of(model)
    assert set(finest_roles(roles)) == {"generator.bias", "delta_b"}
    check = MovementCheck(model, roles, frozenset({"delta_b"}))
    with torch.no_grad():
        model[0].bias.add_(1.0)
    check(saw_media=False)
    with pytest.raises(NumericalError, match="'delta_b' are trained but did not move"):
        check(saw_media=True)
    with torch.no_grad():
        model[0].weight.add_(1.0)
    with pytest.raises(NumericalError, match=r"frozen weight '0\.weight' changed"):
        check(saw_media=False)


def test_the_schedule_by_epochs_is_that_of_lavin() -> None:
    """Rates that the published code gives at fractions of epochs, for three of its scripts."""
    cases = json.loads((Path(__file__).parents[1] / "golden" / "lavin" / "a" / "lr_schedule.json").read_text())
    for case in cases.values():
        for epoch, rate in case["points"].items():
            found = epoch_multiplier("cosine", float(epoch), case["epochs"], case["warmup"])
            assert case["lr"] * found == pytest.approx(rate, rel=1e-12)
    assert epoch_multiplier("linear", 3.0, 5, 1) == 0.5
