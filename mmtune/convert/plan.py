"""What a reader of a foreign format hands over: every tensor and file to write, and how to check the result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from mmtune.convert.tensors import StoredTensor
from mmtune.convert.writer import Entry
from mmtune.core.errors import UsageError


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked for, beside the source itself.

    Args:
        llm: Folder or hub id of the base language model, for checkpoints that hold none.
        vision: Folder or hub id of the vision tower.
        settings: What the format does not hold, from ``--set``.
        encoders: Folder or hub id of further encoders, by the names of the checkpoint.
        whole: All weights are written, also those that a hub id could stand for.
        merge: A LoRA is folded into the language model.
    """

    llm: str | None = None
    vision: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    encoders: Mapping[str, str] = field(default_factory=dict)
    whole: bool = False
    merge: bool = False

    def check_settings(self, allowed: Sequence[str] = ()) -> None:
        """Refuse settings that a format does not know; by default it knows none.

        Raises:
            UsageError: A ``--set`` key that is not among ``allowed``.
        """
        for key in self.settings:
            if key not in allowed:
                fix = f"use one of: {', '.join(allowed)}" if allowed else "leave it out"
                raise UsageError(
                    f"Unknown setting '{key}' for this format.", where="--set", fix=fix, allowed=allowed or None
                )


@dataclass(frozen=True, slots=True)
class Part:
    """One set of weights with the files that go with it.

    Args:
        folder: Where it goes in the written folder; empty for the folder itself.
        stem: Name of the weight file without ending; several files when it is too large for one.
        documents: JSON files to write beside it.
        copies: Files to copy beside it as they are.
        sharded: Whether the weights may be spread over several files.
        suffix: ``safetensors``, or ``bin`` or ``pth`` for a pickle as ``torch.save`` writes it.
        wrap: What a pickle holds, made of its state dict; the state dict itself when absent.
        origin: Where the weights were read from.
    """

    folder: str
    stem: str
    entries: tuple[Entry, ...]
    documents: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    copies: Mapping[str, Path] = field(default_factory=dict)
    sharded: bool = True
    suffix: str = "safetensors"
    wrap: Callable[[dict[str, Tensor]], Any] | None = None
    origin: Path | None = None


@dataclass(frozen=True, slots=True)
class Picture:
    """A prepared picture.

    Args:
        pixels: ``[tiles, 3, H, W]``.
        size: (width, height) before it was prepared.
        image: The picture itself, ``[height, width, 3]`` uint8.
        media: Prepared items by modality as in a batch; all there is when a method takes more than pictures.
    """

    pixels: Tensor
    size: tuple[int, int]
    image: Tensor | None = None
    media: Mapping[str, Mapping[str, Tensor]] | None = None


class Reference(Protocol):
    """An evaluation of the source that shares no code with mmtune's model."""

    num_parameters: int

    def load(self) -> None:
        """Bring the source's weights into memory, in float32."""

    def release(self) -> None:
        """Let go of them again."""

    def logits(self, ids: Tensor, picture: Picture | None, *, adapter: bool = True) -> tuple[Tensor, Tensor]:
        """Evaluate one sequence.

        Args:
            ids: ``[T]``, with :data:`IMAGE` where the picture goes.
            picture: The picture, or None for text alone.
            adapter: False evaluates what the adapter stands on alone.

        Returns:
            Logits ``[L, V]`` of the sequence as the language model sees it, and ``[L]`` bool, True at positions that
            mean something (not at a masked slot).
        """


IMAGE = -200  # the originals' placeholder id


@dataclass(frozen=True, slots=True)
class OriginalFiles:
    """What a foreign checkpoint says of itself besides its weights.

    Args:
        format: Its format.
        form: Which of the format's forms it has.
        config: Its config.json.
        files: Further small files by name, tokenizer files among them.
        facts: What its writer needs to know to make the same tensors again.
    """

    format: str
    form: str
    config: Mapping[str, Any]
    files: Mapping[str, Path] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plan:
    """A conversion, fully checked and not yet written.

    Args:
        method: Registry name of the method.
        parts: Weights to write; the method's own are the part with an empty folder.
        base: ``source`` and ``revision`` of the language model as the written config names it.
        encoders: For each modality its ``source``, ``revision`` and ``settings``.
        origins: For each modality the folder its encoder was found in, for messages.
        settings: The method's settings.
        tokenizer: Folder the tokenizer is read from.
        legacy_tokenizer: True when the training ids came from the legacy (fast) form whatever the files say.
        template: Name of the conversation template.
        max_length: Longest sequence of the original training, or None.
        notes: What was left out or replaced and why, for the user.
        sources: Folders that are read.
        reference: How to evaluate the source.
        original: The source's own small files, kept so that its format can be written again.
        control_tokens: What the original's loader adds to the tokenizer where its files lack it, in this order.
    """

    format: str
    form: str
    method: str
    parts: tuple[Part, ...]
    base: Mapping[str, Any]
    encoders: Mapping[str, Mapping[str, Any]]
    origins: Mapping[str, Path]
    settings: Mapping[str, Any]
    tokenizer: Path
    legacy_tokenizer: bool
    template: str
    dtype: torch.dtype
    max_length: int | None
    notes: tuple[str, ...]
    sources: tuple[Path, ...]
    reference: Reference
    original: OriginalFiles | None = None
    control_tokens: tuple[str, ...] = ()

    def part(self, folder: str) -> Part | None:
        """The weights that go into a folder of an mmtune checkpoint: ``""``, ``language_model``, ``lora``, …"""
        return next((part for part in self.parts if part.folder == folder), None)


@dataclass(frozen=True, slots=True)
class PlainPlan:
    """A conversion of one part alone: a language model, or a vision tower.

    Args:
        form: ``language``, ``vision``, or ``lora`` for one without its language model.
        part: Its weights and config, for the folder itself.
        tokenizer: Folder the tokenizer is read from; None for towers.
        dtype: Precision of the values.
        sources: Folders and files that are read.
        reference: How to evaluate the source; a tower gives its last hidden state instead of logits.
        notes: What was left out or replaced and why, for the user.
        base: Folder of the language model that a LoRA belongs to.
    """

    format: str
    form: str
    part: Part
    tokenizer: Path | None
    dtype: torch.dtype
    sources: tuple[Path, ...]
    reference: Reference
    notes: tuple[str, ...] = ()
    base: Path | None = None

    @property
    def parts(self) -> tuple[Part, ...]:
        """The one part."""
        return (self.part,)


def keep(tensor: StoredTensor, name: str | None = None, dtype: torch.dtype | None = None) -> Entry:
    """Write a tensor as it is, under another name or in another precision if given."""
    kind = dtype if dtype is not None and tensor.dtype.is_floating_point else tensor.dtype
    return Entry(name or tensor.name, tensor.shape, kind, tensor.read)


def change(name: str, shape: tuple[int, ...], dtype: torch.dtype, read: Callable[[], Tensor]) -> Entry:
    """Write what a function makes of source tensors."""
    return Entry(name, shape, dtype, read)
