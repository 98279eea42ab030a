"""Raw prompts for methods with one place for media: they carry no marker."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mmtune.cli.requests import Reading, prompt_sample
from mmtune.core.errors import DataError
from mmtune.data.sample import Media, Text

RAW = Reading({"image": "<image>"}, {"images": "image"}, raw=True)
ITEMS = {"image": ["a.png"]}


def test_an_item_stands_first_without_a_marker() -> None:
    placed = replace(RAW, placed=True)
    for prompt in ("Question: What?", "<image>Question: What?"):
        sample = prompt_sample(prompt, ITEMS, placed)
        assert sample.turns[0].parts == (Media("image", "a.png"), Text("Question: What?"))
    with pytest.raises(DataError, match="0 markers"):
        prompt_sample("Question: What?", ITEMS, RAW)
