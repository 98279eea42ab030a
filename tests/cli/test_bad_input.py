"""Bad input: each fault gets its exit code and a message with what, where and fix; nothing is lost, no traceback."""

from __future__ import annotations

import json
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Outcome, Run

TRAIN = ("finetune", "--method", "llava", "--max-steps", 1, "--device", "cpu")


def expect(found: Outcome, code: int, *words: str, where: str | None = None) -> None:
    """Check an error that was asked for as JSON."""
    assert found.code == code, found.err
    assert found.error["fix"], "an error without a way out"
    for word in words:
        assert word in found.error["message"] + str(found.error["fix"]), found.error
    if where is not None:
        assert where in str(found.error["where"]), found.error
    assert "Traceback" not in found.err
    assert not found.err or found.error["message"].splitlines()[0][:40] in found.err


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words", "where"),
    [
        (["--method", "vlroa"], "Did you mean 'vlora'?", "--method"),
        (["--preset", "vlora-7b-finetun"], "Did you mean 'vlora-7b-finetune'?", "--preset"),
        (["--method", "vlora", "--set", "train.batchsize=3"], "Did you mean 'batch_size'?", "--set train.batchsize"),
        (["--method", "vlora", "--set", "trian.seed=3"], "Did you mean 'train'?", "trian"),
        (["--method", "vlora", "--set", "train.seed"], "no key=value", "--set"),
        (["--method", "vlora", "--set", "train.seed=[1"], "", "--set train.seed"),
        (["--method", "vlora", "--set", "model.settings.rnak=3"], "Did you mean 'rank'?", "rnak"),
        (["--method", "vlora", "--epochs", "-1"], "", "--epochs"),
        (["gone.yaml"], "", "gone.yaml"),
        ([], "No method", "--method"),
    ],
)
def test_training_options_that_cannot_be(mmtune: Run, arguments: list[str], words: str, where: str) -> None:
    for verb in ("finetune", "pretrain"):
        expect(mmtune(verb, *arguments, "--json"), 2, words, where=where)
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("text", "words", "where"),
    [
        ("method: vlora\ntrain:\n  sead: 3\n", "Did you mean 'seed'?", "r.yaml:3"),
        ("method: vlora\ntrain: {seed: [1\n", "", "r.yaml"),
        ("method: vlora\ntrain:\n  batch_size: many\n", "many", "r.yaml:3"),
        ("- a\n- b\n", "", "r.yaml"),
        ("schema: other/9\nmethod: vlora\n", "other/9", "r.yaml"),
        ("\x00\x01", "", "r.yaml"),
    ],
)
def test_recipes_that_cannot_be(mmtune: Run, text: str, words: str, where: str) -> None:
    Path("r.yaml").write_text(text)
    expect(mmtune("finetune", "r.yaml", "--json"), 2, words, where=where)


def test_unknown_names_of_other_verbs(mmtune: Run, data: Path) -> None:
    expect(mmtune("presets", "vlora-7b-finetun", "--json"), 2, "Did you mean 'vlora-7b-finetune'?")
    expect(mmtune("eval", "--benchmark", "qaa", "--data", data, "--json"), 2, "Did you mean 'qa'?")
    expect(mmtune("quickstart", "--method", "lava", "--json"), 2, "Did you mean 'llava'?")
    expect(mmtune("convert", "x", "--output", "y", "--encoder", "image", "--json"), 2, "NAME=VALUE", where="--encoder")
    expect(mmtune("prepare-data", data, "--output", "y", "--check-media", "decod", "--json"), 2, "'decode'")
    expect(mmtune("prepare-data", data, "--output", "y", "--format", "lava", "--json"), 2, "Did you mean 'llava'?")
    expect(mmtune("prepare-data", data, "--output", "y", "--split", "train=2", "--json"), 2, where="--split")
    expect(mmtune("prepare-data", data, "--output", "y", "--model", "./none", "--json"), 3, where="--model")
    for shard in ("0/4", "5/4", "a/b", "3"):
        expect(mmtune("prepare-data", data, "--output", "y", "--shard", shard, "--json"), 2, where="--shard")


# --- wishes that this version cannot fulfil --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["eval", "--benchmark", "qa", "--data", "x.json", "--rule", "2024"],
        ["eval", "--benchmark", "qa", "--data", "x.json", "--pandas-na"],
    ],
)
def test_options_that_are_not_possible_are_not_ignored(mmtune: Run, arguments: list[str]) -> None:
    expect(mmtune(*arguments, "--json"), 4)


