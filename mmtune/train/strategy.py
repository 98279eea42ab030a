"""How several processes hold one model: each a whole copy (DDP), or each a share of every weight (FSDP2)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from mmtune.core.errors import NotPossibleError
from mmtune.model.lora import ENCODER_LINEAR
from mmtune.model.modeling import MMTuneModel
from mmtune.train.launched import is_launched
from mmtune.train.recipe import Recipe
from mmtune.train.team import Team


def refuse_strategy(recipe: Recipe, precision: str) -> None:
    """Say no to what this way of sharing cannot do, before anything is loaded.

    Raises:
        NotPossibleError: DeepSpeed; a quantised, 8-bit or float16 model or an encoder in shares; offloading without
            shares; a launcher that is set up for another engine.
    """
    strategy, where = recipe.run.strategy, recipe.where("run.strategy")
    if strategy in ("zero2", "zero3"):
        raise NotPossibleError(
            f"run.strategy {strategy} needs DeepSpeed, whose engine this version does not drive.",
            where=where,
            fix="--set run.strategy=fsdp, which shares out weights, gradients and optimizer as ZeRO-3 does",
        )
    if recipe.run.offload and strategy != "fsdp":
        raise NotPossibleError(
            "run.offload keeps the shares of FSDP in CPU memory.",
            where=recipe.where("run.offload"),
            fix="--set run.strategy=fsdp with --num-processes 2 or more",
        )
    if strategy == "fsdp" and recipe.tune.kind == "qlora":
        raise NotPossibleError("Quantised weights cannot be shared out.", where=where, fix="--set run.strategy=ddp")
    targets = [recipe.tune.targets] if isinstance(recipe.tune.targets, str) else recipe.tune.targets
    on_encoders = recipe.tune.kind == "lora" and ENCODER_LINEAR in targets
    if strategy == "fsdp" and (on_encoders or any(role.partition(".")[0] == "encoder" for role in recipe.train.roles)):
        fix = "--set run.strategy=ddp, or leave encoders out of train.roles"
        raise NotPossibleError("Encoders are not shared out, so FSDP does not train them.", where=where, fix=fix)
    if strategy == "fsdp" and recipe.train.optimizer != "adamw":
        fix = "--set train.optimizer=adamw, or --set run.strategy=ddp"
        raise NotPossibleError("Moments in 8 bits cannot be shared out.", where=where, fix=fix)
    if strategy == "fsdp" and precision == "fp16":
        fix = "--set train.precision=bf16, or --set run.strategy=ddp"
        raise NotPossibleError("Shared weights do not train in fp16 here.", where=where, fix=fix)
    for name in ("DEEPSPEED", "MEGATRON_LM", "FSDP"):
        if is_launched() and os.environ.get(f"ACCELERATE_USE_{name}") == "true":
            raise NotPossibleError(
                f"accelerate was set up for {name}; how the model is shared out is said in the recipe.",
                where="accelerate launch",
                fix="launch with --multi_gpu, and --set run.strategy=fsdp for shares",
            )


def spread(model: MMTuneModel, recipe: Recipe, team: Team, device: torch.device) -> nn.Module:
    """Make a model the team's: what comes back is called in place of the model, the model keeps its weights.

    FSDP2 replaces the parameters of the model; ask for them again.
    """
    if team.size == 1:
        return model
    model.trains_in_team = True
    if recipe.run.strategy == "ddp":
        devices = [device.index] if device.type == "cuda" else None
        return DistributedDataParallel(model, devices, gradient_as_bucket_view=True)  # one copy of gradients less
    mesh = init_device_mesh(device.type, (team.size,))
    offload = CPUOffloadPolicy(pin_memory=device.type == "cuda") if recipe.run.offload else OffloadPolicy()
    # Encoders stay whole: a process whose rows have no media does not call them.
    kept = set(model.encoders.parameters())
    # A block that runs twice before its backward would have lost its weights by then: such a model is one unit.
    for block in () if model.method.runs_language_model else model.host.blocks():
        fully_shard(block, mesh=mesh, offload_policy=offload, ignored_params=kept)
    fully_shard(model, mesh=mesh, offload_policy=offload, ignored_params=kept)
    return model


def unsynced(wrapped: nn.Module) -> AbstractContextManager[None]:
    """For all micro-batches of a step but the last: gradients add up where they are and are not sent yet."""
    if isinstance(wrapped, DistributedDataParallel):
        return wrapped.no_sync()
    return _unsynced_shares(wrapped) if isinstance(wrapped, FSDPModule) else nullcontext()


@contextmanager
def _unsynced_shares(wrapped: FSDPModule) -> Iterator[None]:
    wrapped.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        wrapped.set_requires_gradient_sync(True)
