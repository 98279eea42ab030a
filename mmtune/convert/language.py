"""The language model of a checkpoint: its own config and tensors, taken out of what surrounds them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForCausalLM

from mmtune.convert.damage import read_json
from mmtune.convert.plan import Part, keep
from mmtune.convert.tensors import Store, not_understood, open_folder, require_weight
from mmtune.core.errors import CheckpointError, NotPossibleError

# model_type of an original -> the plain decoder inside it.
PLAIN_TYPES: Mapping[str, str] = {
    "llava_llama": "llama",
    "llava_mistral": "mistral",
    "llava": "llama",
    "llava_vlora": "llama",
}
_CHECKED = ("llama", "mistral")
_CLASSES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}
# Tensors of an original that belong to other parts.
_FOREIGN = re.compile(r"^model\.(mm_projector\.|vision_tower\.|image_newline$)")
# Old versions saved this buffer, which every model computes by itself.
_COMPUTED = re.compile(r"\.rotary_emb\.inv_freq$")
# Keys of a llama or mistral config.json of any age that are no attribute of today's class.
_SIZES = (
    "vocab_size", "hidden_size", "num_attention_heads", "num_key_value_heads", "max_position_embeddings", "rope_theta"
)  # fmt: skip
_OLD_KEYS = ("rope_theta", "rope_scaling", "partial_rotary_factor")


@dataclass(frozen=True, slots=True)
class Language:
    """A plain causal LM: a config that transformers reads, and its tensors by their names there."""

    folder: Path
    config: Mapping[str, Any]
    tensors: Store
    left: Store  # tensors of the folder that belong to other parts
    tokenizer: Path | None = None  # its folder when that is another one
    computed: Store = field(default_factory=dict)  # buffers in the files that every model computes by itself

    @property
    def hidden_size(self) -> int:
        """Width H."""
        return int(self.config["hidden_size"])

    @property
    def num_layers(self) -> int:
        """Number of blocks L."""
        return int(self.config["num_hidden_layers"])

    @property
    def dtype(self) -> torch.dtype:
        """The precision most of the values are stored in."""
        sizes: dict[torch.dtype, int] = {}
        for tensor in self.tensors.values():
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.num_bytes
        return max(sizes, key=lambda kind: sizes[kind]) if sizes else torch.float32

    def part(self, dtype: torch.dtype | None) -> Part:
        """The folder ``language_model`` of a written checkpoint."""
        config = {**self.config, "dtype": dtype_name(dtype or self.dtype)}
        documents: dict[str, Mapping[str, Any]] = {"config.json": config}
        generation = _generation_config(self.folder)
        if generation is not None:
            documents["generation_config.json"] = generation
        entries = tuple(keep(tensor, name, dtype) for name, tensor in self.tensors.items())
        return Part("language_model", "model", entries, documents, origin=self.folder)


def dtype_name(dtype: torch.dtype) -> str:
    """``float16`` for ``torch.float16``."""
    return str(dtype).removeprefix("torch.")


def read_language(folder: Path) -> Language:
    """Read the language model of a folder: a plain causal LM, or the one inside a LLaVA or VLoRA checkpoint.

    Raises:
        CheckpointError: Tensors missing, unknown or of another shape than the config says.
        NotPossibleError: A decoder that this version does not read.
    """
    raw = read_json(folder / "config.json")
    store = open_folder(folder)
    config = plain_config(raw, folder)
    left = {name: tensor for name, tensor in store.items() if _FOREIGN.match(name)}
    own = {name: tensor for name, tensor in store.items() if name not in left and not _COMPUTED.search(name)}
    if config["model_type"] in _CHECKED:
        check_language(own, config, folder)
    computed = {name: tensor for name, tensor in store.items() if _COMPUTED.search(name)}
    return Language(folder, config, own, left, computed=computed)


def plain_config(raw: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The config of the decoder alone.

    Raises:
        NotPossibleError: A multimodal config whose decoder is not known.
    """
    kind = str(raw.get("model_type"))
    multimodal = "mm_vision_tower" in raw or "mm_projector_type" in raw
    if kind in PLAIN_TYPES or (multimodal and kind in _CLASSES):  # LLaVA v0 calls itself llama
        plain = PLAIN_TYPES.get(kind, kind)
    elif multimodal:
        known = sorted(PLAIN_TYPES)
        raise NotPossibleError(
            f"A multimodal '{kind}' is not read by this version.",
            where=str(folder),
            allowed=known,
            fix=f"known: {known}",
        )
    else:
        return {key: value for key, value in raw.items() if key not in ("torch_dtype", "_name_or_path")}
    allowed = {*_known_keys(plain), *_OLD_KEYS}
    kept = {key: value for key, value in raw.items() if key in allowed}
    return {**kept, "model_type": plain, "architectures": [_CLASSES[plain]]}


