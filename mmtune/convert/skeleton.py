"""The model a plan describes, without memory: proves that the planned tensors are exactly those it owns."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from mmtune.convert.plan import Plan
from mmtune.core.errors import VerificationError
from mmtune.modalities import MODALITIES
from mmtune.model.configuration import MMTuneConfig
from mmtune.model.modeling import MMTuneModel


def build_skeleton(folder: Path, plan: Plan) -> MMTuneModel:
    """The model on the meta device, from the configs that were just written into ``folder``.

    Raises:
        VerificationError: The method would own other tensors than the plan writes.
    """
    modalities, encoders = {}, {}
    for name, entry in plan.encoders.items():
        local = folder / entry["source"]
        source = str(local) if local.is_dir() else entry["source"]
        modality = MODALITIES.load(name).from_source(source, revision=entry["revision"], settings=entry["settings"])
        modalities[name] = modality
        encoders[name] = {**entry, "settings": modality.settings.model_dump(mode="json")}
    config = MMTuneConfig(
        method=plan.method,
        settings=dict(plan.settings),
        base=dict(plan.base),
        encoders=encoders,
        template=plan.template,
        architectures=["MMTuneModel"],
        dtype=plan.dtype,
    )
    config.settings = MMTuneModel.method_settings(config).model_dump(mode="json")
    local = folder / plan.base["source"]
    base = str(local) if local.is_dir() else plan.base["source"]
    revision = None if local.is_dir() else plan.base["revision"]
    made = AutoConfig.from_pretrained(base, revision=revision, trust_remote_code=False)
    with torch.device("meta"):
        model = MMTuneModel(config, AutoModelForCausalLM.from_config(made), {}, modalities)
    _check(model, plan)
    return model


def _check(model: MMTuneModel, plan: Plan) -> None:
    owned = {name: tuple(tensor.shape) for name, tensor in model.method.state_dict().items()}
    part = next(part for part in plan.parts if not part.folder)
    planned = {entry.name: tuple(entry.shape) for entry in part.entries}
    if owned != planned:
        different = sorted({name for name, _ in owned.items() ^ planned.items()})
        raise VerificationError(
            f"The method's tensors are not the planned ones: {', '.join(different[:4])}.",
            fix="report this with the checkpoint's config.json",
        )
