"""Proves a written folder: all tensors are there, and it answers as an independent evaluation of the source does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmtune.convert.cases import Case, answer, make_cases, save_cases, text_case, tower_case
from mmtune.convert.damage import read_json
from mmtune.convert.layout import Layout
from mmtune.convert.opening import raise_reported
from mmtune.convert.plan import Part, PlainPlan, Plan, Reference
from mmtune.convert.staging import Stage
from mmtune.convert.target import readable
from mmtune.convert.tensors import open_file, open_folder
from mmtune.core.errors import ResourceError, VerificationError

RELATIVE_TOLERANCE = 1e-3  # of the largest logit; float32 evaluations of deep models differ by less
_BYTES = 4  # of a float32 value
Answer = list[tuple[int, float]]  # ids with their lead over the second best


def verify(folder: Path, plan: Plan | PlainPlan, layout: Layout, stage: Stage | None) -> dict[str, Any]:
    """Check a written folder against its source.

    Returns:
        ``max_abs_logit_diff`` and ``greedy_equal``; both None with a ``note`` when the model is too large for memory
        and only its tensors were compared, one by one. A tower has a last hidden state instead of logits, no answer.

    Raises:
        VerificationError: Anything differs, or the adapter changes nothing.
    """
    check_tensors(folder, layout.parts, values=False)
    needed, free = plan.reference.num_parameters * _BYTES * 5 // 4, available_memory()
    if free is not None and needed > free:
        count = check_tensors(folder, layout.parts, values=True)
        sizes = f"needs {readable(needed)} of memory, {readable(free)} are free"
        note = f"Evaluating the model {sizes}: compared {count} tensors, not logits."
        return {"max_abs_logit_diff": None, "greedy_equal": None, "tensors": count, "note": note}
    cases = _cases(plan, stage)
    if layout.opened_as == "adapter":  # for the language model alone
        cases = [case for case in cases if case.picture is None]
    expected, answers = _evaluate_source(plan, cases)
    found = evaluate_afresh(folder, layout, cases)
    return _compare(plan, expected, answers, found)


def _cases(plan: Plan | PlainPlan, stage: Stage | None) -> list[Case]:
    if stage is not None:
        return make_cases(stage.processor)
    if plan.form == "lora" and plan.base is not None:
        return [text_case(int(read_json(plan.base / "config.json")["vocab_size"]))]
    config = plan.parts[0].documents["config.json"]
    return [tower_case(int(config["image_size"])) if plan.form == "vision" else text_case(int(config["vocab_size"]))]


def check_tensors(folder: Path, parts: Sequence[Part], *, values: bool) -> int:
    """Compare what was written with what was planned: names, shapes, dtypes, and if asked every value.

    Raises:
        VerificationError: Names the tensor.
    """
    count = 0
    for part in parts:
        written = _open_part(folder, part)
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


def _open_part(folder: Path, part: Part) -> dict[str, Any]:
    if part.wrap is not None:  # the opener reads it
        return {entry.name: entry for entry in part.entries}
    if part.suffix != "safetensors":
        return open_file(folder / part.folder / f"{part.stem}.{part.suffix}")
    return open_folder(folder / part.folder, (part.stem,))


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
    plan: Plan | PlainPlan, cases: Sequence[Case]
) -> tuple[list[tuple[Tensor, Tensor]], list[Answer | None]]:
    """Logits and greedy answers of the source; its weights are released again on return."""
    reference = plan.reference
    reference.load()
    expected = [reference.logits(case.ids, case.picture) for case in cases]
    if isinstance(plan, Plan):
        _check_adapter(reference, cases[0], expected[0], plan)
    answers = [None if plan.form == "vision" else answer(reference, case) for case in cases]
    reference.release()
    return expected, answers


def _check_adapter(reference: Reference, case: Case, expected: tuple[Tensor, Tensor], plan: Plan) -> None:
    plain, _ = reference.logits(case.ids, case.picture, adapter=False)
    logits, real = expected
    if float((plain - logits)[real].abs().max()) <= 1e-6 * float(logits.abs().max()):
        raise VerificationError(
            "The adapter changes nothing: with and without it the source gives the same logits.",
            where=str(plan.sources[0]),
            fix="use a checkpoint that was trained, this one is as at the start; --no-verify converts it anyway",
        )


def evaluate_afresh(folder: Path, layout: Layout, cases: Sequence[Case]) -> list[tuple[Tensor, list[int] | None]]:
    """Open the folder in a process of its own, as a user would, and let it answer.

    Raises:
        VerificationError: It cannot be opened or evaluated.
        ResourceError: The process was ended from outside, as for want of memory.
    """
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        asked = {"folder": str(folder.resolve()), "opened_as": layout.opened_as, "options": dict(layout.options)}
        (place / "asked.json").write_text(json.dumps(asked), encoding="utf-8")
        save_cases(cases, place / "cases.pt")
        command = [sys.executable, "-m", "mmtune.convert.opening", str(place), str(place / "answers.pt")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if not (place / "answers.pt").is_file():
            lines = done.stderr.strip().splitlines() or [f"exit {done.returncode}"]
            raise ResourceError(
                f"The process that opens the written folder ended early: {lines[-1][:200]}",
                where=str(folder),
                fix="free memory and try again; --no-verify leaves the check out",
            )
        found = torch.load(place / "answers.pt", weights_only=True)
    raise_reported(found)
    return [(logits, ids) for logits, ids in found]


def _compare(
    plan: Plan | PlainPlan,
    expected: Sequence[tuple[Tensor, Tensor]],
    answers: Sequence[Answer | None],
    found: Sequence[tuple[Tensor, list[int] | None]],
) -> dict[str, Any]:
    largest, equal, where = 0.0, True, str(plan.sources[0])
    for (logits, real), wanted, (given, made) in zip(expected, answers, found, strict=True):
        if len(given) != len(logits) or given.shape[-1] < logits.shape[-1]:
            raise VerificationError(f"The written model gives logits {list(given.shape)}, not {list(logits.shape)}.")
        given = given[:, : logits.shape[-1]]  # a vocabulary may be filled up behind its last token
        tolerance = RELATIVE_TOLERANCE * max(1.0, float(logits.abs().max()))
        difference = float((given - logits)[real].abs().max())
        if not difference <= tolerance:
            raise VerificationError(
                f"The converted model's logits differ from the source's by {difference:.3g} (allowed {tolerance:.3g}).",
                where=where,
                fix="report this with the checkpoint's config.json; --no-verify writes it anyway",
            )
        largest = max(largest, difference)
        equal = equal and (wanted is None or made is None or _same_answer(made, wanted, tolerance))
    if not equal:
        raise VerificationError("The converted model's greedy answer is not the source's.", where=where)
    answered = any(wanted is not None for wanted in answers)
    return {"max_abs_logit_diff": largest, "greedy_equal": equal if answered else None}


def _same_answer(made: Sequence[int], wanted: Answer, tolerance: float) -> bool:
    """Equal ids up to the first end of sequence, or up to a tie that rounding may decide either way."""
    for token, (best, lead) in zip(made, wanted, strict=False):
        if token != best:
            return lead <= 2 * tolerance
    return True