@lru_cache(maxsize=4)
def _known_keys(kind: str) -> frozenset[str]:
    keys = set(AutoConfig.for_model(kind).to_dict())
    return frozenset(keys - {"_name_or_path", "architectures", "dtype", "transformers_version", "model_type"})


def meta_state(config: Mapping[str, Any], *, where: str) -> dict[str, torch.Tensor]:
    """Names and shapes that a causal LM of this config has, without its memory.

    Raises:
        CheckpointError: transformers makes no model of this config.
    """
    try:
        made = AutoConfig.for_model(**config)
        with torch.device("meta"):
            return dict(AutoModelForCausalLM.from_config(made).state_dict())
    except (
        ValueError, TypeError, KeyError, RuntimeError, ArithmeticError, AssertionError, StrictDataclassError
    ) as error:  # fmt: skip
        detail = " ".join(str(error).split())
        raise CheckpointError(
            f"config.json describes no valid model: {detail}", where=where, fix="copy the original config.json again"
        ) from error


def require_positive(config: Mapping[str, Any], names: Iterable[str], *, where: str) -> None:
    """Refuse sizes of 0 and below, which transformers would make a model of.

    Raises:
        CheckpointError: Names the key.
    """
    for name in names:
        value = config.get(name)
        if isinstance(value, int | float) and not value > 0:
            fix = "copy the original file again"
            raise CheckpointError(f"{name} is {value}; it must be above 0.", where=where, fix=fix)


def require_count(value: Any, store: Store, *, where: str) -> None:
    """Refuse a number of layers beyond all reason before a model of that size is laid out.

    Raises:
        CheckpointError: More layers than there are tensors.
    """
    if isinstance(value, int) and value > len(store):
        raise CheckpointError(
            f"num_hidden_layers is {value}, but there are {len(store)} tensors in all.",
            where=where,
            fix="copy the original config.json and all weight files again",
        )


def check_language(own: Store, config: Mapping[str, Any], folder: Path) -> None:
    """Demand exactly the tensors that a model of this config has, in floating point.

    Raises:
        CheckpointError: Names the tensor that is missing, unknown, quantised or of another shape.
    """
    require_positive(config, _SIZES, where=str(folder / "config.json"))
    require_count(config.get("num_hidden_layers"), own, where=str(folder / "config.json"))
    expected = meta_state(config, where=str(folder / "config.json"))
    unknown = [name for name in own if name not in expected]
    if unknown:
        raise not_understood(unknown, own, form=f"{config['model_type']} language model")
    missing = [name for name in expected if name not in own and not _is_tied(name, config)]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(
            f"Tensor '{missing[0]}'{more} of the language model is missing.",
            where=str(folder),
            fix="copy the whole checkpoint; check num_hidden_layers in config.json",
        )
    for name, tensor in own.items():
        require_weight(tensor, tuple(expected[name].shape), because="config.json")


def _is_tied(name: str, config: Mapping[str, Any]) -> bool:
    return name == "lm_head.weight" and bool(config.get("tie_word_embeddings"))


def _generation_config(folder: Path) -> dict[str, Any] | None:
    """The generation settings without those that contradict greedy decoding (as Vicuna ships them) or limit length."""
    path = folder / "generation_config.json"
    if not path.is_file():
        return None
    values = read_json(path)
    sampling = () if values.get("do_sample") else ("temperature", "top_p", "top_k")
    left_out = {*sampling, "max_length", "_from_model_config"}
    return {key: value for key, value in values.items() if key not in left_out}