def test_a_replay_needs_a_run_and_a_step(mmtune: Run) -> None:
    expect(mmtune("finetune", "--replay", "runs/x", "--step", "3", "--json"), 2, "no run", where="runs/x")
    expect(mmtune("finetune", "--replay", "runs/x", "--json"), 2)
    expect(mmtune("finetune", "--step", "3", "--json"), 2)


@pytest.mark.parametrize("kind", ["audio", "video", "document"])
def test_media_that_the_model_does_not_read(mmtune: Run, checkpoint: Path, tmp_path: Path, kind: str) -> None:
    (tmp_path / "media").write_text("x")
    found = mmtune("generate", "--model", checkpoint, f"--{kind}", tmp_path / "media", "--json")
    expect(found, 4, f"no modality '{kind}'", where=f"--{kind}")


# --- pictures ---------------------------------------------------------------------------------------------------------


def bomb(path: Path) -> None:
    """A PNG of a few bytes that claims a hundred gigapixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 400_000, 250_000, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )


def damage(name: str, picture: Path) -> Path:
    """A picture with one fault."""
    path = picture.with_name(f"{name}.png")
    whole = picture.read_bytes()
    if name == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif name == "empty":
        path.write_bytes(b"")
    elif name == "text":
        path.write_text("no picture")
    elif name == "huge":
        bomb(path)
    elif name == "folder":
        path.mkdir()
    return path


FAULTS = ("missing", "truncated", "empty", "text", "huge", "folder")


@pytest.mark.parametrize("fault", FAULTS)
def test_pictures_that_cannot_be_read(mmtune: Run, checkpoint: Path, picture: Path, fault: str) -> None:
    path = damage(fault, picture)
    found = mmtune("generate", "--model", checkpoint, "--image", path, "--json")
    expect(found, 3)
    assert str(path) in found.error["message"] + str(found.error["where"])


def rows_with(data: Path, **changes: Any) -> Path:
    """The good data with its second row changed."""
    rows = json.loads(data.read_text())
    rows[1].update(changes)
    data.write_text(json.dumps(rows))
    return data


@pytest.mark.parametrize("fault", FAULTS)
def test_data_with_bad_pictures(mmtune: Run, data: Path, picture: Path, fault: str) -> None:
    rows_with(data, image=damage(fault, picture).name)
    found = mmtune("prepare-data", data, "--output", "out", "--check-media", "decode", "--json")
    expect(found, 3)
    allowed = mmtune(
        "prepare-data", data, "--output", "out2", "--check-media", "decode", "--max-bad-fraction", 0.5, "--json"
    )
    assert allowed.code == 0, allowed.err
    assert (allowed.json["rows"], allowed.json["rejected"]) == (2, 1)
    assert "row1" in Path("out2/rejected.jsonl").read_text()


TALK = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "red"}]


@pytest.mark.parametrize(
    "change",
    [
        {"conversations": [{"from": "human", "value": "<image><image>"}, TALK[1]]},
        {"conversations": [{"from": "human", "value": "What?"}, TALK[1]]},
        {"conversations": [TALK[0], {"from": "gpt", "value": ""}]},
        {"conversations": [TALK[0]]},
        {"conversations": []},
        {"conversations": "hello"},
        {"conversations": [{"from": "robot", "value": "<image>"}, TALK[1]]},
        {"image": "../../../../etc/passwd"},
        {"image": "http://example.com/a.png"},
        {"image": 7},
    ],
    ids=["markers", "no_marker", "empty_answer", "no_answer", "no_turns", "text", "role", "outside", "url", "number"],
)
def test_rows_that_cannot_be_used(mmtune: Run, data: Path, change: dict[str, Any]) -> None:
    rows_with(data, **change)
    expect(mmtune("prepare-data", data, "--output", "out", "--json"), 3)
    assert not Path("out/manifest.json").exists()
    found = mmtune("prepare-data", data, "--output", "out2", "--max-bad-fraction", 0.5, "--json")
    assert (found.code, found.json["rows"], found.json["rejected"]) == (0, 2, 1)
    assert sum(found.json["reasons"].values()) == 1
    assert '"row1"' in Path("out2/rejected.jsonl").read_text()


# --- data files -------------------------------------------------------------------------------------------------------

Verb = Callable[[Run, Path, Path], Outcome]
DATA_VERBS: dict[str, Verb] = {
    "prepare-data": lambda mmtune, path, checkpoint: mmtune("prepare-data", path, "--output", "out", "--json"),
    "finetune": lambda mmtune, path, checkpoint: mmtune(*TRAIN, "--model", checkpoint, "--data", path, "--json"),
    "eval": lambda mmtune, path, checkpoint: mmtune(
        "eval", "--model", checkpoint, "--benchmark", "qa", "--data", path, "--json"
    ),
}


@pytest.mark.parametrize("verb", DATA_VERBS)
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("gone.json", None),
        ("empty.json", ""),
        ("broken.json", '[{"id": "1", "conversations": [}]'),
        ("none.json", "[]"),
        ("number.json", "3"),
        ("binary.json", "\x00\x01\x02"),
        ("broken.jsonl", '{"messages": [\n'),
        ("notes.txt", "hello"),
    ],
)
def test_data_files_that_cannot_be_read(
    mmtune: Run, checkpoint: Path, tmp_path: Path, verb: str, name: str, content: str | None
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    found = DATA_VERBS[verb](mmtune, path, checkpoint)
    expect(found, 3)
    assert name in found.error["message"] + str(found.error["where"])


# --- checkpoints ------------------------------------------------------------------------------------------------------


def spoil(name: str, model: Path, other_base: Path) -> Path:
    """A copy of a checkpoint with one fault."""
    adapter, config = model / "adapter.safetensors", model / "config.json"
    values = json.loads(config.read_text())
    if name == "missing":
        shutil.rmtree(model)
    elif name == "no_weights":
        adapter.unlink()
    elif name == "truncated":
        adapter.write_bytes(adapter.read_bytes()[:-100])
    elif name == "empty":
        adapter.write_bytes(b"")
    elif name == "broken_config":
        config.write_text(config.read_text()[:40])
    elif name == "no_config":
        config.unlink()
    elif name == "other_method":
        config.write_text(json.dumps({**values, "method": "vlora", "settings": {"every": 1}}))
    elif name == "unknown_kind":
        config.write_text(json.dumps({**values, "model_type": "bert"}))
    elif name == "other_base":
        config.write_text(json.dumps({**values, "base": {**values["base"], "source": str(other_base)}}))
    elif name == "lost_base":
        config.write_text(json.dumps({**values, "base": {**values["base"], "source": "./gone/llm"}}))
    elif name == "no_tokenizer":
        for path in model.glob("tokenizer*"):
            path.unlink()
    return model


@pytest.fixture(scope="module")
def other_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.tiny import save_tiny_lm

    return Path(save_tiny_lm(tmp_path_factory.mktemp("other") / "lm", seed=9))


CHECKPOINT_FAULTS = (
    "missing", "no_weights", "truncated", "empty", "broken_config", "no_config", "other_method", "unknown_kind",
    "other_base", "lost_base", "no_tokenizer",
)  # fmt: skip


@pytest.mark.parametrize("fault", CHECKPOINT_FAULTS)
def test_checkpoints_that_cannot_be_used(
    mmtune: Run, checkpoint: Path, data: Path, other_base: Path, fault: str
) -> None:
    model = checkpoint.with_name(f"spoilt_{fault}")
    shutil.rmtree(model, ignore_errors=True)
    spoil(fault, Path(shutil.copytree(checkpoint, model)), other_base)
    expect(mmtune("generate", "--model", model, "--prompt", "x", "--json"), 3)
    expect(mmtune("eval", "--model", model, "--benchmark", "qa", "--data", data, "--json"), 3)
    expect(mmtune("finetune", "--method", "llava", "--model", model, "--data", data, "--json"), 3)


def test_roles_that_the_model_lacks(mmtune: Run, checkpoint: Path, data: Path) -> None:
    arguments = ("--model", checkpoint, "--data", data, "--set", "train.roles=[projectr]", "--json")
    expect(mmtune("finetune", *arguments), 2, "'projectr'", where="train.roles")


def test_a_checkpoint_of_another_method_is_not_trained_on(mmtune: Run, checkpoint: Path, data: Path) -> None:
    expect(mmtune("finetune", "--method", "vlora", "--model", checkpoint, "--data", data, "--json"), 3, "llava")


def test_a_foreign_checkpoint_says_convert(mmtune: Run, other_base: Path) -> None:
    expect(mmtune("generate", "--model", other_base, "--prompt", "x", "--json"), 3, "mmtune convert")
    expect(mmtune("convert", other_base, "--output", "y", "--from", "lava", "--json"), 2, "Did you mean 'llava'?")
    expect(mmtune("convert", "gone", "--output", "y", "--json"), 3)


def test_a_whole_model_is_no_base(mmtune: Run, checkpoint: Path, data: Path) -> None:
    given = ("--method", "llava", "--base", checkpoint, "--data", data, "--json")
    expect(mmtune("finetune", *given), 3, "whole model of mmtune", where=str(checkpoint))


def test_a_device_that_is_not_there(mmtune: Run, checkpoint: Path) -> None:
    expect(mmtune("generate", "--model", checkpoint, "--prompt", "x", "--device", "mps", "--json"), 5, where="--device")
