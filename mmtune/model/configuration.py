"""The configuration of a multimodal model: what it stands on and how perception reaches it."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig


class MMTuneConfig(PreTrainedConfig):
    """Everything ``config.json`` says of a checkpoint.

    Args:
        method: Registered name of the method.
        settings: The method's settings.
        base: ``source`` (hub id, ``nano``, or a path relative to the checkpoint), ``revision`` and ``probe``, a few
            weights by which another base is recognised.
        encoders: Modality name to ``source``, ``revision`` and ``settings``.
        template: Name of the prompt template.
    """

    model_type = "mmtune"

    def __init__(
        self,
        method: str = "llava",
        settings: dict[str, Any] | None = None,
        base: dict[str, Any] | None = None,
        encoders: dict[str, dict[str, Any]] | None = None,
        template: str = "vicuna_v1",
        **kwargs: Any,
    ) -> None:
        self.method = method
        self.settings = dict(settings or {})
        self.base = dict(base or {"source": "nano", "revision": None, "probe": None})
        self.encoders = {name: dict(encoder) for name, encoder in (encoders or {}).items()}
        self.template = template
        super().__init__(**kwargs)


AutoConfig.register(MMTuneConfig.model_type, MMTuneConfig, exist_ok=True)
