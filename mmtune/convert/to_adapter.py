"""Writes the LoRA alone, as a PEFT folder for its plain language model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mmtune.convert.layout import Layout
from mmtune.convert.plan import PlainPlan, Plan, Request
from mmtune.convert.staging import Stage
from mmtune.convert.to_original import adapter_config, kept_files
from mmtune.core.errors import NotPossibleError


def arrange(plan: Plan | PlainPlan, stage: Stage | None, request: Request) -> Layout:
    """The layout of a PEFT adapter.

    Raises:
        NotPossibleError: There is no LoRA; the method's own weights have no form in PEFT.
    """
    if isinstance(plan, PlainPlan) and plan.form == "lora" and plan.base is not None:
        base = str(plan.base.resolve())
        document = {**plan.part.documents["adapter_config.json"], "base_model_name_or_path": base}
        part = replace(plan.part, documents={"adapter_config.json": document})
        return Layout((part,), "adapter", "adapter", options={"base": base})
    lora = plan.part("lora") if isinstance(plan, Plan) else None
    if not isinstance(plan, Plan) or lora is None:
        method = f"the weights of '{plan.method}' have no form in PEFT" if isinstance(plan, Plan) else "it is whole"
        message = f"There is no LoRA to write as a PEFT adapter: {method}."
        fix = "use --to mmtune" if isinstance(plan, Plan) else "use --to hf"
        raise NotPossibleError(message, where="--to adapter", fix=fix)
    config = dict(adapter_config(lora, kept_files(plan, plan.format), plan))
    language = plan.part("language_model")
    base = str(plan.base["source"]) if language is None else str(_folder(language.origin).resolve())
    config["base_model_name_or_path"] = base
    part = replace(lora, folder="", documents={"adapter_config.json": config})
    own = len(method.entries) if (method := plan.part("")) is not None else 0
    note = f"The {own} tensors of '{plan.method}' itself are no LoRA and stay in the source." if own else ""
    return Layout((part,), "adapter", "adapter", options={"base": base}, notes=(note,) if note else ())


def _folder(origin: Path | None) -> Path:
    if origin is None:
        raise NotPossibleError("The LoRA's base has no folder of its own.", where="--to adapter", fix="use --to merged")
    return origin
