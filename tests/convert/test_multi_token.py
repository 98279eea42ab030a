"""multi_token checkpoints in all their forms become models that answer the same, and go back bit by bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import mmtune
from mmtune.convert import opening, verify
from mmtune.convert.cases import Case
from mmtune.convert.layout import Layout
from mmtune.convert.run import convert
from mmtune.core.errors import CheckpointError, MMTuneError, NotPossibleError, ResourceError, UsageError
from tests.convert.originals_multi_token import edit_lora, edit_state, make, same_tensors

ZEPHYR = "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + eos_token }}{% endfor %}"


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Open written folders here: a process of its own for each would take seconds and find nothing more."""

    def evaluate(folder: Path, layout: Layout, cases: list[Case]) -> Any:
        return opening.evaluate(folder, layout.opened_as, layout.options, list(cases))

    monkeypatch.setattr(verify, "evaluate_afresh", evaluate)


VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "pool, .bin, three layers": ({"vision_clip": (3, 10)}, {"pickled": True}),
    "one layer, 16 bits": ({"vision_clip": (1, None)}, {"dtype": torch.bfloat16}),
    "first stage": ({"vision_clip": (2, None)}, {"trained": False}),
    "projector alone": ({"vision_clip": (2, 4)}, {"lora": False, "prefix": "model."}),
    "documents times eight": ({"document_gte": (2, 64)}, {"family": "llama"}),
    "speech and pictures": ({"audio_whisper": (2, 3), "vision_clip": (2, None)}, {}),
    "sounds, videos, qwen2": ({"audio_clap": (2, 5), "video_xclip": (2, 2)}, {"family": "qwen2"}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_form_answers_as_its_source_and_goes_back(variant: str, tmp_path: Path) -> None:
    projectors, options = VARIANTS[variant]
    asked = make(tmp_path, projectors, **options)
    source, output = tmp_path / "checkpoint", tmp_path / "out"
    result = convert(source, output, **asked)
    assert result["from"] == "multi-token"
    assert result["verified"]["greedy_equal"]
    assert result["form"] == ("lora" if options.get("lora", True) else "projector")
    _, processor = mmtune.load(output, device="cpu")
    assert processor.template == "multi_token"
    widths = {name: count for name, (_, count) in projectors.items() if count is not None}
    for name, count in widths.items():
        assert processor.slots["image" if name == "vision_clip" else name] == f"{count} * positions"
    back = convert(source, tmp_path / "back", to="multi-token", **asked)
    assert back["verified"]["greedy_equal"]
    files = [file for file in ("adapter_model.bin", "adapter_model.safetensors") if (source / file).is_file()]
    assert same_tensors(source, tmp_path / "back", [*files, "non_lora_trainables.bin"])
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == json.loads(
        (source / "config.json").read_text()
    )


def test_the_lora_folds_into_the_base(tmp_path: Path) -> None:
    asked = make(tmp_path, {"vision_clip": (2, None)})
    result = convert(tmp_path / "checkpoint", tmp_path / "out", to="merged", **asked)
    assert result["verified"]["greedy_equal"]
    assert not (tmp_path / "out" / "lora").exists()


def test_pictures_are_padded_when_told(tmp_path: Path) -> None:
    asked = make(tmp_path, {"vision_clip": (2, None)})
    aspects = {}
    for padded in (False, True):
        output = tmp_path / f"out{padded}"
        convert(tmp_path / "checkpoint", output, settings={"vision_clip.pad_to_square": padded}, verify=False, **asked)
        aspects[padded] = json.loads((output / "config.json").read_text())["encoders"]["image"]["settings"]["aspect"]
    assert aspects == {False: "square", True: "pad"}
    settings = {"vision_clip.pad_to_square": True}
    back = convert(tmp_path / "checkpoint", tmp_path / "back", to="multi-token", settings=settings, **asked)
    assert any("pad_to_square=true" in note for note in back["notes"])


def test_a_base_without_brackets_keeps_its_chat_template(tmp_path: Path) -> None:
    asked = make(tmp_path, {"vision_clip": (2, None)}, chat_template=ZEPHYR)
    convert(tmp_path / "checkpoint", tmp_path / "out", verify=False, **asked)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["template"] == "chat"


def test_a_full_training_holds_its_language_model(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    asked = make(tmp_path, {"vision_clip": (2, None)}, lora=False, prefix="model.")
    language = load_file(tmp_path / "base" / "model.safetensors")
    changed = {name: tensor + 0.01 for name, tensor in language.items()}
    edit_state(tmp_path / "checkpoint", lambda state: state.update(changed))
    result = convert(tmp_path / "checkpoint", tmp_path / "out", **asked)
    assert result["form"] == "full"
    assert result["verified"]["greedy_equal"]
    written = load_file(tmp_path / "out" / "language_model" / "model.safetensors")
    assert all(torch.equal(written[name], tensor) for name, tensor in changed.items())
    convert(tmp_path / "checkpoint", tmp_path / "back", to="multi-token", verify=False, **asked)
    assert same_tensors(tmp_path / "checkpoint", tmp_path / "back", ["non_lora_trainables.bin"])


NAME = "base_model.model.model.vision_clip_lmm_projector."
LORA = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def config(**values: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return edit


def state(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    return lambda folder: edit_state(folder, change)


def lora(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    return lambda folder: edit_lora(folder, change)


REFUSED: dict[str, tuple[Callable[[Path], None], type[MMTuneError], str]] = {
    "missing": (state(lambda s: s.pop(f"{NAME}0.bias")), CheckpointError, "0.bias' is missing"),
    "missing layer": (state(lambda s: s.pop(f"{NAME}2.weight")), CheckpointError, "2.weight' is missing"),
    "unknown": (state(lambda s: s.update({f"{NAME}norm.weight": torch.ones(3)})), CheckpointError, "norm.weight"),
    "odd": (state(lambda s: s.update({f"{NAME}1.weight": torch.ones(3)})), CheckpointError, "1.weight"),
    "mixed": (state(lambda s: s.update({f"{NAME}mlps.0.0.bias": torch.ones(3)})), CheckpointError, "several MLPs"),
    "shape": (state(lambda s: s.update({f"{NAME}0.weight": torch.ones(3, 3)})), CheckpointError, "has shape"),
    "not finite": (state(lambda s: s[f"{NAME}0.bias"].fill_(float("nan"))), CheckpointError, "not finite"),
    "empty": (state(lambda s: s.clear()), CheckpointError, "projector's tensors are missing"),
    "another projector": (
        state(lambda s: s.update({NAME.replace("vision_clip", "imagebind") + "0.bias": torch.ones(3)})),
        CheckpointError, "imagebind",
    ),
    "not listed": (config(modalities=["vision_clip", "document_gte"]), CheckpointError, "'document_gte'"),
    "listed twice": (config(modalities=["vision_clip", "vision_clip"]), CheckpointError, "twice"),
    "no list": (config(modalities="vision_clip"), CheckpointError, "no list"),
    "stranger": (config(modalities=["smell"]), NotPossibleError, "'smell'"),
    "other base": (config(hidden_size=64), CheckpointError, "hidden_size"),
    "half a pair": (lora(lambda s: s.pop(LORA)), CheckpointError, "lora_A.weight' is missing"),
    "lora shape": (lora(lambda s: s.update({LORA: torch.ones(4, 7)})), CheckpointError, "has shape"),
    "truncated": (
        lambda folder: (folder / "non_lora_trainables.bin").write_bytes(b"PK\x03\x04 cut"), CheckpointError, "read",
    ),
    "no config of the lora": (lambda folder: (folder / "adapter_config.json").unlink(), CheckpointError, "adapter_con"),
    "no weights of the lora": (
        lambda folder: (folder / "adapter_model.safetensors").unlink(), CheckpointError, "LoRA's weights are missing",
    ),
    "no projector": (lambda folder: (folder / "non_lora_trainables.bin").unlink(), CheckpointError, "No weights"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_damage_is_told_by_file_and_tensor(case: str, tmp_path: Path) -> None:
    asked = make(tmp_path, {"vision_clip": (2, None)})
    damage, kind, words = REFUSED[case]
    damage(tmp_path / "checkpoint")
    with pytest.raises(kind, match=words) as error:
        convert(tmp_path / "checkpoint", tmp_path / "out", from_format="multi-token", verify=False, **asked)
    assert error.value.where
    assert not (tmp_path / "out").exists()


def test_options_that_do_not_belong_are_refused(tmp_path: Path) -> None:
    asked = make(tmp_path, {"vision_clip": (2, None)})
    with pytest.raises(UsageError, match="no encoder 'audio_whisper'"):
        convert(tmp_path / "checkpoint", tmp_path / "out", encoders={"audio_whisper": "x"}, verify=False)
    for settings in ({"vision_clip.pad": True}, {"vision_clip.pad_to_square": "maybe"}):
        with pytest.raises(UsageError, match="vision_clip"):
            convert(tmp_path / "checkpoint", tmp_path / "out", settings=settings, verify=False, **asked)
    missing = {**asked, "encoders": {"vision_clip": str(tmp_path / "nowhere")}}
    with pytest.raises((CheckpointError, ResourceError), match="nowhere"):
        convert(tmp_path / "checkpoint", tmp_path / "out", verify=False, **missing)


def test_only_what_the_published_code_knows_is_written_for_it(tmp_path: Path) -> None:
    asked = make(tmp_path, {"vision_clip": (2, None)})
    with pytest.raises(NotPossibleError, match="cannot be written as 'llava'"):
        convert(tmp_path / "checkpoint", tmp_path / "out", to="llava", verify=False, **asked)
