"""The prompts that source and written folder are both asked: random ids, with and without a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from mmtune.convert.media_cases import make_item
from mmtune.convert.plan import IMAGE, Picture, Reference
from mmtune.model.processing import MMTuneProcessor
from mmtune.model.processor_files import num_slots

NEW_TOKENS = 8
_TEXT = 12  # random ids before the picture, and as many after it
_SPECIAL_IDS = 3  # unk, bos, eos of the Llama vocabularies


@dataclass(frozen=True, slots=True)
class Case:
    """A prompt in both forms: for references and for mmtune's own model."""

    ids: Tensor  # [T], IMAGE where the picture goes
    picture: Picture | None
    inputs: Mapping[str, Any]  # input_ids, attention_mask, media


class Evaluation(Protocol):
    """A written folder, opened again."""

    def logits(self, case: Case) -> Tensor:
        """Logits ``[L, V]`` of one case; the last hidden state of a tower."""

    def greedy(self, case: Case) -> list[int] | None:
        """The next ids; None for what gives no answers."""


def make_cases(processor: MMTuneProcessor) -> list[Case]:
    """One case with a picture, or an item of each modality, and one of text alone."""
    vocabulary = min(len(processor.tokenizer), *processor.placeholder_ids.values())
    text, known = _random_ids(vocabulary), processor.tokenizer.get_vocab()
    marks = torch.tensor([known[name] for name in processor.markers.values() if name in known], dtype=torch.long)
    text[torch.isin(text, marks)] = min(_SPECIAL_IDS, vocabulary - 1)  # plain transformers takes them for pictures
    shown = _with_picture if set(processor.modalities) == {"image"} else _with_media
    return [shown(processor, text), _without_media(text)]


def text_case(vocabulary: int) -> Case:
    """Random ids."""
    return _without_media(_random_ids(vocabulary))


def _without_media(text: Tensor) -> Case:
    mask = torch.ones(1, len(text), dtype=torch.long)
    return Case(text, None, {"input_ids": text.unsqueeze(0), "attention_mask": mask})


def tower_case(size: int) -> Case:
    """Random pixels for a tower of ``size`` by ``size``."""
    pixels = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    return Case(torch.tensor([IMAGE]), Picture(pixels, (size, size)), {})


def _random_ids(vocabulary: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(min(_SPECIAL_IDS, vocabulary - 1), vocabulary, (2 * _TEXT,), generator=generator)


def _with_picture(processor: MMTuneProcessor, text: Tensor) -> Case:
    modality = processor.modalities["image"]
    image = random_image()
    raw = modality.load(image)
    count = num_slots(processor.slots["image"], modality.positions(raw))
    pixels = raw["pixel_values"]
    shown = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(image.height, image.width, 3)
    marks = torch.full((count,), processor.placeholder_ids["image"])
    input_ids = torch.cat([text[:_TEXT], marks, text[_TEXT:]]).unsqueeze(0)
    media = {"image": {**modality.collate([raw]), "owner": torch.zeros(1, dtype=torch.long)}}
    ids = torch.cat([text[:_TEXT], torch.tensor([IMAGE]), text[_TEXT:]])
    picture = Picture(pixels if pixels.dim() == 4 else pixels.unsqueeze(0), image.size, shown, media)
    return Case(ids, picture, {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "media": media})


def _with_media(processor: MMTuneProcessor, text: Tensor) -> Case:
    """An item of each modality in the midst of the text, ``IMAGE - n`` for the one of modality n."""
    ids, input_ids, media = [text[:_TEXT]], [text[:_TEXT]], {}
    for index, (name, modality) in enumerate(processor.modalities.items()):
        raw = modality.load(make_item(modality, random_image()))
        count = num_slots(processor.slots[name], modality.positions(raw))
        media[name] = {**modality.collate([raw]), "owner": torch.zeros(1, dtype=torch.long)}
        ids.append(torch.tensor([IMAGE - index]))
        input_ids.append(torch.full((count,), processor.placeholder_ids[name]))
    whole = torch.cat([*input_ids, text[_TEXT:]]).unsqueeze(0)
    inputs = {"input_ids": whole, "attention_mask": torch.ones_like(whole), "media": media}
    return Case(torch.cat([*ids, text[_TEXT:]]), Picture(torch.empty(0), (0, 0), media=media), inputs)


def random_image() -> Image.Image:
    """A small smooth picture, wider than high."""
    noise = torch.randint(0, 256, (5, 7, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8).numpy()
    return Image.fromarray(noise).resize((140, 100), Image.Resampling.BICUBIC)


def answer(reference: Reference, case: Case) -> list[tuple[int, float]]:
    """The next ids by full recomputation, each with its lead over the second best."""
    ids, found = case.ids, []
    for _ in range(NEW_TOKENS):
        last = reference.logits(ids, case.picture)[0][-1]
        best, second = last.topk(2).values.tolist()
        token = int(last.argmax())
        found.append((token, best - second))
        ids = torch.cat([ids, torch.tensor([token])])
    return found


def save_cases(cases: Sequence[Case], path: Path) -> None:
    """Write cases for another process."""
    rows = []
    for case in cases:
        picture = case.picture
        shown = None if picture is None else (picture.pixels, list(picture.size), picture.image, picture.media)
        rows.append({"ids": case.ids, "picture": shown, "inputs": dict(case.inputs)})
    torch.save(rows, path)


def load_cases(path: Path) -> list[Case]:
    """Read what :func:`save_cases` wrote."""
    cases = []
    for row in torch.load(path, weights_only=True):
        picture = None
        if row["picture"] is not None:
            pixels, size, image, media = row["picture"]
            picture = Picture(pixels, (size[0], size[1]), image, media)
        cases.append(Case(row["ids"], picture, row["inputs"]))
    return cases
