"""The frozen encoders that a multi_token checkpoint names: found, read, and copied beside what was converted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mmtune.convert.damage import read_json, reading
from mmtune.convert.language import dtype_name
from mmtune.convert.locate import Place, locate
from mmtune.convert.plan import Part, Request, keep
from mmtune.convert.tensors import Store, open_folder
from mmtune.convert.vision import Tower, read_tower
from mmtune.modalities import MODALITIES
from mmtune.modalities.base import Modality


@dataclass(frozen=True, slots=True)
class Published:
    """One modality of the published code.

    Args:
        modality: Its name here.
        source: The encoder that its code loads.
    """

    modality: str
    source: str


# Name in a checkpoint -> what it is. The builders of pooled or wider variants have the same names.
PUBLISHED: Mapping[str, Published] = {
    "vision_clip": Published("image", "openai/clip-vit-large-patch14-336"),
    "audio_whisper": Published("audio_whisper", "openai/whisper-small"),
    "audio_clap": Published("audio_clap", "laion/clap-htsat-fused"),
    "video_xclip": Published("video_xclip", "microsoft/xclip-base-patch32"),
    "document_gte": Published("document_gte", "thenlper/gte-large"),
    "imagebind": Published("imagebind", "imagebind_huge"),
}
_PICTURES, _IMAGEBIND = "vision_clip", "imagebind"
_WEIGHTS = ("model", "pytorch_model")


@dataclass(frozen=True, slots=True)
class Encoder:
    """One encoder and the modality that reads it.

    Args:
        name: Its name in the checkpoint.
        width: Features of one position or vector, D.
        named: How it was asked for.
        place: Where it was found; None for one that is no folder of transformers (ImageBind).
        tower: Pictures: the CLIP tower.
        tensors: All others: the weights as stored.
    """

    name: str
    width: int
    named: str
    place: Place | None
    tower: Tower | None = None
    tensors: Store | None = None

    @property
    def key(self) -> str:
        """The modality's name in the written model."""
        return PUBLISHED[self.name].modality

    @property
    def folder(self) -> str:
        """Where a copy goes in the written folder."""
        return f"encoders/{self.key}"

    @property
    def source(self) -> dict[str, Any]:
        """``source`` and ``revision`` as the written config names them: a hub id stays a reference."""
        if self.tower is not None:
            return dict(self.tower.source)
        if self.place is None:
            return {"source": self.named, "revision": None}
        if self.place.hub_id is not None:
            return {"source": self.place.hub_id, "revision": self.place.revision}
        return {"source": self.folder, "revision": None}

    def part(self, dtype: torch.dtype | None) -> Part | None:
        """The folder to write, or None when it stays a reference."""
        if self.tower is not None:
            return self.tower.part(dtype)
        if self.tensors is None or self.place is None or self.place.hub_id is not None:
            return None
        entries = tuple(keep(tensor, None, dtype) for tensor in self.tensors.values())
        config = read_json(self.place.folder / "config.json")
        if dtype is not None:
            config = {**config, "dtype": dtype_name(dtype)}
        copies = {path.name: path for path in sorted(self.place.folder.iterdir()) if _is_companion(path)}
        return Part(self.folder, "model", entries, {"config.json": config}, copies, origin=self.place.folder)


def _is_companion(path: Path) -> bool:
    """Whether a file belongs to the preparation of an encoder's inputs."""
    is_text = path.suffix in (".json", ".txt") or path.name in ("spiece.model", "sentencepiece.bpe.model")
    return path.is_file() and is_text and path.name != "config.json" and not path.name.endswith(".index.json")


def read_encoder(name: str, settings: Mapping[str, Any], folder: Path, request: Request) -> Encoder:
    """Find and open the encoder of one modality.

    Args:
        name: Its name in the checkpoint.
        settings: Of the modality.
        folder: The checkpoint.

    Raises:
        CheckpointError: No encoder there, or a damaged one.
        ResourceError: It is on the hub only, and the hub is out of reach.
        NotPossibleError: An encoder of another kind.
    """
    named = request.encoders.get(name) or (request.vision if name == _PICTURES else None) or PUBLISHED[name].source
    kind: type[Modality] = MODALITIES.load(PUBLISHED[name].modality)
    if name == _PICTURES:
        tower = read_tower(folder, {}, {}, Request(vision=named, whole=request.whole))
        return Encoder(name, int(tower.config["hidden_size"]), named, tower.place, tower)
    if name == _IMAGEBIND:
        return Encoder(name, kind.from_source(named, settings=settings).width, named, None)
    place = locate(named, what=f"encoder '{name}'", option=f"--encoder {name}=PATH")
    place = Place(place.folder) if request.whole else place
    with reading(place.folder, "config.json or the preparation of the encoder"):
        width = kind.from_source(str(place.folder), settings=settings).width
    return Encoder(name, width, named, place, tensors=open_folder(place.folder, _WEIGHTS))
