"""Whether a run may keep features of its encoders, where, and how much of the disk they take."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mmtune.core.errors import NotPossibleError
from mmtune.data.cache import cache_folder
from mmtune.data.workplace import need_space
from mmtune.methods import METHODS
from mmtune.model.kinds import modality_of
from mmtune.model.lora import ENCODER_LINEAR
from mmtune.model.modeling import MMTuneModel
from mmtune.model.processing import MMTuneProcessor
from mmtune.train.data_setup import Data
from mmtune.train.display import Display
from mmtune.train.features import FeatureStore, KeptModality, encoder_key
from mmtune.train.files import folder_bytes, writing
from mmtune.train.recipe import Recipe
from mmtune.train.team import Team

_FOLDER = "features"
_GB = 1_000_000_000
_OFF = "--set data.cache_features=false"


def refuse_features(recipe: Recipe) -> None:
    """Say no to kept features that would not stay true while the run learns.

    Raises:
        NotPossibleError: The method changes the encoders, or they are trained.
    """
    if not recipe.data.cache_features:
        return
    targets = [recipe.tune.targets] if isinstance(recipe.tune.targets, str) else recipe.tune.targets
    reason = None
    if METHODS.load(recipe.method).changes_encoders:
        reason = f"{recipe.method} trains parameters inside the encoder"
    elif trained := [role for role in recipe.train.roles if role.partition(".")[0] == "encoder"]:
        reason = f"train.roles names '{trained[0]}'"
    elif recipe.tune.kind in ("lora", "qlora") and ENCODER_LINEAR in targets:
        reason = f"tune.targets puts LoRA into the encoders ('{ENCODER_LINEAR}')"
    if reason is not None:
        message = f"Features cannot be kept: {reason}, so that they differ after every step."
        raise NotPossibleError(message, where=recipe.where("data.cache_features"), fix=_OFF)


@dataclass(frozen=True)
class KeptFeatures:
    """The modalities of a run whose features are kept.

    Attributes:
        entry_bytes: Of an ordinary item, by modality.
    """

    modalities: Mapping[str, KeptModality]
    entry_bytes: Mapping[str, int]
    root: Path
    limit: int

    def reading(self, processor: MMTuneProcessor) -> MMTuneProcessor:
        """A processor that gives what is kept in place of opened media."""
        found = copy.copy(processor)
        found.modalities = {**processor.modalities, **self.modalities}
        return found

    def check_room(self, data: Data, display: Display) -> None:
        """Ask the disk, and say what will be kept.

        Raises:
            ResourceError: The disk has less room than the features of all media take, up to the limit.
        """
        media: dict[str, set[Any]] = {name: set() for name in self.modalities}
        for index in range(len(data.feed.mixture)):
            for item in data.feed.mixture.row(index).media:
                name = modality_of(item.modality, self.modalities)
                if name is not None:
                    media[name].add(hash(item.uri) if isinstance(item.uri, (str, bytes)) else id(item.uri))
        for name, kept in self.modalities.items():
            each = self.entry_bytes[name]
            there = folder_bytes(kept.store.folder)
            wanted = max(0, len(media[name]) * each - there)
            with writing(self.root):
                self.root.mkdir(parents=True, exist_ok=True)
            fix = f"free some space, give another data.cache, a smaller data.cache_features_gb, or {_OFF}"
            need_space(self.root, min(wanted, kept.store.room), fix)
            display.note(
                f"features of {len(media[name]):,} {name} items, about {len(media[name]) * each / _GB:,.2f} GB, "
                f"are kept in {kept.store.folder} ({there / _GB:,.2f} GB are there; limit {self.limit / _GB:g} GB)"
            )
            if wanted > kept.store.room:
                display.note(
                    f"only about {kept.store.room / max(1, each):,.0f} more fit: raise data.cache_features_gb, or "
                    f"remove folders of {self.root}; the others are encoded each time"
                )

    def summary(self, team: Team, display: Display) -> dict[str, Any]:
        """What the cache did, over all processes, which call it together; also told to the display."""
        kept = list(self.modalities.values())
        found = [[one.hits, one.misses, one.damaged, one.read, one.store.written] for one in kept]
        hits, misses, damaged, read, written = map(
            int, team.sum([float(sum(part)) for part in zip(*found, strict=True)])
        )
        dtypes = sorted({str(one.dtype).removeprefix("torch.") for one in kept if one.dtype is not None})
        display.note(
            f"features: {hits:,} from disk ({read / 1e6:,.1f} MB), {misses:,} encoded ({written / 1e6:,.1f} MB written)"
        )
        if damaged:
            display.note(f"features: {damaged:,} entries were damaged and made again")
        for fault in sorted({one.fault for one in kept if one.fault is not None}):
            display.note(f"features: not all could be kept, {fault}")
        return {
            "hits": hits, "misses": misses, "damaged": damaged, "bytes_read": read, "bytes_written": written,
            "dtype": ", ".join(dtypes) or None, "folders": [str(one.store.folder) for one in kept],
        }  # fmt: skip


def keep_features(
    recipe: Recipe, model: MMTuneModel, precision: str, device: torch.device, team: Team, display: Display
) -> KeptFeatures | None:
    """Have the model keep the features of its encoders, when the recipe asks for it.

    Raises:
        NotPossibleError: No encoder whose features can be kept.
    """
    if not recipe.data.cache_features:
        return None
    root = cache_folder(recipe.data.cache) / _FOLDER
    limit = int(recipe.data.cache_features_gb * _GB)
    room = max(0, limit - folder_bytes(root)) // team.size
    found: dict[str, KeptModality] = {}
    entry_bytes = {}
    for name, modality in model.modalities.items():
        preparation = modality.preparation()
        if preparation is None or not modality.has_encoder:
            display.note(f"features of '{name}' are not kept: what its items are prepared by is not known")
            continue
        key = encoder_key(modality, model.encoders[name], preparation, precision, device)
        size = next(model.encoders[name].parameters()).element_size()
        entry_bytes[name] = modality.num_positions * modality.width * size
        found[name] = KeptModality(modality, FeatureStore(root / key, room))
    if not found:
        names = ", ".join(model.modalities) or "none"
        message = f"This model has no encoder whose features can be kept: {names}."
        raise NotPossibleError(message, where=recipe.where("data.cache_features"), fix=_OFF)
    model.modalities = {**model.modalities, **found}
    return KeptFeatures(found, entry_bytes, root, limit)
