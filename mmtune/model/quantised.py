"""Bases in 4 or 8 bit: the linear maps inside the blocks, as LaVIN's lite variant and QLoRA have it.

Embeddings, norms and the output head keep their precision, and so do the encoders. Where this cannot run it is refused,
never replaced by a run in 16 bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch

from mmtune.core.errors import MissingExtraError, MMTuneError, NotPossibleError

BITS = (4, 8)
EXTRAS = {"bitsandbytes": "quant", "torchao": "torchao"}
_GROUP = 32  # weights of torchao's 4 bits that share a scale
_TILES = (8, 1024)  # rows and columns of torchao's 4 bits come in multiples of these
_OUTLIERS = 6.0  # LLM.int8: features beyond it are computed in 16 bits
_BLOCK, _OUTER_BLOCK = 64, 256  # NF4: numbers that share a constant, and constants that share one of their own
_CODES = 4 * (16 + 256 + 1)  # both tables of values and the constants' mean, in float32


def quantisation(
    bits: int, dtype: torch.dtype, device: torch.device, quantiser: str = "bitsandbytes"
) -> dict[str, Any]:
    """The options of ``from_pretrained`` that load a base in so many bits.

    bitsandbytes has NF4 with double quantisation, and LLM.int8; torchao has weights in integers, rounded.

    Args:
        dtype: What the quantised maps of bitsandbytes compute in.
        quantiser: ``bitsandbytes`` or ``torchao``.

    Raises:
        MissingExtraError: The library is not installed; the message has the line that installs it.
        NotPossibleError: It does not run on this device.
    """
    if find_spec(quantiser) is None:
        raise MissingExtraError(f"A base in {bits} bits by {quantiser} (tune.bits)", EXTRAS[quantiser])
    if quantiser == "torchao":
        return _by_torchao(bits, device)
    if device.type not in ("cuda", "xpu", "cpu"):
        raise NotPossibleError(
            f"bitsandbytes does not run on the device '{device.type}'.",
            where="tune.bits",
            fix="use --device cuda or cpu, or tune.bits: null",
        )
    from transformers import BitsAndBytesConfig

    config = (
        BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
        if bits == 4
        else BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=_OUTLIERS)
    )
    return {"quantization_config": config, "device_map": {"": device}}


def _by_torchao(bits: int, device: torch.device) -> dict[str, Any]:
    if bits == 4 and device.type != "cuda":
        raise NotPossibleError(
            f"torchao has no kernels for 4 bits on the device '{device.type}'.",
            where="tune.bits",
            fix="use --device cuda, tune.bits: 8, or tune.quantiser: bitsandbytes",
        )
    from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    kind = (
        Int4WeightOnlyConfig(group_size=_GROUP, int4_packing_format="tile_packed_to_4d")
        if bits == 4
        else Int8WeightOnlyConfig()
    )
    return {"quantization_config": TorchAoConfig(kind), "device_map": {"": device}}


def quantised_bytes(rows: int, columns: int, bits: int, quantiser: str = "bitsandbytes") -> int:
    """Bytes of a matrix in 4 or 8 bits with its constants.

    torchao's 4 bits have a scale and a zero point in bfloat16 for each group, in tiles that rows and columns fill up.

    Source:
        QLoRA (arXiv 2305.14314), section 3: NF4 in blocks of 64, their constants in 8 bits in blocks of 256;
        LLM.int8 (arXiv 2208.07339): a constant for each row.
    """
    numbers = rows * columns
    if bits == 8:
        return numbers + 4 * rows
    if quantiser == "torchao":
        tiled, wide = (-(-size // tile) * tile for size, tile in zip((rows, columns), _TILES, strict=True))
        return tiled * wide // 2 + 2 * 2 * tiled * wide // _GROUP
    blocks = -(-numbers // _BLOCK)
    return -(-numbers // 2) + blocks + 4 * -(-blocks // _OUTER_BLOCK) + _CODES


@contextmanager
def quantising(bits: int | None, quantiser: str = "bitsandbytes") -> Iterator[None]:
    """Say that quantisation is what failed.

    Raises:
        NotPossibleError: The library or transformers refuse this base, device or version.
    """
    try:
        yield
    except MMTuneError:
        raise
    except (ImportError, ValueError, RuntimeError) as error:
        if bits is None:
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise NotPossibleError(
            f"The base cannot be loaded in {bits} bits: {reason}",
            where="tune.bits",
            fix=f'pip install -U "mmtune[{EXTRAS[quantiser]}]", use another --device, or set tune.bits: null for a '
            "base in 16 bits",
        ) from error
