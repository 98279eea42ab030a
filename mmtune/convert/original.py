"""What the readers of the LLaVA family share: base, tower, tokenizer and picture settings of a checkpoint."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmtune.convert.bases import open_language, open_tower
from mmtune.convert.delta import add_delta, is_delta, looks_like_delta
from mmtune.convert.language import Language, dtype_name, read_language
from mmtune.convert.locate import Place, locate
from mmtune.convert.plan import OriginalFiles, Request
from mmtune.convert.surroundings import (
    PROJECTOR,
    PROJECTOR_STEMS,
    beside,
    check_base,
    find_base,
    find_config,
    find_projector,
)
from mmtune.convert.tensors import Store, StoredTensor, not_understood
from mmtune.convert.tokenizer_files import NAMES as TOKENIZER_FILES
from mmtune.convert.tokenizer_files import find_tokenizer
from mmtune.convert.vision import Tower
from mmtune.core.errors import CheckpointError, NotPossibleError, UsageError
from mmtune.model.templates import named_template

_DEFAULT_TEMPLATE = "vicuna_v1"
_TEMPLATE = "template"  # --set key
SETTINGS = ("vision.num_attention_heads", "vision.hidden_act", PROJECTOR, _TEMPLATE)
START_END = "mm_use_im_start_end"  # key of config.json
FRAME = ("<im_start>", "<im_end>")  # around each picture, when that key says so
_PATCH = "<im_patch>"  # stands before them in the vocabulary, in no prompt
_PROJECTOR = re.compile(r"^(?:base_model\.model\.)?(?:model\.)?mm_projector\.(.+)$")
_NEWLINE = re.compile(r"^(?:base_model\.model\.)?model\.image_newline$")
_TOWER = re.compile(r"^(?:base_model\.model\.)?model\.vision_tower\.")
_OTHER_FILES = ("generation_config.json", "adapter_config.json")


@dataclass(frozen=True, slots=True)
class Original:
    """An opened checkpoint of the LLaVA family, whichever of its forms it has."""

    folder: Path
    form: str
    config: Mapping[str, Any]
    language: Language
    base: Place | None  # None: the language model is in the checkpoint itself
    tower: Tower
    projector: Store  # by the name behind "mm_projector."
    newline: StoredTensor | None  # model.image_newline
    tokenizer: Path
    surplus: Store  # tensors beside the language model in the same files
    told: tuple[str, ...] = ()  # what the user should know of how it was opened
    template: str = _DEFAULT_TEMPLATE  # conversation format

    @property
    def is_framed(self) -> bool:
        """Whether start and end tokens stand around pictures."""
        return bool(self.config.get(START_END))

    @property
    def control_tokens(self) -> tuple[str, ...]:
        """What the original's loader adds to a tokenizer whose files lack it."""
        patch = (_PATCH,) if self.config.get("mm_use_im_patch_token", True) else ()
        return (*patch, *FRAME) if self.is_framed else ()

    @property
    def is_copied(self) -> bool:
        """Whether the written folder holds the language model."""
        return self.base is None or self.base.hub_id is None

    @property
    def base_entry(self) -> Mapping[str, Any]:
        """``source`` and ``revision`` of the language model: hub ids stay references."""
        if self.base is not None and self.base.hub_id is not None:  # not copied
            return {"source": self.base.hub_id, "revision": self.base.revision, "probe": None}
        return {"source": "language_model", "revision": None, "probe": None}

    @property
    def origins(self) -> Mapping[str, Path]:
        """Where the tower was found."""
        return {"image": self.tower.place.folder if self.tower.place is not None else self.folder}

    @property
    def sources(self) -> tuple[Path, ...]:
        """Every folder that is read."""
        tower = [self.tower.place.folder] if self.tower.place is not None else []
        return tuple(dict.fromkeys((self.folder, self.language.folder, *tower, self.tokenizer)))

    @property
    def max_length(self) -> int | None:
        """Longest sequence of the original training."""
        value = self.config.get("tokenizer_model_max_length")
        return value if isinstance(value, int) else None


def read_original(folder: Path, form: str, request: Request) -> Original:
    """Open everything a checkpoint consists of.

    Raises:
        CheckpointError: Something is missing, unknown, damaged or does not fit.
        NotPossibleError: An adapter with start and end tokens, several scales, or an unknown decoder.
        UsageError: An unknown ``--set`` key or template.
    """
    _check_settings(request)
    config = find_config(folder, request)
    _refuse_variants(config, folder, form)
    base: Place | None = None
    if form == "full":
        language, told = _read_whole(folder, request)
        extra, surplus = beside(folder, PROJECTOR_STEMS[:1]), language.left
    else:
        base = find_base(folder, config, request)
        language, surplus = open_language(base.folder), {}
        extra, told = find_projector(folder, request)
        check_base(config, language, folder)
    projector, newline = _projector({**extra, **surplus})
    tokenizer = _tokenizer(folder, language)
    tower = open_tower(folder, config, surplus, request)
    template = named_template(str(request.settings.get(_TEMPLATE, _DEFAULT_TEMPLATE))).name
    if config.get(START_END) and _TEMPLATE not in request.settings:
        told += (f"Prompts are written as '{template}'; for LLaVA's v0 releases add --set template=llava_v0.",)
    return Original(folder, form, config, language, base, tower, projector, newline, tokenizer, surplus, told, template)


def _read_whole(folder: Path, request: Request) -> tuple[Language, tuple[str, ...]]:
    """The language model inside a checkpoint; when it is a difference from ``--llm``, their sum."""
    language = read_language(folder)
    if request.llm is None:
        note = (
            "The weights are as small as a difference from a base; if this is a delta release, add its base with --llm."
        )
        return language, (note,) if looks_like_delta(language) else ()
    base = open_language(locate(request.llm, what="base language model", option="--llm").folder)
    if not is_delta(language, base):
        return language, ("--llm was not needed: the checkpoint holds its language model.",)
    return add_delta(language, base), (f"The checkpoint is a difference; {request.llm} was added to it.",)


