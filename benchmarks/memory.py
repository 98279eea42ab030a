"""Planned memory beside measured, over models, methods, batches and options, on the CPU:

    python benchmarks/memory.py [--only NAME]... [--output benchmarks/results]

Every row is a `mmtune finetune` in a process of its own; what is compared is the ``memory`` of its result. Prints a
table; with --output it goes into ``memory.md`` and ``memory.json``, where rows of earlier calls are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from methods import describe
from PIL import Image
from transformers import CLIPImageProcessorPil

from mmtune.testing.tiny import save_tiny_lm, tiny_vision

Sizes = dict[str, Any]
VLORA_SMALL = "model.settings={dim: 64, rank: 8, depth: 2, heads: 4, types: qkvom, every: 2}"
VLORA_LARGE = "model.settings={dim: 256, rank: 16, depth: 4, heads: 8, types: qkvom, every: 4, alpha: 16}"
CHECKPOINTING = "train.gradient_checkpointing=true"


def language(width: int, layers: int, words: int, *, tied: bool = False) -> Sizes:
    """A Llama with heads of 64."""
    return {
        "hidden_size": width, "intermediate_size": round(width * 8 / 3 / 16) * 16, "num_hidden_layers": layers,
        "num_attention_heads": width // 64, "num_key_value_heads": width // 64, "head_dim": 64, "vocab_size": words,
        "max_position_embeddings": 2048, "tie_word_embeddings": tied, "initializer_range": 0.02,
    }  # fmt: skip


def vision(width: int, layers: int, side: int) -> Sizes:
    """A ViT with patches of 16 pixels."""
    return {
        "hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers,
        "num_attention_heads": width // 64, "image_size": side, "patch_size": 16, "initializer_range": 0.02,
    }  # fmt: skip


MODELS: dict[str, tuple[Sizes, Sizes] | None] = {
    "nano": None,
    "9M": (language(256, 4, 8000), vision(192, 4, 112)),
    "25M": (language(384, 6, 16000), vision(256, 4, 224)),
    "72M": (language(512, 8, 32000), vision(384, 6, 224)),
    "185M": (language(768, 12, 20480, tied=True), vision(768, 12, 224)),
}
# model, method, what is tuned, lengths, rows of a batch, steps, settings
CASES: dict[str, tuple[str, str, str, str, int, int, tuple[str, ...]]] = {
    "nano-llava": ("nano", "llava", "method", "equal", 16, 6, ()),
    "nano-multi-token": ("nano", "multi-token", "method", "equal", 8, 6, ()),
    "nano-vlora": ("nano", "vlora", "method", "equal", 16, 6, ()),
    "nano-lavin": ("nano", "lavin", "method", "equal", 16, 6, ()),
    "9M-llava": ("9M", "llava", "method", "equal", 8, 4, ()),
    "9M-llava-4": ("9M", "llava", "method", "equal", 4, 4, ()),
    "9M-multi-token": ("9M", "multi-token", "method", "equal", 8, 4, ()),
    "9M-vlora": ("9M", "vlora", "method", "equal", 8, 4, (VLORA_SMALL,)),
    "9M-lavin": ("9M", "lavin", "method", "equal", 8, 4, ()),
    "9M-llava-lora": ("9M", "llava", "lora", "equal", 8, 4, ()),
    "9M-llava-full": ("9M", "llava", "full", "equal", 8, 4, ()),
    "9M-llava-again": ("9M", "llava", "method", "equal", 8, 4, (CHECKPOINTING,)),
    "9M-llava-spread": ("9M", "llava", "method", "spread", 8, 6, ()),
    "9M-vlora-spread": ("9M", "vlora", "method", "spread", 8, 6, (VLORA_SMALL,)),
    "25M-llava-full-again": ("25M", "llava", "full", "equal", 4, 4, (CHECKPOINTING,)),
    "25M-vlora": ("25M", "vlora", "method", "equal", 4, 4, (VLORA_SMALL,)),
    "25M-lavin": ("25M", "lavin", "method", "equal", 4, 4, ()),
    "72M-llava": ("72M", "llava", "method", "equal", 8, 3, ()),
    "72M-vlora": ("72M", "vlora", "method", "equal", 8, 3, (VLORA_LARGE,)),
    "72M-llava-full": ("72M", "llava", "full", "equal", 4, 3, ()),
    "185M-llava-lora-again": ("185M", "llava", "lora", "equal", 2, 3, (CHECKPOINTING,)),
    "185M-vlora": ("185M", "vlora", "method", "equal", 4, 3, (VLORA_LARGE,)),
    "185M-lavin": ("185M", "lavin", "method", "equal", 2, 3, ()),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare planned memory with measured.")
    parser.add_argument("--only", choices=list(CASES), action="append", help="only this row; may be repeated")
    parser.add_argument("--output", type=Path, help="folder for memory.md and memory.json [default: none]")
    arguments = parser.parse_args()
    stored = arguments.output / "memory.json" if arguments.output is not None else None
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in arguments.only or CASES:
            row = measure(name, Path(scratch))
            print(f"{name}: {row}", file=sys.stderr, flush=True)
            if stored is not None and stored.is_file():
                found = json.loads(stored.read_text(encoding="utf-8"))["rows"] | found
            found[name] = row
            if stored is not None:
                stored.parent.mkdir(parents=True, exist_ok=True)
                stored.write_text(json.dumps({"environment": describe(), "rows": found}, indent=1) + "\n", "utf-8")
                stored.with_suffix(".md").write_text(render(found), encoding="utf-8")
    print(render(found))


def measure(name: str, scratch: Path) -> dict[str, Any]:
    """Train a few steps; returns what was planned and what the process grew by."""
    model, method, kind, lengths, rows, steps, settings = CASES[name]
    command = [
        sys.executable, "-m", "mmtune", "finetune", "--json", "-q", "--method", method, "--tune", kind,
        "--data", str(write_data(scratch / lengths, lengths)), "--output", str(scratch / name), "--device", "cpu",
        "--batch-size", str(rows), "--max-steps", str(steps), "--epochs", "99",
    ]  # fmt: skip
    if MODELS[model] is not None:
        command += ["--base", str(scratch / model / "lm"), "--vision", str(scratch / model / "vision")]
        write_model(scratch / model, *MODELS[model])
    template = "vlora" if method == "vlora" else "vicuna_v1"
    for one in (f"data.template={template}", f"data.cache={scratch / 'cache'}", *settings):
        command += ["--set", one]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    result = json.loads(done.stdout)
    if done.returncode:
        raise SystemExit(f"{name}: {result['error']['message']}")
    return {**result["memory"], "load": round(os.getloadavg()[0], 1)}


def write_model(folder: Path, lm: Sizes, tower: Sizes) -> None:
    """Random weights of these sizes, once."""
    if folder.is_dir():
        return
    save_tiny_lm(folder / "lm", **lm)
    tiny_vision(**tower).save_pretrained(folder / "vision")
    side = tower["image_size"]
    crop = {"height": side, "width": side}
    CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=crop).save_pretrained(folder / "vision")


def write_data(folder: Path, lengths: str) -> Path:
    """64 rows of a picture and 128 characters, or of 10 to 600, short ones the most."""
    path = folder / "data.json"
    if path.is_file():
        return path
    folder.mkdir(parents=True)
    drawn = random.Random(0)
    rows = []
    for index in range(64):
        length = 128 if lengths == "equal" else round(10 * 60 ** drawn.random())
        Image.new("RGB", (64, 64), ("red", "green", "blue")[index % 3]).save(folder / f"{index}.png")
        text = "".join(drawn.choice("abcdefghij") for _ in range(length))
        asked, answered = text[: 6 * length // 10], text[6 * length // 10 :]
        turns = [{"from": "human", "value": f"<image>\n{asked}"}, {"from": "gpt", "value": answered}]
        rows.append({"id": str(index), "image": f"{index}.png", "conversations": turns})
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def render(rows: dict[str, Any]) -> str:
    """The table."""
    env = describe()
    versions = f"torch {env['torch']}, transformers {env['transformers']}"
    lines = [
        "# Planned memory beside measured",
        "",
        f"{env['processor']}, {env['system']}; {versions}; {env['date']}.",
        "",
        "Each row is a `mmtune finetune` on the CPU in float32, in a process of its own. Measured: growth of its",
        "resident memory from before the model is built to the peak of the run (`VmHWM`, begun anew), weights mapped",
        "from files included as far as they were read. Planned: `memory.planned_bytes` of its result. `again`: with",
        "gradient checkpointing. Python and its libraries before the model (430 MiB) are in neither. (docs/adr/0021)",
        "",
        "| model | method | tuned | lengths | batch | steps | planned MiB | measured MiB | planned / measured |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name in (name for name in CASES if name in rows):
        model, method, kind, lengths, size, steps, settings = CASES[name]
        planned, measured = rows[name]["planned_bytes"], rows[name]["measured_bytes"]
        again = ", again" if CHECKPOINTING in settings else ""
        lines.append(
            f"| {model} | {method} | {kind}{again} | {lengths} | {size} | {steps} | {planned / 2**20:,.0f} "
            f"| {measured / 2**20:,.0f} | {planned / measured:.2f} |"
        )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
