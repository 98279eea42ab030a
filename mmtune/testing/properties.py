"""The properties that every method has to have, one function each.

Each takes a bench whose method was woken, so that nothing holds because a factor is still zero; only neutrality is
asked of a fresh one. Shapes: B rows, T positions, V vocabulary.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from mmtune.model.build import load
from mmtune.model.encoding import Encoded
from mmtune.testing.bench import Bench
from mmtune.testing.report import Report, broken, difference

NEW_TOKENS = 6


def worst(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest difference of any row, NaN if there is one."""
    differences = [difference(left, right) for left, right in zip(found, expected, strict=True)]
    return float(torch.tensor(differences, dtype=torch.float64).max())


def check_neutral(bench: Bench, report: Report) -> None:
    """A fresh method that promises it leaves the language model's answers as they are."""
    if not bench.model.method.neutral_at_init:
        return report.add("neutral at the start", note="not promised by this method")
    batch = bench.batch(bench.ragged())
    found = bench.logits(batch)
    with bench.tokens_only():
        expected = bench.logits(batch)
    return report.add("neutral at the start", worst(found, expected), 1e-6)


def check_reaches(bench: Bench, report: Report) -> None:
    """Another item gives other answers; without this all other properties would say nothing."""
    found, expected = bench.alone([bench.row(0, [0]), bench.row(0, [1])])
    changed = difference(found[-1], expected[-1])
    if not changed > bench.tolerance:
        raise broken(
            bench.name, "perception reaches the model", f"another item changes the answer by only {changed:.3g}"
        )
    report.add("perception reaches the model", note=f"another item changes the answer by {changed:.2g}")


def check_text_only(bench: Bench, report: Report) -> None:
    """Rows without media need no stand-in: alone, together, beside rows with media, and in training."""
    rows = [bench.row(0, []), bench.row(1, [])]
    alone = bench.alone(rows)
    together = bench.logits(bench.batch(rows))
    beside = bench.logits(bench.batch([*rows, bench.row(2, [0])]))[:2]
    report.add("text-only rows", max(worst(together, alone), worst(beside, alone)), bench.tolerance)
    model = bench.model
    model.set_trainable(["method"])
    model.train().zero_grad(set_to_none=True)
    loss = model(**bench.batch(rows)).loss
    if loss.requires_grad:
        loss.backward()
    untouched = [name for name, parameter in model.method.named_parameters() if parameter.grad is None]
    model.eval().zero_grad(set_to_none=True)
    if untouched:
        what = (
            f"training on text alone leaves {', '.join(untouched[:3])} without a gradient, which stalls other processes"
        )
        raise broken(bench.name, "text-only rows", what)


def check_ragged(bench: Bench, report: Report) -> None:
    """Rows with no, one and two items in one batch equal the same rows alone."""
    rows = bench.ragged()
    report.add("ragged media", worst(bench.logits(bench.batch(rows)), bench.alone(rows)), bench.tolerance)


def check_permutation(bench: Bench, report: Report) -> None:
    """Permuting the batch permutes the outputs."""
    rows, order = bench.ragged(), [2, 0, 3, 1]
    plain = bench.logits(bench.batch(rows))
    permuted = bench.logits(bench.batch([rows[index] for index in order]))
    report.add("permuting the batch", worst(permuted, [plain[index] for index in order]), bench.tolerance)


def check_padding(bench: Bench, report: Report) -> None:
    """Padding on either side changes nothing."""
    rows = [bench.row(0, [0]), bench.row(2, [1, 2])]
    found = [bench.logits(_padded(bench, row, side))[0] for side in ("right", "left") for row in rows]
    report.add("padding", worst(found, bench.alone(rows) * 2), bench.tolerance)


def _padded(bench: Bench, row: Encoded, side: str, amount: int = 5) -> dict[str, Any]:
    """One row with more padding than a batch of its own has."""
    batch = bench.batch([row], side)
    width = (0, amount) if side == "right" else (amount, 0)
    batch["input_ids"] = pad(batch["input_ids"], width, value=bench.processor.pad_id)
    batch["attention_mask"] = pad(batch["attention_mask"], width, value=0)
    return batch


