"""The golden cases as samples and processors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from mmtune.data.messages import MediaQueue, parts_of_text
from mmtune.data.sample import Sample, Turn
from mmtune.modalities.image import ImageModality
from mmtune.model.encoding import Encoded
from mmtune.model.processing import MMTuneProcessor, load_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden"
LLAVA = GOLDEN / "llava" / "a"
VLORA = GOLDEN / "vlora" / "a"


def rows(path: Path, images: Path) -> list[Sample]:
    """The rows of a LLaVA json, read here on their own so that the data floor is not under test."""
    found = []
    for row in json.loads(path.read_text(encoding="utf-8")):
        queue = MediaQueue({"image": [str(images / row["image"])]} if "image" in row else {})
        turns = tuple(
            Turn("user" if turn["from"] == "human" else "assistant", parts_of_text(turn["value"], queue))
            for turn in row["conversations"]
        )
        found.append(Sample(row["id"], turns))
    return found


def processor(case: Path, *, template: str, slots: Any, aspect: str = "pad") -> MMTuneProcessor:
    """A processor over a golden checkpoint's tokenizer and vision tower."""
    tokenizer = load_tokenizer(case / "checkpoint")
    image = ImageModality.from_source(str(case / "vision_tower"), settings={"aspect": aspect})
    return MMTuneProcessor(tokenizer, {"image": image}, template, {"image": len(tokenizer)}, {"image": slots})


def tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file."""
    return load_file(path)


def as_original(encoded: Encoded, placeholder: int) -> tuple[list[int], list[int]]:
    """Ids and labels as the originals write them: one -200 for each item, however many positions it takes."""
    ids, labels = [], []
    for token_id, label in zip(encoded.input_ids, encoded.labels or [-100] * len(encoded.input_ids), strict=True):
        if token_id == placeholder:
            if ids and ids[-1] == -200:
                continue
            token_id = -200
        ids.append(token_id)
        labels.append(label)
    return ids, labels


def unpadded(ids: Tensor, mask: Tensor) -> list[int]:
    """The real part of a padded row."""
    return ids[mask.bool()].tolist()


def stacked(encoded: list[Encoded]) -> Tensor:
    """The pictures of rows, zeros for a row without, as the originals stack them."""
    shape = next(row.media["image"][0]["pixel_values"].shape for row in encoded if row.media)
    return torch.stack([row.media["image"][0]["pixel_values"] if row.media else torch.zeros(shape) for row in encoded])
