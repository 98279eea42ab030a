"""Native LLaVA and LLaVA-NeXT of transformers: names, configs and processor that load without mmtune."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken
from torch import Tensor
from transformers import LlavaNextProcessor, LlavaProcessor, PreTrainedTokenizerBase
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from mmtune.convert.damage import read_json
from mmtune.convert.formats import HF
from mmtune.convert.layout import Layout, renamed
from mmtune.convert.plan import Part, Plan, change
from mmtune.convert.staging import Stage
from mmtune.convert.tokenizer_files import portable_settings
from mmtune.convert.writer import Entry, write_json
from mmtune.core.errors import NotPossibleError
from mmtune.methods.base import Frame
from mmtune.model.processing import load_tokenizer
from mmtune.model.templates import CHAT, TEMPLATES, TwoSeparators
from mmtune.model.tokenization import PieceTokenizer

IMAGE_TOKEN = "<image>"
_ROUND = 64  # rows of the vocabulary, for tensor-parallel servers
_TOWERS = {"clip_vision_model": 1, "siglip_vision_model": 0}  # positions that are no patch
_LAYERS, _NEWLINE = "projector.image.layers.", "line_break.image"
_NATIVE = "multi_modal_projector.linear_"
_NO_FRAME = Frame("", "")
_EMBEDDINGS = ("model.embed_tokens.weight", "lm_head.weight")


def arrange_llava(plan: Plan, stage: Stage) -> Layout:
    """The layout of ``LlavaForConditionalGeneration``, or of LLaVA-NeXT when pictures are cut into tiles.

    Raises:
        NotPossibleError: An encoder, projector or arrangement of tiles that these classes do not have.
    """
    language, tower, method = plan.part("language_model"), plan.part("encoders/image"), plan.part("")
    if language is None or tower is None or method is None or len(plan.encoders) != 1:
        raise _no_class("its parts are not one language model, one vision tower and one projector")
    settings = stage.model.modalities["image"].settings.model_dump(mode="json")
    vision = tower.documents["config.json"]
    if vision.get("model_type") not in _TOWERS:
        raise _no_class(f"it has no LLaVA with a '{vision.get('model_type')}' tower")
    if settings["aspect"] == "anyres" and settings["merge"] != "spatial_unpad":
        raise _no_class(f"LLaVA-NeXT lays tiles out as 'spatial_unpad', this model as '{settings['merge']}'")
    if settings["aspect"] not in ("square", "pad", "anyres") or settings["select"] not in ("patch", "cls_patch"):
        raise _no_class(f"it prepares no pictures as '{settings['aspect']}' with '{settings['select']}'")
    tokenizer = load_tokenizer(stage.folder)
    image_id, rows = _image_token(tokenizer, language)
    config = _config(plan, settings, language, tower, image_id, rows)
    entries = (
        *(_grown(entry, rows) for entry in renamed(language.entries, lambda name: f"language_model.{name}")),
        *renamed(tower.entries, lambda name: f"vision_tower.vision_model.{name.removeprefix('vision_model.')}"),
        *_projector(method.entries, str(plan.settings.get("projector", "mlp2x_gelu")), stage),
    )
    documents: dict[str, Mapping[str, Any]] = {"config.json": config}
    if "generation_config.json" in language.documents:
        documents["generation_config.json"] = language.documents["generation_config.json"]
    part = Part("", "model", tuple(entries), documents)
    frame = stage.processor.frame or _NO_FRAME
    template = _chat_template(plan.template, tokenizer, frame)
    notes = [] if template else [f"Template '{plan.template}' has no form as a chat template; prompts are raw."]
    if not _same_ids(tokenizer, image_id, frame):
        notes.append("transformers splits text behind a picture into other tokens than LLaVA's code does.")

    def finish(folder: Path) -> None:
        _write_processor(folder, tokenizer, settings, tower, template)

    return Layout((part,), "hf-llava", HF, finish, notes=tuple(notes))


def _same_ids(tokenizer: PreTrainedTokenizerBase, image_id: int, frame: Frame) -> bool:
    """Whether a prompt with the picture's token in it has the ids of its pieces, as LLaVA's code makes them."""
    pieces = PieceTokenizer(tokenizer)
    texts = (f"USER: {frame.before}", f"{frame.after}\nWhat is this? ASSISTANT:")
    first, second = ([token.id for token in pieces.tokens(text)] for text in texts)
    whole = tokenizer(IMAGE_TOKEN.join(texts))["input_ids"]
    return list(whole) == [*pieces.opening, *first, image_id, *second]


def _no_class(reason: str) -> NotPossibleError:
    return NotPossibleError(
        f"transformers has no class for this model: {reason}.", where=f"--to {HF}", fix="use --to mmtune"
    )


def _image_token(tokenizer: PreTrainedTokenizerBase, language: Part) -> tuple[int, int]:
    """The id of the picture's token, added behind all others, and the rows of the vocabulary with it."""
    rows = next(entry for entry in language.entries if entry.name == _EMBEDDINGS[0]).shape[0]
    if IMAGE_TOKEN not in tokenizer.get_vocab():
        tokenizer.add_tokens([AddedToken(IMAGE_TOKEN, special=True, normalized=False)])
    found = int(tokenizer.convert_tokens_to_ids(IMAGE_TOKEN))
    return found, rows if found < rows else -(-(found + 1) // _ROUND) * _ROUND


def _grown(entry: Entry, rows: int) -> Entry:
    """Embeddings and head with rows for new tokens: the mean of all others, whose logit is never the greatest."""
    inner = entry.name.removeprefix("language_model.")
    if inner not in _EMBEDDINGS or entry.shape[0] >= rows:
        return entry

    def read() -> Tensor:
        values = entry.read()
        grown = torch.empty(rows, values.shape[1], dtype=values.dtype)
        grown[: len(values)] = values
        grown[len(values) :] = values.mean(0, dtype=torch.float32).to(values.dtype)
        return grown

    return replace(entry, shape=(rows, entry.shape[1]), read=read)


def _projector(entries: tuple[Entry, ...], kind: str, stage: Stage) -> list[Entry]:
    """Two linear maps with an activation between; one map is followed by the identity."""
    found, dtype = [], entries[0].dtype if entries else torch.float32
    for entry in entries:
        if entry.name == _NEWLINE:
            found.append(replace(entry, name="image_newline"))
            continue
        number, name = entry.name.removeprefix(_LAYERS).split(".")
        if number not in ("0", "2"):
            raise _no_class(f"its projector has two layers, this one is '{kind}'")
        found.append(replace(entry, name=f"{_NATIVE}{1 + int(number) // 2}.{name}"))
    hidden, width = stage.model.host.hidden_size, stage.model.modalities["image"].width
    have = {entry.name for entry in found}
    for number, size in ((1, width), (2, hidden)):
        if f"{_NATIVE}{number}.weight" not in have:
            if size != hidden:
                raise _no_class(f"its projector maps {width} to {hidden}, this one is '{kind}'")
            found.append(change(f"{_NATIVE}{number}.weight", (hidden, size), dtype, lambda: torch.eye(hidden)))
            found.append(change(f"{_NATIVE}{number}.bias", (hidden,), dtype, lambda: torch.zeros(hidden)))
    return found


def _config(
    plan: Plan, settings: Mapping[str, Any], language: Part, tower: Part, image_id: int, rows: int
) -> dict[str, Any]:
    tiles, kind = settings["aspect"] == "anyres", str(plan.settings.get("projector", "mlp2x_gelu"))
    vision, text = dict(tower.documents["config.json"]), dict(language.documents["config.json"])
    text["vocab_size"] = rows
    side = int(vision["image_size"]) // int(vision["patch_size"])
    whole = settings["select"] == "cls_patch" or not _TOWERS[vision["model_type"]]
    config = {
        "architectures": ["LlavaNextForConditionalGeneration" if tiles else "LlavaForConditionalGeneration"],
        "model_type": "llava_next" if tiles else "llava",
        "text_config": text,
        "vision_config": vision,
        "image_token_index": image_id,
        "image_token_id": image_id,
        "image_seq_length": side * side + int(settings["select"] == "cls_patch"),
        "projector_hidden_act": "gelu" if kind == "mlp2x_gelu" else "linear",
        "multimodal_projector_bias": True,
        "vision_feature_layer": settings["layer"],
        "vision_feature_select_strategy": "full" if whole else "default",
        "tie_word_embeddings": bool(text.get("tie_word_embeddings", False)),
        "dtype": str(plan.dtype).removeprefix("torch."),
        "torch_dtype": str(plan.dtype).removeprefix("torch."),
    }
    if tiles:
        config["image_grid_pinpoints"] = [[height, width] for width, height in settings["pinpoints"]]
    return config


def _write_processor(
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    settings: Mapping[str, Any],
    tower: Part,
    template: str | None,
) -> None:
    vision, stated = tower.documents["config.json"], dict(tower.documents["preprocessor_config.json"])
    tiles = settings["aspect"] == "anyres"
    kept = {key: value for key, value in stated.items() if key not in ("image_processor_type", "processor_class")}
    if str(stated.get("image_processor_type")).startswith("Siglip"):  # which never crops, and need not say so
        kept = {"do_center_crop": False, **{key: value for key, value in kept.items() if value is not None}}
    kept |= {"do_pad": settings["aspect"] != "square"}
    if tiles:
        kept["image_grid_pinpoints"] = [[height, width] for width, height in settings["pinpoints"]]
    image_processor = (LlavaNextImageProcessorPil if tiles else LlavaImageProcessorPil)(**kept)
    extra = _TOWERS[vision["model_type"]]
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    tokenizer.padding_side = "left"
    processor = (LlavaNextProcessor if tiles else LlavaProcessor)(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=int(vision["patch_size"]),
        vision_feature_select_strategy="default" if extra and settings["select"] == "patch" else "full",
        num_additional_image_tokens=extra,
        image_token=IMAGE_TOKEN,
        chat_template=template,
    )
    processor.save_pretrained(str(folder))
    path = folder / "tokenizer_config.json"
    write_json(path, portable_settings(read_json(path)))
    name = "LlavaNext" if tiles else "Llava"
    values = {**kept, "image_processor_type": f"{name}ImageProcessor", "processor_class": f"{name}Processor"}
    write_json(folder / "preprocessor_config.json", values)  # where older versions and servers look


def _chat_template(name: str, tokenizer: PreTrainedTokenizerBase, frame: Frame) -> str | None:
    """The prompt format as a chat template over content parts, each picture before the text of its turn."""
    if name == CHAT and frame == _NO_FRAME:
        return tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else None
    form = TEMPLATES.get(name)
    if not isinstance(form, TwoSeparators):
        return None
    shown = repr(f"{frame.before}{IMAGE_TOKEN}{frame.after}\n")
    user, assistant = form.roles
    first, second = form.separators
    system = f"{form.system}{first}" if form.system else ""
    return (
        "{%- macro text(content) -%}{%- if content is string -%}{{ content }}{%- else -%}"
        f"{{%- for part in content if part['type'] == 'image' -%}}{{{{ {shown} }}}}{{%- endfor -%}}"
        "{%- for part in content if part['type'] == 'text' -%}{{ part['text'] }}{%- endfor -%}"
        "{%- endif -%}{%- endmacro -%}"
        "{%- if messages[0]['role'] == 'system' -%}"
        f"{{{{ text(messages[0]['content']) + {first!r} }}}}{{%- set turns = messages[1:] -%}}"
        f"{{%- else -%}}{{{{ {system!r} }}}}{{%- set turns = messages -%}}{{%- endif -%}}"
        "{%- for turn in turns -%}{%- if turn['role'] == 'user' -%}"
        f"{{{{ '{user}: ' + text(turn['content']) + {first!r} }}}}"
        f"{{%- else -%}}{{{{ '{assistant}: ' + text(turn['content']) + {second!r} }}}}{{%- endif -%}}{{%- endfor -%}}"
        f"{{%- if add_generation_prompt -%}}{{{{ '{assistant}:' }}}}{{%- endif -%}}"
    )
