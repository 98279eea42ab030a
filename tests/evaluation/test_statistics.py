"""Intervals that say how sure a score is."""

from __future__ import annotations

import math

import pytest

from mmtune.evaluation.statistics import bootstrap, mean_interval, ratio_interval, share_interval, wilson


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [(5, 10, 0.2366, 0.7634), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662)],
)
def test_wilson_equals_published_values(hits: int, n: int, low: float, high: float) -> None:
    assert wilson(hits, n) == pytest.approx((low, high), abs=1e-4)


def test_nothing_is_known_without_rows() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    assert all(math.isnan(value) for value in bootstrap([], []))


def test_the_bootstrap_is_seeded_and_holds_the_ratio() -> None:
    sums, weights = [float(value) for value in range(50)], [1.0] * 50
    low, high = bootstrap(sums, weights)
    assert (low, high) == bootstrap(sums, weights)
    assert (low, high) != bootstrap(sums, weights, seed=1)
    assert low < 24.5 < high
    assert 3 < high - low < 12  # the standard error of the mean is about 2


def test_json_forms_name_their_method() -> None:
    assert share_interval(1, 2)["method"] == "wilson"
    assert ratio_interval([1.0, 2.0], [1.0, 1.0])["method"] == "bootstrap"


def test_equal_verdicts_promise_no_certainty() -> None:
    all_wrong = mean_interval([0, 0, 0, 0], ["a", "a", "b", "b"], scale=100)
    assert all_wrong["method"] == "wilson"
    assert (all_wrong["low"], all_wrong["high"]) == pytest.approx((0, 65.76), abs=0.01), "as 0 of 2 pictures"
    all_right = mean_interval([1, 1, 1], ["a", "a", "b"])
    assert (all_right["low"], all_right["high"]) == pytest.approx((0.3424, 1), abs=1e-4)


def test_one_picture_tells_nothing_of_others() -> None:
    found = mean_interval([1, 0, 1], ["a", "a", "a"])
    assert (found["low"], found["high"], found["method"]) == (None, None, "bootstrap")
