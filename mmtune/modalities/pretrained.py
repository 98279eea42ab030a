"""Reading encoders of transformers: configuration, preparation and weights, with one kind of error."""

from __future__ import annotations

from collections.abc import Callable
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, PreTrainedConfig

from mmtune.core.errors import CheckpointError

# The words of transformers, safetensors and torch for weights that are missing, damaged, or of other shapes.
DAMAGE = (OSError, ValueError, RuntimeError, SafetensorError, UnpicklingError, EOFError)


def read_config(source: str, revision: str | None, what: str) -> PreTrainedConfig:
    """The configuration of an encoder.

    Args:
        what: What it should be ("audio encoder"), for messages.

    Raises:
        CheckpointError: Nothing readable there.
    """
    found: PreTrainedConfig = read_part(AutoConfig.from_pretrained, source, revision, what)
    return found


def read_part(reader: Callable[..., Any], source: str, revision: str | None, what: str, **options: Any) -> Any:
    """What a ``from_pretrained`` of transformers reads: a configuration, a tokenizer, a feature extractor.

    Raises:
        CheckpointError: Nothing readable there.
    """
    try:
        return reader(source, revision=revision, trust_remote_code=False, **options)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"No {what} can be read from '{source}': {first_line(error)}",
            where=source,
            fix="give a folder or hub id that holds config.json and the files of its preparation",
        ) from error


def load_weights(
    kind: Any,
    source: str,
    revision: str | None,
    what: str,
    *,
    dtype: torch.dtype,
    unused: tuple[str, ...] = (),
    config: PreTrainedConfig | None = None,
) -> nn.Module:
    """Load an encoder in evaluation mode; weights that are not in the file are an error, not random numbers.

    Args:
        kind: Class of transformers with ``from_pretrained``.
        unused: Prefixes of weights that may be missing, because nothing reads what they make.

    Raises:
        CheckpointError: No such encoder, a damaged one, or one that lacks weights.
    """
    options = {} if config is None else {"config": config}
    try:
        encoder, report = kind.from_pretrained(
            source, revision=revision, dtype=dtype, trust_remote_code=False, output_loading_info=True, **options
        )
    except DAMAGE as error:
        raise CheckpointError(f"The {what} '{source}' cannot be loaded: {first_line(error)}", where=source) from error
    missing = sorted(name for name in report["missing_keys"] if not name.startswith(unused))
    if missing:
        raise CheckpointError(
            f"The {what} '{source}' lacks {len(missing)} weights, for example {', '.join(missing[:3])}.",
            where=source,
            fix="give the encoder that its config.json describes",
        )
    loaded: nn.Module = encoder.eval()
    return loaded


def empty(make: Callable[[PreTrainedConfig], Any], config: PreTrainedConfig, dtype: torch.dtype) -> nn.Module:
    """An encoder on the meta device: its sizes, and no weights."""
    with torch.device("meta"):
        encoder: nn.Module = make(config)
    return encoder.to(dtype).eval()


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its kind."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
