"""The vision tower of a LLaVA-like checkpoint: where its weights come from, and how they are written."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import CLIPVisionConfig, CLIPVisionModel, PreTrainedModel, SiglipVisionConfig, SiglipVisionModel

from mmtune.convert.damage import read_json
from mmtune.convert.language import dtype_name, require_count, require_positive
from mmtune.convert.locate import Place, locate
from mmtune.convert.plan import Part, Request, keep
from mmtune.convert.tensors import Store, not_understood, open_folder, require_weight
from mmtune.core.errors import CheckpointError, NotPossibleError, ResourceError, UsageError

FOLDER = "encoders/image"
_INSIDE = re.compile(r"^model\.vision_tower\.vision_tower\.(?:vision_model\.)?(.+)$")
_CLIP = re.compile(r"^(?:vision_model\.)?((?:embeddings|pre_layrnorm|encoder|post_layernorm)\..+)$")
_COMPUTED = "embeddings.position_ids"  # a buffer that old versions saved
_MEAN, _STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
_HEADS = "vision.num_attention_heads"  # --set key
_HEAD_WIDTH = 64  # of every CLIP tower that OpenAI published
_CLASSES = {
    "clip_vision_model": (CLIPVisionConfig, CLIPVisionModel),
    "siglip_vision_model": (SiglipVisionConfig, SiglipVisionModel),
}
_CLIP_KINDS = ("clip", "clip_vision_model")


@dataclass(frozen=True, slots=True)
class Tower:
    """A CLIP or SigLIP tower: config, picture preparation, and tensors by their names in its class of transformers."""

    config: Mapping[str, Any]
    preparation: Mapping[str, Any] | None
    tensors: Store
    place: Place | None  # where it was found; None when it was only inside the checkpoint
    inside: bool  # the tensors are the checkpoint's own

    @property
    def source(self) -> Mapping[str, Any]:
        """How the written config names it: a hub id stays a reference, everything else comes along."""
        if self.place is not None and self.place.hub_id is not None and not self.inside:
            return {"source": self.place.hub_id, "revision": self.place.revision}
        return {"source": FOLDER, "revision": None}

    @property
    def is_copied(self) -> bool:
        """Whether the written folder holds it."""
        return self.source["source"] == FOLDER

    def part(self, dtype: torch.dtype | None) -> Part | None:
        """The folder to write, or None when it stays a reference."""
        return written_tower(self, dtype, FOLDER) if self.is_copied else None


def written_tower(tower: Tower, dtype: torch.dtype | None, folder: str = "") -> Part:
    """A tower's weights, config and picture preparation, as a folder of its class in transformers."""
    entries = tuple(keep(tensor, f"vision_model.{name}", dtype) for name, tensor in tower.tensors.items())
    stored = next(iter(tower.tensors.values())).dtype
    made = _CLASSES[str(tower.config["model_type"])][1]
    config = {**tower.config, "architectures": [made.__name__], "dtype": dtype_name(dtype or stored)}
    preparation = tower.preparation or default_preparation(int(tower.config["image_size"]))
    return Part(
        folder,
        "model",
        entries,
        {"config.json": config, "preprocessor_config.json": preparation},
        origin=tower.place.folder if tower.place is not None else None,
    )


def read_tower(folder: Path, config: Mapping[str, Any], inside: Store, request: Request) -> Tower:
    """Find the tower as the original loader does.

    ``--vision`` comes first, then the path in the config. The copy inside the checkpoint counts only when the tower was
    trained (``unfreeze_mm_vision_tower``) or cannot be had elsewhere.

    Args:
        folder: The checkpoint.
        config: Its config.json.
        inside: Tensors of the checkpoint that are not the language model's.

    Raises:
        CheckpointError: No tower, or one whose tensors are not those of its config.
        ResourceError: It is on the hub only, and the hub is out of reach.
    """
    own = {match.group(1): tensor for name, tensor in inside.items() if (match := _INSIDE.match(name))}
    trained = bool(config.get("unfreeze_mm_vision_tower")) and bool(own) and request.vision is None
    place = _place(folder, config, request, required=not own)
    if place is not None and not trained:
        return _from_folder(place)
    if place is not None:
        found = _vision_config(read_json(place.folder / "config.json"), place.folder)
        return checked_tower(Tower(found, _preparation(place.folder), own, place, inside=True), str(folder))
    return checked_tower(Tower(_infer(own, folder, request.settings), None, own, None, inside=True), str(folder))


def _place(folder: Path, config: Mapping[str, Any], request: Request, *, required: bool) -> Place | None:
    found = _named_place(folder, config, request, required=required)
    return Place(found.folder) if found is not None and request.whole else found


def _named_place(folder: Path, config: Mapping[str, Any], request: Request, *, required: bool) -> Place | None:
    if request.vision is not None:
        return locate(request.vision, what="vision tower", option="--vision")
    name = config.get("mm_vision_tower") or config.get("vision_tower")
    if not name:
        if not required:
            return None
        raise CheckpointError(
            "config.json names no vision tower (mm_vision_tower).",
            where=str(folder / "config.json"),
            fix="give its folder or hub id with --vision",
        )
    try:
        return locate(str(name), beside=folder, what="vision tower", option="--vision")
    except (CheckpointError, ResourceError):
        if required:
            raise
        return None


