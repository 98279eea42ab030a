"""What a LLaVA-like checkpoint needs from elsewhere: its base, and for a LoRA of a run under way its projector."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmtune.convert.damage import read_json
from mmtune.convert.language import Language, plain_config
from mmtune.convert.locate import Place, locate
from mmtune.convert.plan import Request
from mmtune.convert.tensors import StoredTensor, has_weights, open_file, open_folder
from mmtune.core.errors import CheckpointError

PROJECTOR = "projector"  # --set key
PROJECTOR_STEMS = ("mm_projector", "non_lora_trainables")
# What the agreement of base and checkpoint hangs on.
_SAME_IN_BASE = ("hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads", "num_key_value_heads")


def find_config(folder: Path, request: Request) -> dict[str, Any]:
    """``config.json`` of a checkpoint; a LoRA saved during training has none, so that its run's or projector's counts.

    Raises:
        CheckpointError: None of them, or a damaged one.
    """
    given = _given_projector(request)
    places = [folder, folder.resolve().parent, *([given if given.is_dir() else given.parent] if given else [])]
    if (folder / "adapter_config.json").is_file():
        found = next((place for place in places if (place / "config.json").is_file()), folder)
        return read_json(found / "config.json")
    return read_json(folder / "config.json")


def find_projector(folder: Path, request: Request) -> tuple[dict[str, StoredTensor], tuple[str, ...]]:
    """The tensors beside an adapter, and a note when they come from elsewhere.

    Raises:
        CheckpointError: What ``--set projector=…`` names is no projector.
    """
    given = _given_projector(request)
    if given is not None:
        tensors = open_file(given) if given.is_file() else open_folder(given, PROJECTOR_STEMS)
        return tensors, (f"The projector is that of {given}.",)
    found = beside(folder, PROJECTOR_STEMS)
    if found or not (folder / "adapter_config.json").is_file():
        return found, ()
    parent = folder.resolve().parent
    note = "This step's LoRA was saved without its projector; that of the finished run stands in for it."
    return beside(parent, PROJECTOR_STEMS[1:]), (note,)


def _given_projector(request: Request) -> Path | None:
    given = request.settings.get(PROJECTOR)
    if given is None:
        return None
    path = Path(str(given)).expanduser()
    if not path.exists():
        raise CheckpointError(f"The projector '{given}' does not exist.", where="--set projector", fix="check the path")
    return path


def beside(folder: Path, stems: tuple[str, ...]) -> dict[str, StoredTensor]:
    """The tensors that lie beside the main weights; one of the files at most counts."""
    for stem in stems:
        if has_weights(folder, (stem,)):
            return open_folder(folder, (stem,))
    return {}


def find_base(folder: Path, config: Mapping[str, Any], request: Request) -> Place:
    """The language model that an adapter stands on: ``--llm``, else the one it names.

    Raises:
        CheckpointError: None is named, or it is not there.
        ResourceError: It is on the hub only, and the hub is out of reach.
    """
    named = request.llm or _named_base(folder, config)
    if named is None:
        raise CheckpointError(
            "This checkpoint holds no language model and names none.", where=str(folder), fix="give its base with --llm"
        )
    near = folder if request.llm is None else None
    found = locate(named, beside=near, what="base language model", option="--llm")
    return Place(found.folder) if request.whole else found


def _named_base(folder: Path, config: Mapping[str, Any]) -> str | None:
    path = folder / "adapter_config.json"
    names = [read_json(path).get("base_model_name_or_path")] if path.is_file() else []
    return next((str(name) for name in (*names, config.get("_name_or_path")) if name), None)


def check_base(config: Mapping[str, Any], language: Language, folder: Path) -> None:
    """Refuse a base of other sizes: a checkpoint's config repeats that of the base it was trained on.

    Raises:
        CheckpointError: Names the size.
    """
    expected = plain_config(config, folder)
    for key in _SAME_IN_BASE:
        if key in expected and key in language.config and expected[key] != language.config[key]:
            raise CheckpointError(
                f"The base has {key} {language.config[key]}, the checkpoint was trained on one with {expected[key]}.",
                where=str(language.folder),
                fix="give the right base with --llm",
            )
