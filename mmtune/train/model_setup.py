"""From a recipe to its model."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch

from mmtune.core.errors import CheckpointError, NotPossibleError, RecipeError, UsageError
from mmtune.core.registry import canonical
from mmtune.modalities import MODALITIES
from mmtune.model.build import META, build_model, load
from mmtune.model.lora import parts_with_lora
from mmtune.model.modeling import MMTuneModel
from mmtune.model.processing import MMTuneProcessor
from mmtune.model.quantised import quantisation
from mmtune.model.templates import template_name
from mmtune.train.feature_setup import refuse_features
from mmtune.train.kernels import refuse_kernels, use_kernels
from mmtune.train.optim import require_8bit
from mmtune.train.packing import check_language_model, refuse_method
from mmtune.train.precision import base_dtype
from mmtune.train.recipe import Recipe


def refuse_impossible(recipe: Recipe, device: torch.device) -> None:
    """Say no before anything is loaded.

    Raises:
        NotPossibleError: Quantisation where there is none, or without its library; packing for a method that cannot;
            kept features of encoders that change.
    """
    refuse_method(recipe)
    refuse_kernels(recipe, device)
    if recipe.train.compile and recipe.train.gradient_checkpointing:
        raise NotPossibleError(
            "torch.compile does not take the context in which checkpointing binds perception again (docs/adr/0003).",
            where=recipe.where("train.compile"),
            fix="--set train.compile=false, or --set train.gradient_checkpointing=false",
        )
    refuse_features(recipe)
    if recipe.train.optimizer == "adamw_8bit":
        require_8bit()
    bits = bits_of(recipe)
    if bits is None:
        return
    try:
        quantisation(bits, torch.float32, device, recipe.tune.quantiser)
    except NotPossibleError as error:
        error.where = recipe.where("tune.bits" if recipe.tune.bits is not None else "tune.kind")
        raise


def bits_of(recipe: Recipe) -> int | None:
    """The bits of the base's weights; ``qlora`` means 4 unless it says otherwise."""
    return recipe.tune.bits or (4 if recipe.tune.kind == "qlora" else None)


def make_model(recipe: Recipe, precision: str, device: torch.device) -> tuple[MMTuneModel, MMTuneProcessor]:
    """Build or load the model, add LoRA, and freeze what is not trained.

    Raises:
        CheckpointError: The checkpoint is damaged or of another method.
        UsageError: A role that this model does not have.
        NotPossibleError: A checkpoint with LoRA on its encoders where encoders cannot be trained.
    """
    dtype = base_dtype(precision, recipe.train.roles)
    if recipe.model.checkpoint is not None:
        model, processor = _load_checkpoint(recipe, dtype, device)
    else:
        encoders = encoder_entries(recipe)
        model, processor = build_model(
            base=recipe.model.base,
            encoders=encoders,
            method=recipe.method,
            settings=recipe.model.settings,
            template=_model_template(recipe),
            revision=recipe.model.revision,
            seed=recipe.train.seed,
            dtype=dtype,
            device=str(device),
            bits=bits_of(recipe),
            quantiser=recipe.tune.quantiser,
        )
    use_kernels(recipe, model)
    tune = recipe.tune
    has_lora = bool(model.roles()["lora"])
    if tune.kind in ("lora", "qlora") and has_lora:
        _refuse_other_rank(recipe, model)
    elif tune.kind in ("lora", "qlora"):
        torch.manual_seed(recipe.train.seed)
        with META if device == META else nullcontext():
            model.add_lora(
                rank=tune.rank, alpha=tune.alpha, dropout=tune.dropout, targets=tune.targets, use_rslora=tune.rslora,
                use_dora=tune.dora,
            )  # fmt: skip
        model.to(device)
    try:
        model.set_trainable(recipe.train.roles)
    except UsageError as error:
        raise RecipeError(
            error.message, where=recipe.where("train.roles"), fix=error.fix, allowed=error.allowed
        ) from error
    _refuse_trained_encoders(recipe, model)
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            parameter.data = parameter.data.float()  # small updates vanish in 16 bits
    if recipe.train.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    if device != META:
        check_language_model(recipe, model)
    return model, processor


def encoder_entries(recipe: Recipe) -> dict[str, Any]:
    """``model.vision`` as the image encoder, completed and extended by ``model.encoders``.

    Raises:
        RecipeError: An entry without a source.
    """
    entries: dict[str, Any] = {} if recipe.model.vision is None else {"image": {"source": recipe.model.vision}}
    for name, entry in recipe.model.encoders.items():
        given = {"source": entry} if isinstance(entry, str) else dict(entry or {})
        entries[name] = {**entries.get(name, {}), **given}
        if "source" not in entries[name] and MODALITIES.load(entries[name].get("kind") or name).has_encoder:
            where = recipe.where(f"model.encoders.{name}")
            raise RecipeError(
                f"The encoder '{name}' has no source.", where=where, fix=f"model.encoders.{name}.source: FOLDER"
            )
    return entries


def _load_checkpoint(recipe: Recipe, dtype: str, device: torch.device) -> tuple[MMTuneModel, MMTuneProcessor]:
    source = str(recipe.model.checkpoint)
    model, processor = load(
        source, device=str(device), dtype=dtype, bits=bits_of(recipe), quantiser=recipe.tune.quantiser
    )
    if canonical(model.config.method) != recipe.method:
        raise CheckpointError(
            f"The checkpoint holds the method '{model.config.method}', the recipe names '{recipe.method}'.",
            where=source,
            fix=f"--method {model.config.method}, or another --model",
        )
    for key, wanted in recipe.model.settings.items():
        found = model.config.settings.get(key)
        if key in model.config.settings and found != wanted:
            raise CheckpointError(
                f"The checkpoint has {key}={found!r}, the recipe asks for {wanted!r}.",
                where=recipe.where(f"model.settings.{key}"),
                fix="leave model.settings out: a checkpoint keeps its own",
            )
    template = _model_template(recipe)
    if template is not None:
        processor.template_of(template)
        processor.template = model.config.template = template
    return model, processor


def _refuse_other_rank(recipe: Recipe, model: MMTuneModel) -> None:
    for part in parts_with_lora(model):
        owner: Any = model.get_submodule(part)
        found = int(owner.peft_config["default"].r)
        if found != recipe.tune.rank:
            raise CheckpointError(
                f"The checkpoint has a LoRA of rank {found}, the recipe asks for {recipe.tune.rank}.",
                where=recipe.where("tune.rank"),
                fix=f"--set tune.rank={found}",
            )


def _refuse_trained_encoders(recipe: Recipe, model: MMTuneModel) -> None:
    """A checkpoint may bring LoRA on its encoders, which the recipe does not tell."""
    if not any(parameter.requires_grad for parameter in model.encoders.parameters()):
        return
    reason = "the checkpoint brings LoRA on its encoders, which is trained"
    if recipe.data.cache_features:
        message = f"Features cannot be kept: {reason}."
        raise NotPossibleError(
            message, where=recipe.where("data.cache_features"), fix="--set data.cache_features=false"
        )
    if recipe.run.strategy in ("fsdp", "zero3"):
        message = f"Encoders are not shared out by {recipe.run.strategy}: {reason}."
        raise NotPossibleError(message, where=recipe.where("run.strategy"), fix="--set run.strategy=ddp")


def _model_template(recipe: Recipe) -> str | None:
    """The template that generation will use: that of the training data, unless it has no place for a question."""
    name = recipe.data.template
    return None if name in (None, "plain") else template_name(str(name), where=recipe.where("data.template"))
