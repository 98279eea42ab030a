"""The parts of a model by role: what can be trained, what is, and the LoRA on the language model."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from peft import LoraConfig
from torch import Tensor, nn
from transformers import PreTrainedModel

from mmtune.core.config import Settings, parse_settings
from mmtune.core.errors import UsageError, nearest
from mmtune.hosts.host import Host
from mmtune.methods import METHODS
from mmtune.methods.base import Method
from mmtune.modalities.base import Modality
from mmtune.model.configuration import MMTuneConfig
from mmtune.model.lora import ENCODER_PARTS, LANGUAGE_LINEAR, LANGUAGE_PART, targets_by_part
from mmtune.model.reading import unread_parameters
from mmtune.model.shares import num_elements


class ModelParts:
    """What ``MMTuneModel`` knows of its own parameters. Mixed into it; holds no state of its own."""

    language_model: PreTrainedModel
    encoders: nn.ModuleDict
    modalities: dict[str, Modality]
    method: Method
    host: Host
    lora_names: frozenset[str]  # as in named_parameters; names, since sharing out replaces parameters

    @staticmethod
    def method_settings(config: MMTuneConfig) -> Settings:
        """The method's settings, validated."""
        return parse_settings(METHODS.load(config.method).Settings, config.settings, where="model.settings")

    def roles(self) -> dict[str, list[nn.Parameter]]:
        """All parameters by role: the method's own roles, ``method``, ``language``, ``encoder``, ``lora``."""
        named: dict[str, nn.Parameter] = dict(self.named_parameters())  # type: ignore[attr-defined]

        def of(part: str) -> list[nn.Parameter]:
            prefix = f"{part}."
            return [value for name, value in named.items() if name.startswith(prefix) and name not in self.lora_names]

        encoders = {f"encoder.{name}": of(f"{ENCODER_PARTS}.{name}") for name in self.encoders}
        return {
            **self.method.roles(),
            "method": list(self.method.parameters()),
            "language": of(LANGUAGE_PART),
            "lora": [parameter for name, parameter in named.items() if name in self.lora_names],
            "encoder": [parameter for parameters in encoders.values() for parameter in parameters],
            **encoders,
        }

    def anchor(self) -> Tensor:
        """A zero that depends on every trained parameter that media reach, for batches that lack some of them.

        Processes that train together must all have a gradient of every trained parameter in every step.
        """
        total = self.method.anchor()
        for parameter in self.encoders.parameters():
            if parameter.requires_grad:
                total = total + parameter.flatten()[:1].sum().to(total) * 0.0
        return total

    def set_trainable(self, roles: Sequence[str]) -> None:
        """Train the parameters of these roles and freeze all others.

        What reading does not reach in an encoder stays frozen whatever the role: it would not learn, only decay.

        Raises:
            UsageError: A role that this model does not have, or that has no parameters.
        """
        known = self.roles()
        for parameter in self.parameters():  # type: ignore[attr-defined]
            parameter.requires_grad_(False)
        for role in roles:
            if role not in known:
                guess = nearest(role, known)
                hint = f" Did you mean '{guess}'?" if guess else ""
                raise UsageError(
                    f"Unknown role '{role}'.{hint} Allowed: {', '.join(known)}.",
                    where="train.roles",
                    fix="change train.roles",
                )
            if not known[role]:
                raise UsageError(f"Role '{role}' has no parameters in this model.", where="train.roles", fix=_fix(role))
            for parameter in known[role]:
                parameter.requires_grad_(True)
        for name, modality in self.modalities.items():
            for parameter in unread_parameters(name, modality, self.encoders[name], self.method):
                parameter.requires_grad_(False)

    def describe(self) -> list[dict[str, Any]]:
        """One row a component: its role, parameters, how many are trained, and dtypes."""
        method_roles = self.method.roles()
        finest = {
            role: params
            for role, params in method_roles.items()
            if not any(o.startswith(f"{role}.") for o in method_roles)
        }
        known = self.roles()
        others = {role: known[role] for role in ("lora", "language", *(f"encoder.{name}" for name in self.encoders))}
        return [
            {
                "component": role,
                "parameters": _count(parameters),
                "trainable": _count(parameter for parameter in parameters if parameter.requires_grad),
                "dtype": ", ".join(sorted({str(parameter.dtype).removeprefix("torch.") for parameter in parameters})),
            }
            for role, parameters in {**finest, **others}.items()
            if parameters
        ]

    def add_lora(
        self,
        *,
        rank: int = 64,
        alpha: float = 16,
        dropout: float = 0.05,
        targets: str | list[str] = LANGUAGE_LINEAR,
        use_rslora: bool = False,
        use_dora: bool = False,
    ) -> None:
        """Put LoRA into the blocks, after the method's changes; on encoders only when they are asked for.

        Args:
            targets: ``language-linear`` and ``encoder-linear`` for every linear map inside the blocks, or names of
                linear modules of the language model.
            use_rslora: Scale by alpha / sqrt(rank) (arXiv 2312.03732).
            use_dora: Learn the length of each column apart from its direction (arXiv 2402.09353).

        Raises:
            UsageError: An unknown target.
        """
        for part, names in targets_by_part(self, targets).items():  # type: ignore[arg-type]
            config = LoraConfig(
                r=rank,
                lora_alpha=alpha,  # type: ignore[arg-type]
                lora_dropout=dropout,
                target_modules=names,
                use_rslora=use_rslora,
                use_dora=use_dora,
                task_type="CAUSAL_LM" if part == LANGUAGE_PART else "FEATURE_EXTRACTION",
            )
            self.inject_lora(config, part)

    def inject_lora(self, config: LoraConfig, part: str = LANGUAGE_PART) -> None:
        """Inject a PEFT configuration into the language model or an encoder and remember the new parameters."""
        module: Any = self.get_submodule(part)  # type: ignore[attr-defined]
        before = set(map(id, module.parameters()))  # PEFT gives the old ones new names
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        module.add_adapter(config)
        for parameter in trained:  # PEFT freezes everything else; who trains what is decided by set_trainable
            parameter.requires_grad_(True)
        named = module.named_parameters()
        self.lora_names |= {f"{part}.{name}" for name, parameter in named if id(parameter) not in before}

    def checkpoint_language_model(self, options: Mapping[str, Any]) -> None:
        """Switch on gradient checkpointing in the language model, by the name that all supported versions have."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            self.language_model.gradient_checkpointing_enable(dict(options))


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(num_elements(parameter) for parameter in parameters)


def _fix(role: str) -> str:
    return "use --tune lora" if role == "lora" else "remove it from train.roles"
