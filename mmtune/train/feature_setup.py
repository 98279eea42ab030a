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
from mmtune.train.feed import Mixture
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
        limit: Bytes of all that is kept in ``root``; ``room`` of it is not used yet.
    """

    modalities: Mapping[str, KeptModality]
    entry_bytes: Mapping[str, int]
    root: Path
    limit: int
    room: int

    def reading(self, processor: MMTuneProcessor) -> MMTuneProcessor:
        """A processor that gives what is kept in place of opened media."""
        found = copy.copy(processor)
        found.modalities = {**processor.modalities, **self.modalities}
        return found

    def check_room(self, data: Data, display: Display) -> None:
        """Ask the disk, and say what will be kept; for one of the processes that share a run.

        Raises:
            ResourceError: The disk has less room than the features of all media take, up to the limit.
        """
        there = {name: folder_bytes(kept.store.folder) for name, kept in self.modalities.items()}
        media, all_seen = self._count_media(data.feed.mixture, there)
        for name, kept in self.modalities.items():
            size = media[name] * self.entry_bytes[name]
            wanted = max(0, size - there[name])
            with writing(self.root):
                self.root.mkdir(parents=True, exist_ok=True)
            fix = f"free some space, give another data.cache, a smaller data.cache_features_gb, or {_OFF}"
            need_space(self.root, min(wanted, self.room), fix)
            count = f"{'' if all_seen else 'at least '}{media[name]:,} {name} items"
            found = f"{there[name] / _GB:,.2f} GB are there; limit {self.limit / _GB:g} GB"
            display.note(f"features of {count}, about {size / _GB:,.2f} GB, are kept in {kept.store.folder} ({found})")
            if wanted > self.room:
                display.note(
                    f"only about {self.room / max(1, self.entry_bytes[name]):,.0f} more fit: raise "
                    f"data.cache_features_gb, or remove folders of {self.root}; the others are encoded each time"
                )

    def _count_media(self, mixture: Mixture, there: Mapping[str, int]) -> tuple[dict[str, int], bool]:
        """Different media by modality, and whether all rows were looked at: not where it is more than may be kept."""
        media: dict[str, set[int]] = {name: set() for name in self.modalities}
        most = {name: (self.limit + there[name]) / max(1, each) for name, each in self.entry_bytes.items()}
        seen = 0
        while seen < len(mixture) and any(len(found) <= most[name] for name, found in media.items()):
            for item in mixture.row(seen).media:
                name = modality_of(item.modality, self.modalities)
                if name is not None:
                    media[name].add(hash(item.uri) if isinstance(item.uri, (str, bytes)) else id(item.uri))
            seen += 1
        return {name: len(found) for name, found in media.items()}, seen == len(mixture)

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
    room = max(0, limit - folder_bytes(root))
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
        found[name] = KeptModality(modality, FeatureStore(root / key, room // team.size))
    if not found:
        names = ", ".join(model.modalities) or "none"
        message = f"This model has no encoder whose features can be kept: {names}."
        raise NotPossibleError(message, where=recipe.where("data.cache_features"), fix=_OFF)
    model.modalities = {**model.modalities, **found}
    return KeptFeatures(found, entry_bytes, root, limit, room)