def _from_folder(place: Place) -> Tower:
    config = _vision_config(read_json(place.folder / "config.json"), place.folder)
    store = open_folder(place.folder)
    tensors = {match.group(1): tensor for name, tensor in store.items() if (match := _CLIP.match(name))}
    return checked_tower(Tower(config, _preparation(place.folder), tensors, place, inside=False), str(place.folder))


def _vision_config(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The vision half of a CLIP config."""
    kind = config.get("model_type")
    if kind not in _CLIP_KINDS:
        raise NotPossibleError(
            f"The vision tower is a '{kind}'; the originals read CLIP towers only.",
            where=str(folder / "config.json"),
            fix="give the CLIP tower that the checkpoint was trained with: --vision",
        )
    vision = config.get("vision_config") if kind == "clip" else config
    kept = {key: value for key, value in (vision or {}).items() if key not in ("torch_dtype", "_name_or_path", "dtype")}
    return {**kept, "model_type": "clip_vision_model"}


def _preparation(folder: Path) -> dict[str, Any] | None:
    path = folder / "preprocessor_config.json"
    return read_json(path) if path.is_file() else None


def default_preparation(size: int) -> dict[str, Any]:
    """CLIP's own preparation of pictures: shortest edge, centre crop, its mean and deviation."""
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": size},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": _MEAN,
        "image_std": _STD,
        "do_convert_rgb": True,
    }


def checked_tower(tower: Tower, where: str) -> Tower:
    """The same tower without computed buffers, its tensors exactly those of its config.

    Raises:
        CheckpointError: Tensors missing, unknown or of another shape, or a config of no tower.
    """
    tensors = {name: tensor for name, tensor in tower.tensors.items() if name != _COMPUTED}
    require_positive(tower.config, ("hidden_size", "num_attention_heads", "image_size", "patch_size"), where=where)
    require_count(tower.config.get("num_hidden_layers"), tensors, where=where)
    expected = vision_model(tower.config, where=where).state_dict()
    if unknown := tensors.keys() - expected.keys():
        raise not_understood(unknown, tensors, form="CLIP vision tower")
    if missing := expected.keys() - tensors.keys():
        raise CheckpointError(
            f"Tensor '{min(missing)}' of the vision tower is missing.",
            where=where,
            fix="copy the whole tower, or give --vision",
        )
    for name, tensor in tensors.items():
        require_weight(tensor, tuple(expected[name].shape), because="the vision tower's config.json")
    return Tower(tower.config, tower.preparation, tensors, tower.place, tower.inside)


def vision_model(config: Mapping[str, Any], *, where: str, on_meta: bool = True) -> PreTrainedModel:
    """The model of a tower's config, by default without its memory.

    Raises:
        CheckpointError: transformers makes no model of this config.
    """
    kind, made = _CLASSES.get(str(config.get("model_type")), _CLASSES["clip_vision_model"])
    try:
        with torch.device("meta" if on_meta else "cpu"):
            return made._from_config(kind(**config), attn_implementation="eager").eval()
    except (ValueError, TypeError, KeyError, RuntimeError, ArithmeticError, StrictDataclassError) as error:
        detail = " ".join(str(error).split())
        raise CheckpointError(
            f"The vision tower's config.json is not valid: {detail}", where=where, fix="copy it again"
        ) from error


def _infer(own: Store, folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """A CLIP config from the tensors alone; the number of heads is not among them."""
    try:
        patch = own["embeddings.patch_embedding.weight"]
        positions = own["embeddings.position_embedding.weight"].shape[0]
        feed_forward = own["encoder.layers.0.mlp.fc1.weight"].shape[0]
    except KeyError as error:
        raise CheckpointError(
            f"The vision tower inside the checkpoint lacks {error}.",
            where=str(folder),
            fix="give its folder with --vision",
        ) from error
    hidden, _, patch_size, _ = patch.shape
    layers = len({name.split(".")[2] for name in own if name.startswith("encoder.layers.")})
    heads = settings.get(_HEADS)
    if heads is None and hidden % _HEAD_WIDTH:
        raise CheckpointError(
            f"The tower named in config.json was not found, and the copy inside does not tell its number of heads "
            f"(width {hidden}).",
            where=str(folder),
            fix="give the tower with --vision DIR, or add --set vision.num_attention_heads=N",
        )
    if heads is not None and (type(heads) is not int or heads < 1 or hidden % heads):
        raise UsageError(
            f"{heads!r} heads cannot be; the tower is {hidden} wide.",
            where=f"--set {_HEADS}",
            fix="give the number of heads that the tower was made with",
        )
    return {
        "model_type": "clip_vision_model",
        "hidden_size": hidden,
        "intermediate_size": feed_forward,
        "num_hidden_layers": layers,
        "num_attention_heads": heads if heads is not None else hidden // _HEAD_WIDTH,
        "image_size": round((positions - 1) ** 0.5) * patch_size,
        "patch_size": patch_size,
        "hidden_act": settings.get("vision.hidden_act", "quick_gelu"),
        "layer_norm_eps": 1e-5,
        "projection_dim": hidden,
    }