def _check_settings(request: Request) -> None:
    if request.encoders:
        raise UsageError(
            f"This format has no encoder '{next(iter(request.encoders))}'.",
            where="--encoder",
            fix="use --encoder image=PATH or --vision PATH",
        )
    request.check_settings(SETTINGS)


def _refuse_variants(config: Mapping[str, Any], folder: Path, form: str) -> None:
    where = str(folder / "config.json")
    if config.get(START_END) and form != "full":
        raise NotPossibleError(
            f"An adapter with start and end tokens ({START_END}) changes the embeddings of its base, which is not read "
            "by this version.",
            where=where,
            fix="use the full checkpoint",
        )
    if config.get("s2"):
        raise NotPossibleError("Towers of several scales (s2) are not read by this version.", where=where)
    if config.get("mm_resampler_type") not in (None, "", "none"):
        raise NotPossibleError("Checkpoints with a resampler are not read by this version.", where=where)


def _projector(store: Store) -> tuple[dict[str, StoredTensor], StoredTensor | None]:
    projector: dict[str, StoredTensor] = {}
    newline: StoredTensor | None = None
    unknown = []
    for name, tensor in store.items():
        if match := _PROJECTOR.match(name):
            projector[match.group(1)] = tensor
        elif _NEWLINE.match(name):
            newline = tensor
        elif not _TOWER.match(name):
            unknown.append(name)
    if unknown:
        raise not_understood(unknown, store, form="LLaVA-like checkpoint")
    return projector, newline


def _tokenizer(folder: Path, language: Language) -> Path:
    """Adapters come without a tokenizer; their base's is the one they were trained with."""
    for candidate in (folder, language.tokenizer or language.folder):
        if any((candidate / name).is_file() for name in TOKENIZER_FILES[:2]):
            return candidate
    if (beside := find_tokenizer(language.folder)) is not None:  # the language model inside an mmtune folder
        return beside
    raise CheckpointError(
        f"No tokenizer: neither the checkpoint nor its base has {' or '.join(TOKENIZER_FILES[:2])}.",
        where=str(folder),
        fix="copy the tokenizer files beside the checkpoint",
    )


def original_files(original: Original, format: str) -> OriginalFiles:
    """What is kept of a checkpoint, so that the same one can be written again."""
    names = (*TOKENIZER_FILES, *_OTHER_FILES)
    paths = {name: original.folder / name for name in names if (original.folder / name).is_file()}
    inside = {name: tensor for name, tensor in original.surplus.items() if _TOWER.match(name)}
    positions = {name: tensor for name, tensor in inside.items() if name.endswith("position_ids")}
    weights = next((tensor for name, tensor in inside.items() if name not in positions), None)
    prefix = next((one.name.removesuffix(f"mm_projector.{end}") for end, one in original.projector.items()), "model.")
    facts = {
        "prefix": prefix,  # before "mm_projector."
        "tower_inside": dtype_name(weights.dtype) if weights is not None else None,
        "computed": {name: dtype_name(one.dtype) for name, one in {**original.language.computed, **positions}.items()},
    }
    return OriginalFiles(format, original.form, original.config, paths, facts)


def image_settings(original: Original) -> dict[str, Any]:
    """The picture settings of the image modality.

    Raises:
        CheckpointError: A value that the originals do not know.
        NotPossibleError: A preparation of pictures that is not available.
    """
    config = original.config
    where = str(original.folder / "config.json")
    aspect = config.get("image_aspect_ratio") or "square"
    merge = config.get("mm_patch_merge_type") or "flat"
    select = config.get("mm_vision_select_feature") or "patch"
    layer = config.get("mm_vision_select_layer", -2)
    if aspect not in ("square", "pad", "anyres"):
        raise NotPossibleError(f"image_aspect_ratio '{aspect}' is not read by this version.", where=where)
    if select not in ("patch", "cls_patch"):
        raise CheckpointError(f"mm_vision_select_feature is '{select}'.", where=where, fix="write patch or cls_patch")
    if not isinstance(layer, int):
        raise CheckpointError(
            f"mm_vision_select_layer is {layer!r}, no number.", where=where, fix="copy config.json again"
        )
    settings: dict[str, Any] = {"layer": layer, "select": select, "aspect": aspect}
    if aspect == "anyres":
        settings |= {"pinpoints": _pinpoints(config.get("image_grid_pinpoints"), where), "merge": merge}
    return settings


def _pinpoints(value: Any, where: str) -> list[list[int]]:
    try:
        found = ast.literal_eval(value) if isinstance(value, str) else value
        return [[int(width), int(height)] for width, height in found]
    except (ValueError, TypeError, SyntaxError) as error:
        raise CheckpointError(
            f"image_grid_pinpoints {value!r} are no list of sizes.",
            where=where,
            fix="copy the original config.json again",
        ) from error


def notes(original: Original, image: Mapping[str, Any]) -> tuple[str, ...]:
    """What was left out or replaced and why, for the user."""
    found = list(original.told)
    if original.newline is not None and image.get("merge") != "spatial_unpad":
        found.append("model.image_newline was left out: this checkpoint's picture settings never use it.")
    if original.tower.inside and original.tower.place is None:
        found.append("The vision tower was taken from inside the checkpoint; the one it names was not found.")
    stored = dtype_name(original.language.dtype)
    if original.config.get("torch_dtype") not in (None, stored):
        found.append(f"The tensors are stored as {stored}, not as config.json says.")
    return tuple(found)
