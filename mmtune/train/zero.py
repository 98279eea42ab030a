"""ZeRO-2 and ZeRO-3 by DeepSpeed's engine, driven by our own loop (docs/adr/0019).

The engine shares out gradients, moments and, in stage 3, weights; rates, loss, guards and checkpoints are those of
every other run. What media reach stays whole in every process in stage 3: encoders are not handed to the engine, and
the method's weights are gathered from one update to the next: a process whose rows have no media does not call them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from mmtune.core.errors import MissingExtraError
from mmtune.model.modeling import MMTuneModel
from mmtune.model.shares import num_elements
from mmtune.train.launched import launched_rank
from mmtune.train.optim import Group, make_optimizer
from mmtune.train.schema import Recipe, TrainRecipe

STAGES = {"zero2": 2, "zero3": 3}
_MOMENTS = ("exp_avg", "exp_avg_sq")
_BUCKET = 50_000_000  # gradients that are sent at once


def require_deepspeed(strategy: str) -> None:
    """Notice a missing library before a model is loaded.

    Raises:
        MissingExtraError: DeepSpeed is not installed.
    """
    if find_spec("deepspeed") is None:
        raise MissingExtraError(f"run.strategy: {strategy}", "deepspeed")


class ZeroModel(nn.Module):
    """A model whose training state is shared out; called in place of the model.

    Args:
        groups: What is trained; the engine takes their tensors over.
        precision: What autocast computes in; trained weights and their gradients stay float32.
    """

    def __init__(
        self, model: MMTuneModel, groups: Sequence[Group], recipe: Recipe, precision: str, device: torch.device
    ) -> None:
        super().__init__()
        import deepspeed

        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)  # it writes to stdout, which is the result's
        if device.type == "cpu":  # a machine with accelerators would take them
            from deepspeed.accelerator import set_accelerator
            from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

            set_accelerator(CPU_Accelerator())
        base = make_optimizer(groups, recipe.train.betas)
        stage = STAGES[recipe.run.strategy]
        trained = sum(num_elements(parameter) for group in groups for parameter in group.parameters)
        config = _config(stage, recipe.train, precision, offload=recipe.run.offload, trained=trained)
        shared = _Shared(model) if stage == 3 else None
        self.model = model
        self.engine: Any = deepspeed.initialize(
            model=model if shared is None else shared, optimizer=base, config=config, dist_init_required=False
        )[0]
        self.optimizer = ZeroOptimizer(self.engine, groups, stage)
        self._beside = list(shared.beside) if shared is not None else []
        self._gathered = ExitStack()
        self._gather()

    def forward(self, **inputs: Any) -> Any:
        """The model's own output."""
        return self.engine(**inputs)

    def backward(self, loss: Tensor) -> None:
        """Add to the shared gradients."""
        self.engine.backward(loss)

    @contextmanager
    def unsynced(self) -> Iterator[None]:
        """For micro-batches after which no update follows."""
        self.engine.set_gradient_accumulation_boundary(False)
        try:
            yield
        finally:
            self.engine.set_gradient_accumulation_boundary(True)

    def step(self) -> float:
        """Clip and update; where the norm is not finite nothing is updated.

        Returns:
            The norm of the whole gradient before it was clipped.
        """
        self._gathered.close()
        self.optimizer.hand_over_rates()
        self.engine.set_gradient_accumulation_boundary(True)
        self.engine.step()
        self._gather()
        return float(self.engine.get_global_grad_norm())

    def _gather(self) -> None:
        if self._beside:
            from deepspeed.runtime.zero import GatheredParameters

            self._gathered.enter_context(GatheredParameters(self._beside))