def check_checkpointing(bench: Bench, report: Report) -> None:
    """Gradient checkpointing changes neither losses nor gradients, also with two forwards before a backward."""
    plain = _gradients(bench)
    bench.model.gradient_checkpointing_enable()
    try:
        recomputed = _gradients(bench)
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            bench.model.language_model.gradient_checkpointing_disable()
    relative = 0.0
    for left, right in zip(recomputed, plain, strict=True):
        scale = max(float(right.abs().max()), 1e-6)
        relative = max(relative, difference(left, right) / scale)
    report.add(
        "gradient checkpointing", relative, bench.tolerance, "relative to the largest gradient of each parameter"
    )


def _gradients(bench: Bench) -> list[Tensor]:
    """The loss of two batches and what one backward through both gives every parameter of the method."""
    model = bench.model
    model.set_trainable(["method"])
    model.train().zero_grad(set_to_none=True)
    torch.manual_seed(0)
    rows = bench.ragged()
    loss = model(**bench.batch(rows[:2])).loss + 2 * model(**bench.batch(rows[2:])).loss
    loss.backward()
    found = [loss.detach(), *(parameter.grad for parameter in model.method.parameters() if parameter.grad is not None)]
    model.eval().zero_grad(set_to_none=True)
    return found


def check_saving(bench: Bench, report: Report) -> None:
    """A checkpoint gives back the same model and processor."""
    bench.model.float()  # what checkpoints are written and loaded in on a CPU
    folder = bench.folder / "checkpoint"
    bench.model.save_pretrained(str(folder))
    bench.processor.save_pretrained(folder)
    model, processor = load(folder, device="cpu")
    model.to(
        bench.dtype
    ).float()  # loses nothing; weights mapped from a file lie otherwise in memory, which rounds otherwise
    again = replace(bench, model=model.eval(), processor=processor)
    found, expected = (each.logits(each.batch(each.ragged())) for each in (again, bench))
    bench.model.to(bench.dtype)
    report.add("save and load", worst(found, expected), 0.0)


def check_generation(bench: Bench, report: Report) -> None:
    """Cached greedy decoding of a left-padded batch sees the scores that the whole sequence at once gives."""
    prompts = [bench.prompt(number, shown) for number, shown in enumerate(([0], [], [1, 2]))]
    made = _generate(bench, prompts, output_logits=True, return_dict_in_generate=True)
    found = torch.stack(made.logits, dim=1)  # [B, T_new, V]
    expected = []
    for prompt, new in zip(prompts, made.sequences.tolist(), strict=True):
        whole = Encoded(prompt.id, prompt.input_ids + new, [], prompt.media, 0)
        expected.append(bench.logits(bench.batch([whole]))[0][len(prompt.input_ids) - 1 : -1])  # [T_new, V]
    report.add("cached generation", worst(list(found), expected), bench.tolerance)


def check_beams(bench: Bench, report: Report) -> None:
    """Beam search over a batch finds what it finds for each row alone."""
    prompts = [bench.prompt(number, shown) for number, shown in enumerate(([0], [], [1, 2]))]
    batched = _generate(bench, prompts, num_beams=3).tolist()
    for row, (prompt, found) in enumerate(zip(prompts, batched, strict=True)):
        alone = _generate(bench, [prompt], num_beams=3)[0].tolist()
        if found != alone:
            raise broken(bench.name, "batched beams", f"row {row} gives {found} in a batch and {alone} alone")
    report.add("batched beams", note=f"{len(prompts)} rows of 3 beams equal single ones")


def _generate(bench: Bench, prompts: Sequence[Encoded], **settings: Any) -> Any:
    """New ids ``[B, T_new]``, or transformers' output object."""
    batch = bench.batch(prompts, side="left")
    batch.pop("labels", None)
    fixed = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False}
    return bench.model.generate(**batch, **fixed, **settings)
