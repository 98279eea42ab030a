"""Floor 2: one file a modality. Third parties add theirs by the entry-point group ``mmtune.modalities``.

The names after the first six are those of published multi_token checkpoints, with that system's markers and defaults.
"""

from mmtune.core.registry import Registry

MODALITIES = Registry(
    "modality",
    "mmtune.modalities",
    {
        "image": "mmtune.modalities.image:ImageModality",
        "audio": "mmtune.modalities.audio:AudioModality",
        "video": "mmtune.modalities.video:VideoModality",
        "document": "mmtune.modalities.document:DocumentModality",
        "embedding": "mmtune.modalities.embedding:EmbeddingModality",
        "imagebind": "mmtune.modalities.imagebind:ImageBindModality",
        "audio_whisper": "mmtune.modalities.whisper:PublishedWhisper",
        "audio_clap": "mmtune.modalities.clap:PublishedClap",
        "video_xclip": "mmtune.modalities.xclip:PublishedXClip",
        "document_gte": "mmtune.modalities.document:PublishedGTE",
    },
)
