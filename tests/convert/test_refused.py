"""Damaged, contradictory and unsupported sources: the right exit code, a message that names the place, no output."""

from __future__ import annotations

import json
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmtune.convert.run import convert
from mmtune.core.errors import (
    CheckpointError,
    MMTuneError,
    NotPossibleError,
    UsageError,
    VerificationError,
)
from tests.convert.originals import LLAVA, VLORA, make_llava, make_vlora, read_json, save_weights, write_json

Damage = Callable[[Path], None]


@pytest.fixture
def llava(tmp_path: Path) -> Path:
    """A copy of the golden full checkpoint with its tower."""
    shutil.copytree(LLAVA / "vision_tower", tmp_path / "vision_tower")
    return Path(shutil.copytree(LLAVA / "checkpoint", tmp_path / "checkpoint"))


@pytest.fixture
def vlora(tmp_path: Path) -> Path:
    shutil.copytree(VLORA / "vision_tower", tmp_path / "vision_tower")
    return Path(shutil.copytree(VLORA / "checkpoint", tmp_path / "checkpoint"))


def refuse(source: Path, error: type[MMTuneError] = CheckpointError, **options: Any) -> MMTuneError:
    """Convert, expect this error, and see that nothing was left behind."""
    before = sorted(path.name for path in source.parent.iterdir())
    with pytest.raises(MMTuneError) as caught:
        convert(source, source.parent / "out", **{"verify": False, **options})
    assert type(caught.value) is error, caught.value
    assert sorted(path.name for path in source.parent.iterdir()) == before
    assert caught.value.where or caught.value.fix
    return caught.value


def edit_tensors(change: Callable[[dict[str, torch.Tensor]], None]) -> Damage:
    def damage(folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "model.safetensors")

    return damage


def edit_config(**values: Any) -> Damage:
    def damage(folder: Path) -> None:
        write_json(folder / "config.json", {**read_json(folder / "config.json"), **values})

    return damage


def truncate(name: str, share: float) -> Damage:
    def damage(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * share)])

    return damage


