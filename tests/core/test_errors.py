"""What an error suggests in place of a mistyped name."""

from __future__ import annotations

import pytest

from mmtune.core.errors import nearest

DEVICES = ("a100-40g", "a100-80g", "h100-80g", "h200")


@pytest.mark.parametrize(
    ("given", "expected"), [("h100", "h100-80g"), ("h2000", "h200"), ("a100-8g", "a100-80g"), ("zzz", None), ("", None)]
)
def test_the_nearest_name(given: str, expected: str | None) -> None:
    assert nearest(given, DEVICES) == expected
