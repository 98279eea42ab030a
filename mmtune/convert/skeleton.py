"""The model a plan describes, without memory: proves that the planned tensors are exactly those it owns."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForCausalLM

from mmtune.convert.damage import reading
from mmtune.convert.plan import Plan
from mmtune.core.errors import CheckpointError, VerificationError
from mmtune.modalities import MODALITIES
from mmtune.modalities.base import Modality
from mmtune.modalities.image import ImageModality
from mmtune.model.configuration import MMTuneConfig
from mmtune.model.modeling import MMTuneModel


def build_skeleton(folder: Path, plan: Plan) -> MMTuneModel:
    """The model on the meta device, from the configs that were just written into ``folder``.

    Raises:
        CheckpointError: Settings in the source's config that its own parts cannot follow.
        VerificationError: The method would own other tensors than the plan writes.
    """
    modalities = {name: _modality(folder, plan, name) for name in plan.encoders}
    config = MMTuneConfig(
        method=plan.method,
        settings=dict(plan.settings),
        base=dict(plan.base),
        encoders={
            name: {**entry, "settings": modalities[name].settings.model_dump(mode="json")}
            for name, entry in plan.encoders.items()
        },
        template=plan.template,
        architectures=["MMTuneModel"],
        dtype=plan.dtype,
    )
    local = folder / plan.base["source"]
    base, revision = (str(local), None) if local.is_dir() else (plan.base["source"], plan.base["revision"])
    with reading(plan.sources[0], "config.json"):
        config.settings = MMTuneModel.method_settings(config).model_dump(mode="json")
        made = AutoConfig.from_pretrained(base, revision=revision, trust_remote_code=False)
        with torch.device("meta"):
            model = MMTuneModel(config, AutoModelForCausalLM.from_config(made), {}, modalities)
    _check(model, plan)
    return model


def _modality(folder: Path, plan: Plan, name: str) -> Modality:
    entry = plan.encoders[name]
    local = folder / entry["source"]
    source = str(local) if local.is_dir() else entry["source"]
    with reading(plan.origins[name], "config.json or preprocessor_config.json of the encoder", instead_of=source):
        kind: type[Modality] = MODALITIES.load(name)
        modality = kind.from_source(source, revision=entry["revision"], settings=entry["settings"])
        _check_pictures(modality)
    return modality


def _check_pictures(modality: Modality) -> None:
    """Prepare one picture, so that a damaged preparation is seen here and not in a user's first answer.

    Raises:
        CheckpointError: The pictures come out in another size than the encoder takes, or not as numbers.
    """
    if not isinstance(modality, ImageModality):
        return
    size = modality.encoder_config.image_size
    pixels = modality.load(Image.new("RGB", (40, 30), (120, 90, 60)))["pixel_values"]
    if tuple(pixels.shape[-3:]) != (3, size, size) or not bool(torch.isfinite(pixels).all()):
        raise CheckpointError(
            f"preprocessor_config.json makes pictures {list(pixels.shape)}, the encoder takes {size} x {size}."
        )


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
