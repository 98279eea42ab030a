"""How several processes hold one model: each a whole copy (DDP), or each a share of every weight (FSDP2)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from mmtune.core.errors import NotPossibleError
from mmtune.methods import METHODS
from mmtune.model.lora import ENCODER_LINEAR
from mmtune.model.modeling import MMTuneModel
from mmtune.train.launched import is_launched
from mmtune.train.optim import Group
from mmtune.train.recipe import Recipe
from mmtune.train.team import Team
from mmtune.train.zero import STAGES, ZeroModel, require_deepspeed


def refuse_strategy(recipe: Recipe, precision: str) -> None:
    """Say no to what this way of sharing cannot do, before anything is loaded.

    Raises:
        MissingExtraError: ZeRO without DeepSpeed.
        NotPossibleError: A quantised, 8-bit or float16 model or an encoder in shares; offloading without shares; a
            launcher that is set up for another engine.
    """
    if recipe.run.strategy in STAGES:
        require_deepspeed(recipe.run.strategy)
    refuse_sharing(recipe, precision)
    for name in ("DEEPSPEED", "MEGATRON_LM", "FSDP"):
        if is_launched() and os.environ.get(f"ACCELERATE_USE_{name}") == "true":
            raise NotPossibleError(
                f"accelerate was set up for {name}; how the model is shared out is said in the recipe.",
                where="accelerate launch",
                fix="launch with --multi_gpu, and --set run.strategy=fsdp for shares",
            )


def refuse_sharing(recipe: Recipe, precision: str) -> None:
    """What no machine can do, whatever is installed there.

    Raises:
        NotPossibleError: See :func:`refuse_strategy`.
    """
    strategy, where = recipe.run.strategy, recipe.where("run.strategy")
    for is_asked, message, fix in _refusals(recipe, precision):
        if is_asked:
            raise NotPossibleError(message, where=where, fix=fix)
    if recipe.run.offload and strategy == "ddp":
        raise NotPossibleError(
            "run.offload keeps the shares of FSDP or ZeRO in CPU memory.",
            where=recipe.where("run.offload"),
            fix="--set run.strategy=fsdp with --num-processes 2 or more",
        )


def _refusals(recipe: Recipe, precision: str) -> list[tuple[bool, str, str]]:
    """Whether it is asked for, why it cannot be, and what to do instead."""
    strategy, instead = recipe.run.strategy, "--set run.strategy=ddp"
    shares_weights, shares_state = strategy in ("fsdp", "zero3"), strategy != "ddp"
    targets = [recipe.tune.targets] if isinstance(recipe.tune.targets, str) else recipe.tune.targets
    on_encoders = recipe.tune.kind in ("lora", "qlora") and ENCODER_LINEAR in targets
    on_encoders = on_encoders or any(role.partition(".")[0] == "encoder" for role in recipe.train.roles)
    method = METHODS.load(recipe.method)
    acts_in_blocks = method.no_packing is not None and not method.runs_language_model
    is_quantised = recipe.tune.kind == "qlora" or recipe.tune.bits is not None
    return [
        (shares_weights and is_quantised, "Quantised weights cannot be shared out.", instead),
        (
            shares_weights and on_encoders,
            f"Encoders are not shared out, so {strategy} does not train them.",
            f"{instead}, or leave encoders out of train.roles",
        ),
        (
            strategy == "zero3" and recipe.train.gradient_checkpointing and acts_in_blocks,
            f"ZeRO-3 gathers weights again where a checkpointed block needs them; with {recipe.method} that depends on "
            "a process's rows, and processes would wait for each other for ever.",
            "--set run.strategy=fsdp, or --set train.gradient_checkpointing=false",
        ),
        (
            strategy in STAGES and recipe.train.compile,
            "DeepSpeed compiles by a call of its own, which is not made here.",
            f"--set run.strategy=fsdp, or {instead}, or --set train.compile=false",
        ),
        (
            shares_state and recipe.train.optimizer != "adamw",
            "Moments in 8 bits cannot be shared out.",
            f"--set train.optimizer=adamw, or {instead}",
        ),
        (
            shares_state and precision == "fp16",
            "Shared weights do not train in fp16 here.",
            f"--set train.precision=bf16, or {instead}",
        ),
    ]


def spread(
    model: MMTuneModel, groups: Sequence[Group], recipe: Recipe, precision: str, team: Team, device: torch.device
) -> nn.Module:
    """Make a model the team's: what comes back is called in place of the model, the model keeps its weights.

    FSDP2 replaces the parameters of the model; ask for them again.
    """
    if team.size == 1:
        return model
    model.trains_in_team = True
    if recipe.run.strategy == "ddp":
        devices = [device.index] if device.type == "cuda" else None
        return DistributedDataParallel(model, devices, gradient_as_bucket_view=True)  # one copy of gradients less
    if recipe.run.strategy in STAGES:
        return ZeroModel(model, groups, recipe, precision, device)
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
    if isinstance(wrapped, ZeroModel):
        return wrapped.unsynced()
    return _unsynced_shares(wrapped) if isinstance(wrapped, FSDPModule) else nullcontext()


@contextmanager
def _unsynced_shares(wrapped: FSDPModule) -> Iterator[None]:
    wrapped.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        wrapped.set_requires_gradient_sync(True)
