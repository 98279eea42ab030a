"""How lmms-eval finds mmtune: the payload of the entry point ``lmms_eval.models``.

Install the extra with the tested torch held in place, since lmms-eval leaves torchvision open and would replace it::

    pip install "mmtune[lmms-eval]" "torchvision==0.28.*"
    python -m lmms_eval --model mmtune --model_args pretrained=runs/x/model --tasks mme
"""

from __future__ import annotations

from typing import Any

MODEL_ID = "mmtune"
CLASS_PATH = "mmtune.evaluation.lmms_model.MMTuneForLMMs"


def manifests() -> Any:
    """The manifest of the one model class; lmms-eval calls this when it lists its models.

    Raises:
        MissingExtraError: lmms-eval is not installed.
    """
    try:
        from lmms_eval.models.registry_v2 import ModelManifest
    except ImportError as error:
        from mmtune.core.errors import MissingExtraError

        raise MissingExtraError("Running inside lmms-eval", "lmms-eval") from error
    return ModelManifest(model_id=MODEL_ID, simple_class_path=CLASS_PATH)
