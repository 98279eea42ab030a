"""The recipe: everything that a training run is made of, as typed settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, field_validator

from mmtune.core.config import Settings, Size
from mmtune.core.errors import RecipeError, nearest
from mmtune.core.registry import canonical

SCHEMA = "mmtune/1"
ROLES_OF_KIND: Mapping[str, tuple[str, ...]] = {
    "method": ("method",),
    "lora": ("method", "lora"),
    "qlora": ("method", "lora"),
    "full": ("method", "language"),
}
"""What ``tune.kind`` trains when ``train.roles`` does not say otherwise."""
_ENCODER_KEYS = ("source", "revision", "kind", "settings")
_YEAR = 60 * 24 * 366  # minutes
_Beta = Annotated[float, Field(ge=0, lt=1)]


class ModelRecipe(Settings):
    """The frozen base, the encoders and the method's own settings."""

    base: str = Field("nano", min_length=1)
    vision: str | None = Field("nano", min_length=1)
    revision: str | None = None
    encoders: dict[str, str | dict[str, Any] | None] = Field(default_factory=dict)
    settings: dict[str, Any] = Field(default_factory=dict)
    checkpoint: str | None = None

    @field_validator("encoders")
    @classmethod
    def _known_keys(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name, entry in value.items():
            for key in () if isinstance(entry, str) else map(str, entry or ()):
                if key not in _ENCODER_KEYS:
                    guess = nearest(key, _ENCODER_KEYS)
                    hint = f" Did you mean '{guess}'?" if guess else ""
                    raise RecipeError(
                        f"Unknown key '{key}'.{hint}",
                        where=f"model.encoders.{name}.{key}",
                        fix=f"use one of: {', '.join(_ENCODER_KEYS)}",
                        allowed=_ENCODER_KEYS,
                    )
        return value


class TuneRecipe(Settings):
    """How the language model itself takes part: not at all, by LoRA, quantised with LoRA, or wholly."""

    kind: Literal["method", "lora", "qlora", "full"] = "method"
    rank: Size = 64
    alpha: float = Field(16, gt=0)
    dropout: float = Field(0.05, ge=0, lt=1)
    targets: str | list[str] = "language-linear"
    rslora: bool = False
    dora: bool = False
    bits: Literal[4, 8] | None = None
    quantiser: Literal["bitsandbytes", "torchao"] = "bitsandbytes"


class DataSource(Settings):
    """One file or prepared folder of conversations."""

    path: str = Field(min_length=1)
    weight: float = Field(1.0, gt=0)
    limit: int | None = Field(None, ge=1)


class DataRecipe(Settings):
    """What is learnt from, and how it becomes tokens.

    ``cache_features`` keeps what frozen encoders made of the media in the cache, so that from the second time on a
    medium is neither decoded nor encoded; all that is kept, of all runs, takes at most ``cache_features_gb``.
    """

    train: list[DataSource] = Field(default_factory=list)
    validation: list[DataSource] | None = None
    media_root: list[str] = Field(default_factory=list)
    template: str | None = None
    max_length: int | None = Field(2048, ge=1)
    overlong: Literal["error", "truncate-text", "drop"] = "error"
    max_bad_fraction: float = Field(0.0, ge=0, le=1)
    workers: int | None = Field(None, ge=0)
    cache: str | None = None
    cache_features: bool = False
    cache_features_gb: float = Field(100.0, gt=0)
    allow_urls: bool = False
    allow_outside: bool = False

    @field_validator("template")
    @classmethod
    def _spelling(cls, value: str | None) -> str | None:
        return value if value is None else canonical(value)

    @field_validator("train", "validation", mode="before")
    @classmethod
    def _paths(cls, value: Any) -> Any:
        """A bare path stands for a source of weight 1."""
        if isinstance(value, (str, Mapping)):
            value = [value]
        if isinstance(value, list):
            return [{"path": one} if isinstance(one, str) else one for one in value]
        return value

    @field_validator("media_root", mode="before")
    @classmethod
    def _roots(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


class TrainRecipe(Settings):
    """The optimisation: what is trained, for how long and how fast.

    ``grouping`` is ``length`` for batches of rows of near length, ``modality`` for the order of the original LLaVA,
    ``none`` for random ones; null is ``length`` with ``tokens_per_batch``, else ``none``. ``packing`` puts the rows of
    a micro-batch one behind the other without padding, for methods whose media are tokens. ``batch_size`` and
    ``tokens_per_batch`` (positions, padding included) are those of a micro-batch over all processes. A single number
    for ``learning_rate`` changes only ``default`` of what a preset says, a table that has a ``default`` and more
    replaces it.
    """

    roles: list[str] = Field(default_factory=lambda: ["method"], min_length=1)
    epochs: float = Field(1.0, gt=0)
    max_steps: int | None = Field(None, ge=1)
    batch_size: int = Field(16, ge=1)
    tokens_per_batch: int | None = Field(None, ge=1)
    grouping: Literal["none", "length", "modality"] | None = None
    packing: bool = False
    accumulation: int = Field(1, ge=1)
    learning_rate: dict[str, float] = Field(default_factory=lambda: {"default": 2e-4})
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_ratio: float = Field(0.03, ge=0, le=1)
    warmup_epochs: float | None = Field(None, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    betas: tuple[_Beta, _Beta] = (0.9, 0.999)
    max_grad_norm: float | None = Field(1.0, gt=0)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    gradient_checkpointing: bool = False
    compile: bool = False
    kernels: Literal["torch", "liger"] = "torch"
    seed: int = Field(0, ge=0, lt=2**32)
    deterministic: bool = False

    @field_validator("learning_rate")
    @classmethod
    def _has_default(cls, value: dict[str, float]) -> dict[str, float]:
        if "default" not in value:
            raise ValueError("learning_rate needs the key 'default' for every role that is not named")
        if min(value.values()) < 0:
            raise ValueError("a learning rate cannot be negative")
        return value


class SaveRecipe(Settings):
    """When checkpoints are written and which are kept.

    ``best`` keeps the weights of the lowest validation loss beside the last ones: null does so when there is
    validation data, true demands it, false never does.
    """

    every_steps: int | None = Field(500, ge=1)
    every_minutes: float | None = Field(None, gt=0)
    keep: int = Field(2, ge=1)
    best: bool | None = None


class RunRecipe(Settings):
    """Where a run lives and on what it computes; nothing here changes what is learnt.

    ``strategy`` is how several processes hold the model: ``ddp`` each a whole one, ``fsdp`` each a share of every
    weight (FSDP2), ``zero2`` a share of gradients and moments and ``zero3`` of weights too (DeepSpeed). ``offload``
    keeps shares in CPU memory. A step that takes longer than ``hang_minutes`` writes the stacks of all threads into
    the run.
    """

    output: str | None = None
    num_processes: int = Field(1, ge=1)
    strategy: Literal["ddp", "fsdp", "zero2", "zero3"] = "ddp"
    offload: bool = False
    hang_minutes: float | None = Field(30, gt=0, le=_YEAR)
    device: str = "auto"
    trackers: list[str] = Field(default_factory=list)


class Recipe(Settings):
    """A whole run. ``describe`` and ``source`` document presets and change nothing."""

    describe: str | None = None
    source: str | None = None
    method: str
    model: ModelRecipe = Field(default_factory=ModelRecipe)
    tune: TuneRecipe = Field(default_factory=TuneRecipe)
    data: DataRecipe = Field(default_factory=DataRecipe)
    train: TrainRecipe = Field(default_factory=TrainRecipe)
    save: SaveRecipe = Field(default_factory=SaveRecipe)
    run: RunRecipe = Field(default_factory=RunRecipe)

    _origins: dict[str, str] = PrivateAttr(default_factory=dict)

    def where(self, path: str) -> str:
        """The file and line, flag or preset that a dotted key was set by; the key itself when it is a default."""
        while path:
            if path in self._origins:
                return self._origins[path]
            path, _, _ = path.rpartition(".")
        return "recipe"
