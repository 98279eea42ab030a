"""Floor 3: one file a method. Third parties add theirs by the entry-point group ``mmtune.methods``."""

from mmtune.core.registry import Registry

METHODS = Registry(
    "method",
    "mmtune.methods",
    {
        "lavin": "mmtune.methods.lavin:LaVIN",
        "llava": "mmtune.methods.llava:LLaVA",
        "multi_token": "mmtune.methods.multi_token:MultiToken",
        "vlora": "mmtune.methods.vlora:VLoRA",
    },
)
