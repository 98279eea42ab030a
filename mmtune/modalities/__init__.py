"""Floor 2: one file a modality. Third parties add theirs by the entry-point group ``mmtune.modalities``."""

from mmtune.core.registry import Registry

MODALITIES = Registry("modality", "mmtune.modalities", {"image": "mmtune.modalities.image:ImageModality"})
