"""The figures of a run of ``methods.py`` as markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

NAMES = {"llava": "LLaVA", "multi_token": "multi_token", "vlora": "VLoRA", "lavin": "LaVIN"}
BASES = {"nano": "nano", "100m": "100M + ViT-B/16"}


def render(results: Mapping[str, Any]) -> str:
    """Both tables, with what they were measured on and how to read them."""
    cases = results["cases"]
    return "\n".join(
        [
            "# Methods measured",
            "",
            machine(results),
            "",
            "float32, only the method trained, random pictures and tokens, one process a case. Of several steps the",
            "fastest counts: other programs can only slow a step down. Where they share the cores, wall clock tells of",
            "them all the same; processor seconds hardly do, and the ratios below are made of these. Memory is the",
            "growth of the process from before the model is built to its peak, weights included.",
            "",
            "## Training",
            "",
            *table(_training_rows(cases)),
            "",
            "## VLoRA against LLaVA by length of text",
            "",
            "VLoRA's share of LLaVA's cost. FLOPs of reading one prompt; measured:",
            "processor seconds of reading the same prompt, without and with the image encoder, and of a training step.",
            "",
            *table(_ratio_rows(cases)),
            "",
        ]
    )


def machine(results: Mapping[str, Any]) -> str:
    """The machine, its versions and its load as one line."""
    loads = [load for case in results["cases"] for load in case["load"]]
    env = results["environment"]
    return (
        f"{env['processor']}, {env['cores']} cores ({env['threads']} used), {env['memory_gib']} GiB, {env['system']}; "
        f"Python {env['python']}, torch {env['torch']}, transformers {env['transformers']}; commit {env['commit']}; "
        f"{env['date']}; load average {min(loads):.1f} to {max(loads):.1f} on {env['cores']} cores meanwhile."
    )


def _training_rows(cases: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    return [
        {
            "base": BASES[case["base"]],
            "method": NAMES[case["method"]],
            "text tokens": str(case["text"]),
            "positions": str(case["positions"]),
            "batch": str(case["batch_size"]),
            "s/step": f"{case['train_step']['least_s']:.3f}",
            "samples/s": f"{case['batch_size'] / case['train_step']['least_s']:.2f}",
            "processor s/step": f"{case['train_step']['processor_s']:.3f}",
            "peak memory": f"{case['peak_memory_bytes'] / 2**20:,.0f} MiB",
            "trainable": f"{case['parameters']['trainable']:,}",
            "checkpoint": f"{case['checkpoint_bytes'] / 1e6:,.1f} MB",
        }
        for case in cases
    ]


def _ratio_rows(cases: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    found = {(case["base"], case["text"], case["method"]): case for case in cases}
    rows = []
    for base, text, method in found:
        if method != "llava" or (base, text, "vlora") not in found:
            continue
        llava, vlora = found[base, text, "llava"], found[base, text, "vlora"]
        rows.append(
            {
                "base": BASES[base],
                "text tokens": str(text),
                "LLaVA GFLOP": f"{llava['flops']['language_side'] / 1e9:.2f}",
                "VLoRA GFLOP": f"{vlora['flops']['language_side'] / 1e9:.2f}",
                "FLOPs ratio": f"{_flops(vlora) / _flops(llava):.2f}",
                "measured": f"{_ratio(vlora, llava, 'forward_without_encoder'):.2f}",
                "FLOPs ratio with encoder": f"{_flops(vlora, encoder=True) / _flops(llava, encoder=True):.2f}",
                "measured with encoder": f"{_ratio(vlora, llava, 'forward'):.2f}",
                "training step": f"{_ratio(vlora, llava, 'train_step'):.2f}",
            }
        )
    return rows


def _flops(case: Mapping[str, Any], *, encoder: bool = False) -> float:
    return float(case["flops"]["language_side"] + (case["flops"]["encoder"] if encoder else 0))


def _ratio(one: Mapping[str, Any], other: Mapping[str, Any], what: str) -> float:
    return float(one[what]["processor_s"] / other[what]["processor_s"])


def table(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Rows as the lines of a markdown table."""
    if not rows:
        return ["(nothing measured)"]
    head = list(rows[0])
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return lines + [f"| {' | '.join(row[name] for name in head)} |" for row in rows]
