"""Putting a model together: fresh from a base and encoders, or from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from mmtune.core.errors import CheckpointError, ResourceError, UsageError
from mmtune.core.registry import canonical
from mmtune.methods import METHODS
from mmtune.modalities.base import NO_SOURCE, Modality
from mmtune.model.checkpoint import check_probe, load_adapters, read_config
from mmtune.model.configuration import MMTuneConfig
from mmtune.model.kinds import check_distinct
from mmtune.model.modeling import MMTuneModel
from mmtune.model.processing import MMTuneProcessor, load_tokenizer
from mmtune.model.processor_files import slots_of
from mmtune.model.quantised import quantisation, quantising
from mmtune.model.sources import NANO, loading_error, read_modality, reading, resolve_source

META = torch.device("meta")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def build_model(
    *,
    base: str = NANO,
    encoders: Mapping[str, str | Mapping[str, Any]] | None = None,
    method: str = "llava",
    settings: Mapping[str, Any] | None = None,
    template: str | None = None,
    revision: str | None = None,
    seed: int = 0,
    dtype: str = "float32",
    device: str = "cpu",
    attention: str | None = None,
    bits: int | None = None,
    quantiser: str = "bitsandbytes",
) -> tuple[MMTuneModel, MMTuneProcessor]:
    """A pretrained base and encoders with a fresh method between them.

    On the device ``meta`` no weight is read or made: the model is there to be counted.

    Args:
        base: ``nano``, a folder, or a hub id of a causal language model.
        encoders: Modality name to a source, or to ``source``, ``revision`` and ``settings``, which go before those that
            the method wants; nano's tower when absent.
        method: Registered method.
        settings: The method's settings.
        template: Prompt template; nano's own, the tokenizer's chat template or ``vicuna_v1`` when absent.
        seed: Seed of the method's initial weights.
        dtype: Of base and encoders; the method itself is float32.
        attention: Attention implementation of transformers, its default when absent.
        bits: 4 or 8 quantises the base's linear maps by the ``quantiser``; see :mod:`mmtune.model.quantised`.

    Raises:
        NotPossibleError: Quantisation that cannot run here.
        UsageError: Unknown method, modality or setting.
        CheckpointError, ResourceError: A base or encoder that cannot be loaded.
    """
    given = {name: _entry(value) for name, value in (encoders or {"image": NANO}).items()}
    wanted = METHODS.load(method).modality_settings
    for name, entry in given.items():
        entry["settings"] = {**wanted.get(entry.get("kind") or name, {}), **(entry.get("settings") or {})}
    modalities = {name: read_modality(name, entry) for name, entry in given.items()}
    check_distinct(modalities)
    base_folder = resolve_source(base, "llm")
    with reading(base_folder, "language model"):
        tokenizer = load_tokenizer(base_folder, revision)
    config = MMTuneConfig(
        method=canonical(method),
        settings=dict(settings or {}),
        base={"source": base, "revision": revision, "probe": None},
        encoders={name: _described(entry, modalities[name]) for name, entry in given.items()},
        template=template or _default_template(base, tokenizer),
    )
    config.settings = MMTuneModel.method_settings(config).model_dump(mode="json")
    chosen = META if device == META.type else resolve_device(device)
    model = _assemble(
        config, modalities, chosen, dtype=dtype, attention=attention, seed=seed, bits=bits, quantiser=quantiser
    )
    processor = make_processor(model, tokenizer)
    return model.to(chosen), processor


def load(
    source: str | Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    attention: str | None = None,
    bits: int | None = None,
    quantiser: str = "bitsandbytes",
) -> tuple[MMTuneModel, MMTuneProcessor]:
    """Load a checkpoint: a folder, a hub id, or ``nano`` for the bundled one.

    Args:
        device: ``auto`` (cuda, mps, cpu in that order) or a torch device.
        dtype: ``auto`` (the stored one on accelerators, float32 on CPU), float32, bfloat16 or float16.

    Returns:
        The model in evaluation mode and its processor.

    Raises:
        CheckpointError: Missing, damaged, or of another method or base.
        ResourceError: No such device, or the hub is out of reach.
    """
    folder = checkpoint_folder(str(source))
    model = load_model(folder, device=device, dtype=dtype, attention=attention, bits=bits, quantiser=quantiser)
    return model, MMTuneProcessor.from_pretrained(folder)


def load_model(
    source: str | Path,
    *,
    device: str = "cpu",
    dtype: str | torch.dtype | None = "auto",
    attention: str | None = None,
    bits: int | None = None,
    quantiser: str = "bitsandbytes",
    attn_implementation: str | None = None,
    torch_dtype: str | torch.dtype | None = None,
    config: MMTuneConfig | None = None,
    **ignored: Any,
) -> MMTuneModel:
    """The model of a checkpoint; the names transformers uses for the same options are accepted too."""
    folder = checkpoint_folder(str(source))
    found = read_config(folder)
    chosen = META if device == META.type else resolve_device(device)
    name = _dtype_name(torch_dtype or dtype, chosen)
    modalities = {}
    for modality, entry in found.encoders.items():
        modalities[modality] = read_modality(modality, entry, folder)
        if entry["source"] != NANO:
            entry["source"] = modalities[modality].source
    if found.base["source"] != NANO:
        found.base["source"] = resolve_source(found.base["source"], "llm", folder)
    attention = attention or attn_implementation
    model = _assemble(
        found, modalities, chosen, dtype=name, attention=attention, seed=0, bits=bits, quantiser=quantiser
    )
    if chosen == META:
        load_adapters(model, Path(folder), weights=False)
        return model.eval()
    check_probe(model, str(folder))
    load_adapters(model, Path(folder))
    return model.to(chosen).eval()


def checkpoint_folder(source: str) -> str:
    """A local folder for a checkpoint; hub ids are fetched.

    Raises:
        ResourceError: The hub is out of reach.
    """
    folder = resolve_source(source, "adapter")
    if Path(folder).is_dir():
        return folder
    if Path(folder).exists():
        raise CheckpointError(f"'{source}' is a file; a checkpoint is a folder.", where=source, fix="give its folder")
    from huggingface_hub import snapshot_download

    try:
        return str(snapshot_download(source))
    except Exception as error:  # the hub raises many kinds, all of them mean: not to be had
        raise loading_error(source, "checkpoint", error) from error


def make_processor(model: MMTuneModel, tokenizer: Any, template: str | None = None) -> MMTuneProcessor:
    """The processor that writes exactly the placeholders this model expects."""
    return MMTuneProcessor(
        tokenizer,
        model.modalities,
        template=template or model.config.template,
        placeholder_ids=model.placeholder_ids,
        slots={name: slots_of(partial(model.method.placeholders, name)) for name in model.modalities},
        lead=model.method.lead,
        frame=model.method.frame,
    )


def resolve_device(device: str) -> torch.device:
    """``auto`` is cuda, mps, cpu in that order.

    Raises:
        ResourceError: The device is not there.
        UsageError: No device at all.
    """
    if device == "auto":
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return torch.device(accelerator.type if accelerator else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise UsageError(
            f"'{device}' is no device.", where="--device", fix="use auto, cpu, cuda, cuda:0 or mps"
        ) from error
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(found.type, False):
        raise ResourceError(
            f"There is no device '{device}' on this machine.", where="--device", fix="use --device cpu or auto"
        )
    return found


def _assemble(
    config: MMTuneConfig,
    modalities: dict[str, Modality],
    device: torch.device,
    *,
    dtype: str,
    attention: str | None,
    seed: int,
    bits: int | None,
    quantiser: str,
) -> MMTuneModel:
    if dtype not in DTYPES:
        raise UsageError(f"Unknown dtype '{dtype}'. Allowed: {', '.join(DTYPES)}.", where="--dtype", fix="use float32")
    if device == META:
        with META:
            language_model = _empty_language_model(config, DTYPES[dtype], attention)
            encoders = {name: modality.empty_encoder(DTYPES[dtype]) for name, modality in modalities.items()}
            return MMTuneModel(config, language_model.requires_grad_(False), _frozen(encoders), modalities, seed=seed)
    quantised = quantisation(bits, DTYPES[dtype], device, quantiser) if bits is not None else {}
    with quantising(bits, quantiser):
        language_model = _load_language_model(config, DTYPES[dtype], attention, quantised).requires_grad_(False)
    encoders = {name: modality.load_encoder(DTYPES[dtype]) for name, modality in modalities.items()}
    return MMTuneModel(config, language_model, _frozen(encoders), modalities, seed=seed)


def _frozen(encoders: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    return {name: encoder.requires_grad_(False) for name, encoder in encoders.items()}


def _empty_language_model(config: MMTuneConfig, dtype: torch.dtype, attention: str | None) -> PreTrainedModel:
    source = resolve_source(config.base["source"], "llm")
    options = {} if attention is None else {"attn_implementation": attention}
    try:
        found = AutoConfig.from_pretrained(source, revision=config.base.get("revision"), trust_remote_code=False)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            found, dtype=dtype, trust_remote_code=False, **options
        )
    except (OSError, ValueError, KeyError) as error:
        raise loading_error(source, "language model", error) from error
    return model.eval()


def _load_language_model(
    config: MMTuneConfig, dtype: torch.dtype, attention: str | None, quantised: Mapping[str, Any]
) -> PreTrainedModel:
    source = resolve_source(config.base["source"], "llm")
    transformers_logging.disable_progress_bar()
    options = dict(quantised) if attention is None else {**quantised, "attn_implementation": attention}
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            source, revision=config.base.get("revision"), dtype=dtype, trust_remote_code=False, **options
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        if quantised and not isinstance(error, OSError):
            raise  # told as what it is
        raise loading_error(source, "language model", error) from error
    return model.eval()


def _described(entry: Mapping[str, Any], modality: Modality) -> dict[str, Any]:
    """What a checkpoint's configuration says of an encoder."""
    return {
        "source": entry["source"] if modality.has_encoder else NO_SOURCE,
        "revision": entry.get("revision"),
        "settings": modality.settings.model_dump(mode="json"),
        **({"kind": entry["kind"]} if "kind" in entry else {}),
    }


def _entry(value: str | Mapping[str, Any]) -> dict[str, Any]:
    return {"source": value} if isinstance(value, str) else dict(value)


def _default_template(base: str, tokenizer: Any) -> str:
    if base == NANO:
        return "nano"
    return "chat" if tokenizer.chat_template else "vicuna_v1"


def _dtype_name(dtype: str | torch.dtype | None, device: torch.device) -> str:
    if isinstance(dtype, torch.dtype):
        return str(dtype).removeprefix("torch.")
    if dtype in (None, "auto"):
        return "float32" if device.type == "cpu" else "bfloat16"
    return str(dtype)
