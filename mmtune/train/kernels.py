"""Kernels of other libraries for the language model's norms, rotary positions and MLPs.

What a method changes inside of blocks stays: its changes follow the new ``forward`` of a module. The loss is ours, at
target positions only. Whether these kernels are faster here was not measured, for want of a GPU.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch

from mmtune.core.errors import MissingExtraError, NotPossibleError
from mmtune.hosts.extension import laid_bare
from mmtune.model.build import META
from mmtune.model.modeling import MMTuneModel
from mmtune.train.recipe import Recipe


def refuse_kernels(recipe: Recipe, device: torch.device) -> None:
    """Say no before anything is loaded.

    Raises:
        MissingExtraError: Liger is not installed.
        NotPossibleError: No CUDA device.
    """
    if recipe.train.kernels == "torch":
        return
    if find_spec("liger_kernel") is None:
        raise MissingExtraError("train.kernels: liger", "liger")
    if device.type != "cuda":
        raise NotPossibleError(
            f"Liger's kernels need a CUDA device, this run is on {device.type}.",
            where=recipe.where("train.kernels"),
            fix="--set train.kernels=torch",
        )


def use_kernels(recipe: Recipe, model: MMTuneModel) -> None:
    """Replace what Liger has for this family.

    Raises:
        NotPossibleError: It has nothing for it.
    """
    if recipe.train.kernels == "torch" or model.device == META:
        return
    from liger_kernel.transformers import _apply_liger_kernel_to_instance
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    if model.host.kind not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise NotPossibleError(
            f"Liger has no kernels for a '{model.host.kind}' language model.",
            where=recipe.where("train.kernels"),
            fix="--set train.kernels=torch",
            allowed=sorted(MODEL_TYPE_TO_APPLY_LIGER_FN),
        )
    with laid_bare(model.language_model):
        _apply_liger_kernel_to_instance(
            model=model.language_model, cross_entropy=False, fused_linear_cross_entropy=False
        )