def flip(name: str, place: int) -> Damage:
    def damage(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[place] ^= 0xFF
        (folder / name).write_bytes(content)

    return damage


def drop(*names: str) -> Damage:
    return edit_tensors(lambda state: [state.pop(name) for name in names] and None)


def put(name: str, tensor: torch.Tensor) -> Damage:
    return edit_tensors(lambda state: state.update({name: tensor}))


def poison(name: str, value: float) -> Damage:
    def change(state: dict[str, torch.Tensor]) -> None:
        state[name] = state[name].clone()
        state[name].view(-1)[1] = value

    return edit_tensors(change)


def remove(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def write(name: str, content: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(content) and None


QUERY = "model.layers.1.self_attn.q_proj.weight"
DAMAGES: dict[str, tuple[Damage, str]] = {
    **{
        f"truncated-{share}": (truncate("model.safetensors", share), "model.safetensors")
        for share in (0.0, 0.00001, 0.01, 0.3, 0.999)
    },
    **{f"flipped-{place}": (flip("model.safetensors", place), "model.safetensors") for place in (0, 5, 7, 8, 9, 40)},
    "no-weights": (remove("model.safetensors"), "No weights"),
    "no-config": (remove("config.json"), "config.json"),
    "empty-config": (write("config.json", b""), "config.json"),
    "config-list": (write("config.json", b"[1]"), "config.json"),
    "config-binary": (write("config.json", b"\xff\xfe\x00"), "config.json"),
    "no-tokenizer": (remove("tokenizer.model"), "tokenizer"),
    "broken-tokenizer": (write("tokenizer.model", b"not a model"), "tokenizer"),
    "nan": (poison(QUERY, float("nan")), QUERY),
    "infinity": (poison("model.mm_projector.0.weight", float("inf")), "model.mm_projector.0.weight"),
    "missing-tensor": (drop(QUERY), QUERY),
    "missing-layer": (edit_config(num_hidden_layers=4), "model.layers.3"),
    "surplus-layer": (edit_config(num_hidden_layers=2), "model.layers.2"),
    "missing-bias": (drop("model.mm_projector.2.bias"), "2.bias"),
    "unknown-tensor": (put("model.layers.0.extra.weight", torch.ones(3)), "extra"),
    "unknown-projector": (put("model.mm_projector.0.extra", torch.ones(3)), "extra"),
    "wrong-shape": (put(QUERY, torch.ones(64, 32)), QUERY),
    "wrong-projector-shape": (put("model.mm_projector.0.weight", torch.ones(64, 31)), "0.weight"),
    "integers": (put(QUERY, torch.ones(64, 64, dtype=torch.int8)), QUERY),
    "integer-projector": (put("model.mm_projector.0.bias", torch.ones(64, dtype=torch.int32)), "0.bias"),
    "another-projector": (edit_config(mm_projector_type="linear"), "mlp2x_gelu"),
    "unknown-projector-kind": (edit_config(mm_projector_type="resampler"), "resampler"),
    "wrong-hidden-size": (edit_config(hidden_size=72), "shape"),
    "impossible-heads": (edit_config(num_attention_heads=5), "config.json"),
    "text-for-a-number": (edit_config(hidden_size="64"), "config.json"),
    "wrong-tower-width": (edit_config(mm_hidden_size=1024), "mm_hidden_size"),
    "unknown-selection": (edit_config(mm_vision_select_feature="tokens"), "tokens"),
    "no-vocabulary": (edit_config(vocab_size=0), "vocab_size"),
    "padding-beyond": (edit_config(pad_token_id=10**12), "config.json"),
    "no-rotation": (edit_config(rope_theta=0.0), "rope_theta"),
    "small-vocabulary": (edit_config(vocab_size=430), "[430, 64]"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_llava(llava: Path, name: str) -> None:
    damage, told = DAMAGES[name]
    damage(llava)
    error = refuse(llava)
    assert told in f"{error.message} {error.where}", error.to_json()


def test_random_truncations(llava: Path) -> None:
    content = (llava / "model.safetensors").read_bytes()
    for length in random.Random(0).sample(range(len(content)), 12):
        (llava / "model.safetensors").write_bytes(content[:length])
        refuse(llava)


_QUERIES = "model.mm_projector.gen.1.queries"
VLORA_DAMAGES: dict[str, tuple[Damage, str]] = {
    "rank": (edit_config(vlora_rank=8), "vlora_rank"),
    "width": (edit_config(vlora_dim=64), "vlora_dim"),
    "depth": (edit_config(vlora_depth=3), "vlora_depth"),
    "types": (edit_config(vlora_type="qkvo"), "gen.4"),
    "more-types": (edit_config(vlora_type="qkvomx"), "mm_projector"),
    "no-types": (edit_config(vlora_type=None), "vlora_type"),
    "every": (edit_config(skip_layers=1), "skip_layers"),
    "layers": (edit_config(vlora_llm_depth=8), "vlora_llm_depth"),
    "positions": (edit_config(vlora_pos_num=9), "vlora_pos_num"),
    "separate": (edit_config(weights_sep=False), "weights_sep"),
    "missing-factors": (drop("model.mm_projector.Bs"), "Bs"),
    "missing-query": (drop("model.mm_projector.gen.2.queries"), "gen.2.queries"),
    "flat-factors": (put("model.mm_projector.Bs", torch.ones(2560)), "Bs"),
    "wrong-head": (put("model.mm_projector.gen.1.weights_head.bias", torch.ones(3)), "weights_head"),
    "integers": (edit_tensors(lambda state: state.update({_QUERIES: state[_QUERIES].to(torch.int8)})), _QUERIES),
    "llava-config": (edit_config(mm_projector_type="linear", model_type="llava_llama"), "llava"),
    "nan": (poison("model.mm_projector.gen.0.norm.bias", float("nan")), "gen.0.norm.bias"),
    "class-token": (edit_config(mm_vision_select_feature="cls_patch"), "positions"),
}


@pytest.mark.parametrize("name", VLORA_DAMAGES)
def test_damaged_vlora(vlora: Path, name: str) -> None:
    damage, told = VLORA_DAMAGES[name]
    damage(vlora)
    error = refuse(vlora)
    assert told in f"{error.message} {error.where}", error.to_json()


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return make_llava(tmp_path, pickled=True, shards=3)


class _Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("/tmp/mmtune-pickle-was-run"),))


def _index(folder: Path, **places: str) -> None:
    path = folder / "pytorch_model.bin.index.json"
    index = read_json(path)
    write_json(path, {**index, "weight_map": {**index["weight_map"], **places}})


SHARD = "pytorch_model-00002-of-00003.bin"
SHARD_DAMAGES: dict[str, tuple[Damage, str]] = {
    "missing-shard": (remove(SHARD), SHARD),
    "missing-index": (remove("pytorch_model.bin.index.json"), "index"),
    "broken-index": (write("pytorch_model.bin.index.json", b"{"), "index"),
    "empty-index": (write("pytorch_model.bin.index.json", b"{}"), "weight_map"),
    "truncated-shard": (truncate(SHARD, 0.7), SHARD),
    "truncated-to-nothing": (truncate(SHARD, 0.0), SHARD),
    "text-shard": (write(SHARD, b"version https://git-lfs.github.com/spec/v1\n"), SHARD),
    "flipped-pickle": (flip(SHARD, 200), SHARD),
    "flipped-start": (flip(SHARD, 1), SHARD),
    "pickle-with-code": (write(SHARD, pickle.dumps(_Code())), SHARD),
    "pickle-of-a-list": (lambda folder: torch.save([1, 2], folder / SHARD), SHARD),
    "escape": (lambda folder: _index(folder, **{"lm_head.weight": "../secret.bin"}), "secret"),
    "absolute": (lambda folder: _index(folder, **{"lm_head.weight": "/etc/passwd"}), "passwd"),
    "hidden-escape": (lambda folder: _index(folder, **{"lm_head.weight": "a/../../secret.bin"}), "secret"),
    "backslash": (lambda folder: _index(folder, **{"lm_head.weight": "..\\secret.bin"}), "secret"),
    "not-a-name": (lambda folder: _index(folder, **{"lm_head.weight": 3}), "3"),  # type: ignore[dict-item]
    "index-names-too-much": (lambda folder: _index(folder, **{"model.other": SHARD}), "model.other"),
    "index-forgets": (
        lambda folder: write_json(
            folder / "pytorch_model.bin.index.json", {"weight_map": {"model.norm.weight": SHARD}}
        ),
        "index",
    ),
}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("name", SHARD_DAMAGES)
def test_damaged_shards(shards: Path, name: str) -> None:
    (shards.parent / "secret.bin").write_bytes(b"secret")
    damage, told = SHARD_DAMAGES[name]
    damage(shards)
    error = refuse(shards)
    assert told in f"{error.message} {error.where}", error.to_json()
    assert not Path("/tmp/mmtune-pickle-was-run").exists()


def test_truncated_pickles_at_random_places(shards: Path) -> None:
    content = (shards / SHARD).read_bytes()
    for length in random.Random(1).sample(range(len(content)), 8):
        (shards / SHARD).write_bytes(content[:length])
        refuse(shards)


def test_flipped_bytes_of_a_pickle_never_pass_as_other_tensors(tmp_path: Path) -> None:
    source = make_llava(tmp_path, pickled=True)
    path = source / "pytorch_model.bin"
    content = path.read_bytes()
    end = content.index(b"PK\x07\x08") if b"PK\x07\x08" in content else 4000
    for place in random.Random(2).sample(range(120, end), 10):
        damaged = bytearray(content)
        damaged[place] ^= 0x55
        path.write_bytes(damaged)
        refuse(source)


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (edit_config(mm_use_im_start_end=True), CheckpointError),
        (edit_config(s2=True), NotPossibleError),
        (edit_config(image_aspect_ratio="anyres_max_9"), NotPossibleError),
        (edit_config(model_type="llava_mpt"), NotPossibleError),
        (edit_config(model_type="mmtune"), CheckpointError),
    ],
    ids=["start-end", "s2", "anyres-max", "mpt", "mmtune"],
)
def test_variants_that_are_not_read(llava: Path, damage: Damage, error: type[MMTuneError]) -> None:
    damage(llava)
    refuse(llava, error)


def test_lora_damages(tmp_path: Path) -> None:
    for name in ("vision_tower", "base_llm"):
        shutil.copytree(LLAVA / name, tmp_path / name)
    source = Path(shutil.copytree(LLAVA / "llava_lora", tmp_path / "lora"))
    good = load_file(source / "adapter_model.safetensors")
    first = "base_model.model.model.layers.0.mlp.up_proj.lora_A.weight"
    for change in (
        {first: torch.ones(4, 64)},
        {first: good[first].to(torch.int8)},
        {first.replace("layers.0", "layers.9"): good[first].clone()},
        {"base_model.model.model.layers.0.mlp.up_proj.bias": torch.ones(2)},
    ):
        save_file({**good, **change}, source / "adapter_model.safetensors")
        refuse(source)
    save_file({name: value for name, value in good.items() if name != first}, source / "adapter_model.safetensors")
    assert first in refuse(source).message
    save_file(
        {name: value * 0 if "lora_B" in name else value for name, value in good.items()},
        source / "adapter_model.safetensors",
    )
    assert "changes nothing" in refuse(source, VerificationError, verify=True).message
    save_file(good, source / "adapter_model.safetensors")
    config = read_json(source / "adapter_config.json")
    for wrong in (
        {"rank_pattern": 3}, {"alpha_pattern": {"q_proj": "x"}}, {"target_modules": "("}, {"target_modules": [3]}
    ):  # fmt: skip
        write_json(source / "adapter_config.json", {**config, **wrong})
        assert "adapter_config.json" in str(refuse(source).where)
    write_json(source / "adapter_config.json", {**config, "use_dora": True})
    refuse(source, NotPossibleError)
    write_json(source / "adapter_config.json", {**config, "base_model_name_or_path": "nowhere"})
    assert "--llm" in str(refuse(source).fix)
    shutil.rmtree(tmp_path / "vision_tower")
    write_json(source / "adapter_config.json", config)
    assert "--vision" in str(refuse(source).fix)


def test_base_of_another_size(tmp_path: Path) -> None:
    source = make_vlora(tmp_path, adapter_only=True)
    error = refuse(source, llm=str(LLAVA / "base_llm"))
    assert "--llm" in str(error.fix)


def test_an_untrained_adapter_fails_verification(tmp_path: Path) -> None:
    source = make_vlora(tmp_path, zero=True)
    assert refuse(source, VerificationError, verify=True).exit_code == 7
    assert convert(source, tmp_path / "out", verify=False)["verified"] is None


def test_a_wrong_translation_fails_verification(vlora: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmtune.convert.reference_vlora._EPS", 0.3)
    error = refuse(vlora, VerificationError, verify=True)
    assert "logits" in error.message


def test_too_large_for_memory_compares_tensors(vlora: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmtune.convert.verify.available_memory", lambda: 1000)
    verified = convert(vlora, vlora.parent / "out")["verified"]
    assert verified["max_abs_logit_diff"] is None
    assert verified["tensors"] == 307
    assert "memory" in verified["note"]


def test_options_that_are_refused(llava: Path) -> None:
    refuse(llava, UsageError, max_shard_size="many")
    refuse(llava, UsageError, dtype="int3")
    refuse(llava, UsageError, to="gguf")
    refuse(llava, UsageError, from_format="llavva")
    refuse(llava, UsageError, settings={"colour": 1})
    refuse(llava, UsageError, encoders={"audio": "x"})
    refuse(llava, NotPossibleError, to="merged")
    refuse(llava, NotPossibleError, to="vlora")
    refuse(llava, NotPossibleError, to="meta-llama")
    refuse(llava, from_format="meta-llama")
    assert "visual_proj" in refuse(llava, from_format="vlora").message


def test_merging_vlora_is_refused_with_the_reason(vlora: Path) -> None:
    assert "depend on the picture" in refuse(vlora, NotPossibleError, to="merged").message


@pytest.mark.parametrize("heads", ["abc", [1], -1, 5, 3.0, True])
def test_numbers_of_heads_that_cannot_be(tmp_path: Path, heads: Any) -> None:
    source = make_llava(tmp_path, config={"mm_vision_tower": "gone"})
    assert "heads" in refuse(source, UsageError, settings={"vision.num_attention_heads": heads}).message


def test_no_source(tmp_path: Path) -> None:
    for name in ("nothing", "empty", "file"):
        source = tmp_path / name
        if name == "empty":
            source.mkdir()
        if name == "file":
            source.write_text(json.dumps({}))
        refuse(source)


def test_a_folder_without_a_checkpoint_names_what_is_there(tmp_path: Path) -> None:
    source = tmp_path / "texts"
    source.mkdir()
    (source / "notes.txt").write_text("hello")
    assert "notes.txt" in refuse(source).message


def test_incomplete_models_of_transformers(tmp_path: Path) -> None:
    source = tmp_path / "llm"
    save_weights(source, {"model.norm.weight": torch.ones(2)})
    for config in ({"model_type": "llama"}, {"model_type": "llava", "vision_config": {}}, {"model_type": "clip"}):
        write_json(source / "config.json", config)
        refuse(source)
    write_json(source / "config.json", {"model_type": "qwen2_vl", "vision_config": {}})
    refuse(source, NotPossibleError)
