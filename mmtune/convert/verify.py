"""Proves a written folder: all tensors are there, and it answers as an independent evaluation of the source does."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mmtune.convert.plan import IMAGE, Part, Picture, Plan, Reference
from mmtune.convert.target import readable
from mmtune.convert.tensors import open_folder
from mmtune.core.errors import VerificationError
from mmtune.model.build import load
from mmtune.model.modeling import MMTuneModel
from mmtune.model.processing import MMTuneProcessor

RELATIVE_TOLERANCE = 1e-3  # of the largest logit; float32 evaluations of deep models differ by less
_NEW_TOKENS = 8
_TEXT = 12  # random ids before the picture, and as many after it
_SPECIAL_IDS = 3  # unk, bos, eos of the Llama vocabularies
_BYTES = 4  # of a float32 value


@dataclass(frozen=True, slots=True)
class Case:
    """A prompt in both forms: for the reference and for the converted model."""

    ids: Tensor  # [T], IMAGE where the picture goes
    picture: Picture | None
    inputs: Mapping[str, Any]  # input_ids, attention_mask, media


def verify(folder: Path, plan: Plan) -> dict[str, Any]:
    """Check a written folder against its source.

    Returns:
        ``max_abs_logit_diff`` and ``greedy_equal``; both None with a ``note`` when the model is too large for memory
        and only its tensors were compared, one by one.

    Raises:
        VerificationError: Anything differs, or the adapter changes nothing.
    """
    check_tensors(folder, plan.parts, values=False)
    needed, free = plan.reference.num_parameters * _BYTES * 5 // 4, available_memory()
    if free is not None and needed > free:
        count = check_tensors(folder, plan.parts, values=True)
        sizes = f"needs {readable(needed)} of memory, {readable(free)} are free"
        note = f"Evaluating the model {sizes}: compared {count} tensors, not logits."
        return {"max_abs_logit_diff": None, "greedy_equal": None, "tensors": count, "note": note}
    cases, expected, answers = _evaluate_source(folder, plan)
    return _compare_model(folder, plan, cases, expected, answers)


def check_tensors(folder: Path, parts: Sequence[Part], *, values: bool) -> int:
    """Compare what was written with what was planned: names, shapes, dtypes, and if asked every value.

    Raises:
        VerificationError: Names the tensor.
    """
    count = 0
    for part in parts:
        written = open_folder(folder / part.folder, (part.stem,))
        planned = {entry.name: entry for entry in part.entries}
        if written.keys() != planned.keys():
            different = sorted(written.keys() ^ planned.keys())
            raise VerificationError(
                f"The written tensors are not the planned ones: {different[:4]}.", where=part.folder
            )
        for name, entry in planned.items():
            same = written[name].shape == tuple(entry.shape) and written[name].dtype == entry.dtype
            if same and values:
                same = torch.equal(written[name].read(), entry.read().to(entry.dtype))
            if not same:
                raise VerificationError(f"Tensor '{name}' is not what its source holds.", where=str(written[name].file))
        count += len(planned)
    return count


def available_memory() -> int | None:
    """Bytes that can be had without swapping, or None where the system does not tell."""
    path = Path("/proc/meminfo")
    if path.is_file():
        for line in path.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    names = ("SC_AVPHYS_PAGES", "SC_PAGE_SIZE")
    if all(name in os.sysconf_names for name in names):
        return os.sysconf(names[0]) * os.sysconf(names[1])
    return None


def _evaluate_source(
    folder: Path, plan: Plan
) -> tuple[list[Case], list[tuple[Tensor, Tensor]], list[list[tuple[int, float]]]]:
    """Logits and greedy answers of the source; its weights are released again on return."""
    processor = MMTuneProcessor.from_pretrained(folder)
    vocabulary = min(processor.placeholder_ids.values())
    cases = [_case(processor, vocabulary, with_picture) for with_picture in (True, False)]
    reference = plan.reference
    reference.load()
    expected = [reference.logits(case.ids, case.picture) for case in cases]
    _check_adapter(reference, cases, expected, plan)
    answers = [_greedy(reference, case) for case in cases]
    reference.release()
    return cases, expected, answers


def _check_adapter(reference: Reference, cases: list[Case], expected: list[tuple[Tensor, Tensor]], plan: Plan) -> None:
    plain, _ = reference.logits(cases[0].ids, cases[0].picture, adapter=False)
    logits, real = expected[0]
    if float((plain - logits)[real].abs().max()) <= 1e-6 * float(logits.abs().max()):
        raise VerificationError(
            "The adapter changes nothing: with and without it the source gives the same logits.",
            where=str(plan.sources[0]),
            fix="use a checkpoint that was trained, this one is as at the start; --no-verify converts it anyway",
        )


def _case(processor: MMTuneProcessor, vocabulary: int, with_picture: bool) -> Case:
    generator = torch.Generator().manual_seed(0)
    low = min(_SPECIAL_IDS, vocabulary - 1)
    text = torch.randint(low, vocabulary, (2 * _TEXT,), generator=generator)
    if not with_picture:
        return Case(
            text, None, {"input_ids": text.unsqueeze(0), "attention_mask": torch.ones(1, len(text), dtype=torch.long)}
        )
    modality = processor.modalities["image"]
    noise = torch.randint(0, 256, (5, 7, 3), generator=generator, dtype=torch.uint8).numpy()
    image = Image.fromarray(noise).resize((140, 100), Image.Resampling.BICUBIC)
    raw = modality.load(image)
    slots = processor.slots["image"]
    count = modality.positions(raw) if slots == "positions" else int(slots)
    pixels = raw["pixel_values"]
    picture = Picture(pixels if pixels.dim() == 4 else pixels.unsqueeze(0), image.size)
    marks = torch.full((count,), processor.placeholder_ids["image"])
    input_ids = torch.cat([text[:_TEXT], marks, text[_TEXT:]]).unsqueeze(0)
    media = {"image": {**modality.collate([raw]), "owner": torch.zeros(1, dtype=torch.long)}}
    ids = torch.cat([text[:_TEXT], torch.tensor([IMAGE]), text[_TEXT:]])
    return Case(ids, picture, {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "media": media})


def _greedy(reference: Reference, case: Case) -> list[tuple[int, float]]:
    """The next ids by full recomputation, each with its lead over the second best."""
    ids, found = case.ids, []
    for _ in range(_NEW_TOKENS):
        last = reference.logits(ids, case.picture)[0][-1]
        best, second = last.topk(2).values.tolist()
        token = int(last.argmax())
        found.append((token, best - second))
        ids = torch.cat([ids, torch.tensor([token])])
    return found


def _compare_model(
    folder: Path,
    plan: Plan,
    cases: list[Case],
    expected: list[tuple[Tensor, Tensor]],
    answers: list[list[tuple[int, float]]],
) -> dict[str, Any]:
    model, _ = load(folder, device="cpu", dtype="float32")
    largest, equal = 0.0, True
    for case, (logits, real), answer in zip(cases, expected, answers, strict=True):
        with torch.no_grad():
            found = model(**case.inputs).logits[0].float()
        if found.shape != logits.shape:
            raise VerificationError(
                f"The converted model gives logits {list(found.shape)}, the source {list(logits.shape)}."
            )
        tolerance = RELATIVE_TOLERANCE * max(1.0, float(logits.abs().max()))
        difference = float((found - logits)[real].abs().max())
        if not difference <= tolerance:
            raise VerificationError(
                f"The converted model's logits differ from the source's by {difference:.3g} (allowed {tolerance:.3g}).",
                where=str(plan.sources[0]),
                fix="report this with the checkpoint's config.json; --no-verify writes it anyway",
            )
        largest = max(largest, difference)
        equal = equal and _same_answer(model, case, answer, tolerance)
    if not equal:
        raise VerificationError("The converted model's greedy answer is not the source's.", where=str(plan.sources[0]))
    return {"max_abs_logit_diff": largest, "greedy_equal": equal}


def _same_answer(model: MMTuneModel, case: Case, answer: list[tuple[int, float]], tolerance: float) -> bool:
    """Equal ids up to the first end of sequence, or up to a tie that rounding may decide either way."""
    made = model.generate(**case.inputs, max_new_tokens=_NEW_TOKENS, do_sample=False)[0].tolist()
    for token, (wanted, lead) in zip(made, answer, strict=False):
        if token != wanted:
            return lead <= 2 * tolerance
    return True