class ZeroOptimizer:
    """The optimizer's state by whole parameters, as torch's optimizers and our checkpoints have it.

    Every process calls ``state_dict`` and ``load_state_dict``; the first keeps what is gathered.
    """

    def __init__(self, engine: Any, groups: Sequence[Group], stage: int) -> None:
        self._zero: Any = engine.optimizer
        self._stage = stage
        self.param_groups: list[dict[str, Any]] = [
            {"params": list(group.parameters), "lr": group.learning_rate} for group in groups
        ]

    @property
    def optimizer(self) -> ZeroOptimizer:
        """What has the learning rates."""
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Nothing to do: the engine lets gradients go with the update that takes them."""

    def hand_over_rates(self) -> None:
        """Give the engine this step's learning rates."""
        for entry, own in zip(self._zero.optimizer.param_groups, self.param_groups, strict=True):
            entry["lr"] = own["lr"]

    def state_dict(self) -> dict[str, Any]:
        """Moments and steps by the number of each parameter."""
        from deepspeed.utils import safe_get_full_optimizer_state

        steps = [state["step"] for state in self._zero.optimizer.state.values() if "step" in state]
        if steps:
            self._link()
        is_first = launched_rank() == 0
        found: dict[int, dict[str, Tensor]] = {}
        for index, parameter in enumerate(self._parameters()) if steps else ():
            moments = {key: safe_get_full_optimizer_state(parameter, key) for key in _MOMENTS}
            kept = {key: (moment if is_first else moment[:0]).cpu() for key, moment in moments.items()}
            found[index] = {"step": steps[0].detach().cpu().clone(), **kept}
        return {"state": found, "param_groups": self.param_groups}

    def load_state_dict(self, found: Mapping[str, Any]) -> None:
        """Share out what :meth:`state_dict` gave, of whatever number of processes."""
        from deepspeed.utils import safe_set_full_optimizer_state

        state, base = found["state"], self._zero.optimizer
        if not state:
            return
        step = next(iter(state.values()))["step"]
        for part in self._parts():
            moments = {key: torch.zeros_like(part, requires_grad=False) for key in _MOMENTS}
            base.state[part] = {"step": torch.as_tensor(step, dtype=torch.float32).to(part.device).clone(), **moments}
        self._link()
        for index, parameter in enumerate(self._parameters()):
            for key in _MOMENTS:
                safe_set_full_optimizer_state(parameter, state[index][key].to(parameter.device), key)

    def _parts(self) -> list[Tensor]:
        """What this process updates, a flat tensor a group."""
        zero = self._zero
        found: list[Tensor] = (
            zero.fp32_partitioned_groups_flat if self._stage == 3 else zero.single_partition_of_fp32_groups
        )
        return found

    def _link(self) -> None:
        """Let ZeRO-2 find the moments of each weight; by itself it does so after the step of its first group only."""
        from deepspeed.utils import lazy_init_hp_params_optimizer_state

        if self._stage == 2:
            for group, part in zip(self._zero.bit16_groups, self._parts(), strict=True):
                lazy_init_hp_params_optimizer_state(group, part, self._zero.optimizer.state)

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.param_groups for parameter in group["params"]]


def _config(stage: int, train: TrainRecipe, precision: str, *, offload: bool, trained: int) -> dict[str, Any]:
    """What the engine is told; batches and rates are none of its business."""
    zero: dict[str, Any] = {
        "stage": stage,
        "overlap_comm": False,
        "reduce_bucket_size": min(_BUCKET, max(1, trained)),
        "stage3_prefetch_bucket_size": 0,  # processes whose rows differ would ask for different weights ahead
        "stage3_param_persistence_threshold": 0,
    }
    if offload:
        zero["offload_optimizer"] = {"device": "cpu"}
        zero.update({"offload_param": {"device": "cpu"}} if stage == 3 else {})
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": train.max_grad_norm or 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        # Gradients are summed in float32: no module is named whose weights may be sent in 16 bits.
        "torch_autocast": {"enabled": precision == "bf16", "dtype": "bfloat16", "lower_precision_safe_modules": []},
    }


class _Shared(nn.Module):
    """What ZeRO-3 shares out of a model, in a tree on whose modules it may put its hooks.

    A hook gathers weights, which all processes must do together, and lets them go after their first backward. Modules
    that are called for media only, or twice before a backward, are not in the tree; their weights lie in ``beside``.
    """

    def __init__(self, model: MMTuneModel) -> None:
        super().__init__()
        self._call = [model]  # in a list, so that it is no submodule
        self.beside = nn.ParameterList(model.method.parameters())
        if model.method.runs_language_model:
            self.beside.extend(model.language_model.parameters())
        else:
            self.language_model = model.language_model

    def forward(self, **inputs: Any) -> Any:
        return self._call[0](**inputs)
