"""The model card of an uploaded folder: what it is, what it stands on, how it was checked, how to load it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from mmtune.convert.layout import Layout
from mmtune.convert.locate import is_hub_id
from mmtune.convert.plan import PlainPlan, Plan

CARD = "README.md"
_LOADING: Mapping[str, str] = {
    "mmtune": 'import mmtune\n\nmodel, processor = mmtune.load("{name}")',
    "causal-lm": "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
    'model = AutoModelForCausalLM.from_pretrained("{name}")\ntokenizer = AutoTokenizer.from_pretrained("{name}")',
    "tower": 'from transformers import AutoModel\n\nmodel = AutoModel.from_pretrained("{name}")',
    "hf-llava": "from transformers import AutoModelForImageTextToText, AutoProcessor\n\n"
    'model = AutoModelForImageTextToText.from_pretrained("{name}")\n'
    'processor = AutoProcessor.from_pretrained("{name}")',
    "adapter": 'from peft import PeftModel\n\nmodel = PeftModel.from_pretrained(base, "{name}")',
    "original": "# a checkpoint of the published {to} code; mmtune reads it too:\n# mmtune convert {name} --output DIR",
}
_LIBRARIES = {"mmtune": "mmtune", "adapter": "peft"}


def write_card(
    folder: Path, name: str, plan: Plan | PlainPlan, layout: Layout, verified: Mapping[str, Any] | None
) -> None:
    """Write ``README.md`` for the hub into a folder that is about to be uploaded as ``name``."""
    head: dict[str, Any] = {"library_name": _LIBRARIES.get(layout.opened_as, "transformers"), "tags": ["mmtune"]}
    base = plan.base if isinstance(plan, Plan) else None
    if base is not None and is_hub_id(str(base["source"])):
        head["base_model"] = base["source"]
    facts = {
        "Format": layout.to,
        "Converted from": f"{plan.format} ({plan.form}) with mmtune {version('mmtune')}",
        **(_parts(plan) if isinstance(plan, Plan) else {}),
        "Parameters": f"{layout.num_parameters:,}",
        "Training data": _data(plan),
        "Parity with the source": _parity(verified),
    }
    rows = "\n".join(f"| {key} | {value} |" for key, value in facts.items())
    notes = "".join(f"- {note}\n" for note in (*plan.notes, *layout.notes))
    text = (
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n# {name.rpartition('/')[2]}\n\n"
        f"| | |\n|---|---|\n{rows}\n\n## Load it\n\n```python\n"
        f"{_LOADING[layout.opened_as].format(name=name, to=layout.to)}\n```\n"
    )
    (folder / CARD).write_text(text + (f"\n## Notes\n\n{notes}" if notes else ""), encoding="utf-8")


def _parts(plan: Plan) -> dict[str, str]:
    encoders = [f"{name}: {_reference(entry)}" for name, entry in plan.encoders.items()]
    return {"Method": plan.method, "Base": _reference(plan.base), "Encoders": "; ".join(encoders)}


def _reference(entry: Mapping[str, Any]) -> str:
    source, revision = str(entry.get("source")), entry.get("revision")
    if not is_hub_id(source) or source.startswith(("encoders/", "language_model")):
        return "in this folder"
    return f"{source} at revision {revision}" if revision else source


def _data(plan: Plan | PlainPlan) -> str:
    """What the source says of its training data; foreign checkpoints say nothing."""
    facts = plan.original.facts if isinstance(plan, Plan) and plan.original is not None else {}
    return f"fingerprint {facts['data']}" if "data" in facts else "not stated by the source"


def _parity(verified: Mapping[str, Any] | None) -> str:
    if verified is None:
        return "not checked (--no-verify)"
    if verified.get("note"):
        return str(verified["note"])
    answers = "" if verified.get("greedy_equal") is None else ", greedy answers equal"
    return f"largest difference of a logit {verified['max_abs_logit_diff']:.3g} in float32{answers}"
