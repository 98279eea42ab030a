"""What ``--tune`` trains is what is saved, once, and what loads again."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from mmtune.core.errors import CheckpointError, MissingExtraError, NotPossibleError
from mmtune.model.build import load
from mmtune.train.recipe import Recipe, resolve
from mmtune.train.run import train

Make = Callable[..., Recipe]


def in_memory(run: Path) -> dict[str, torch.Tensor]:
    """The trained parameters as they were in memory after the last step."""
    newest = max((run / "checkpoints").glob("step-*"))
    return load_file(newest / "trained.safetensors")


@pytest.mark.parametrize("method", ["llava", "multi_token"])
def test_a_whole_language_model_is_saved_once(
    method: str, recipe: Make, base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmtune.model.weights.MAX_SHARD_SIZE", "40KB")
    train(recipe(method, tune__kind="full", train__max_steps=20), output=tmp_path)
    language = tmp_path / "model/language_model"
    shards = [load_file(path) for path in sorted(language.glob("*.safetensors"))]
    names = [name for shard in shards for name in shard]
    assert len(shards) > 1
    assert len(names) == len(set(names))
    assert not any("lora" in name or "base_layer" in name for name in names)
    plain, report = AutoModelForCausalLM.from_pretrained(language, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    before = AutoModelForCausalLM.from_pretrained(base)
    model, _ = load(tmp_path / "model", device="cpu")
    trained = in_memory(tmp_path)
    for name, parameter in model.named_parameters():
        if name in trained:
            assert torch.equal(parameter, trained[name]), name
    assert any(not torch.equal(*pair) for pair in zip(plain.parameters(), before.parameters(), strict=True))
    assert any(name.startswith("language_model.") for name in trained)


@pytest.mark.parametrize(
    "changes",
    [
        {"tune__rslora": True},
        {"tune__dora": True},
        {"tune__targets": ["language-linear", "encoder-linear"]},
        {"tune__targets": ["q_proj", "v_proj"]},
    ],
)
def test_lora_of_every_kind(changes: dict[str, Any], recipe: Make, tmp_path: Path) -> None:
    result = train(recipe(tune__kind="lora", tune__rank=4, **changes), output=tmp_path)
    assert result["loss"]["last"] < result["loss"]["first"]
    trained = in_memory(tmp_path)
    on_encoder = [name for name in trained if name.startswith("encoders.")]
    assert bool(on_encoder) == ("encoder-linear" in changes.get("tune__targets", ()))
    model, _ = load(tmp_path / "model", device="cpu")
    found = dict(model.named_parameters())
    for name, tensor in trained.items():
        assert torch.equal(found[name], tensor), name


def test_lora_that_a_checkpoint_has_on_its_encoder_is_known(recipe: Make, data: Path, tmp_path: Path) -> None:
    """The recipe that goes on with it does not tell: features would grow stale, and shares miss its gradients."""
    lora = {"tune__kind": "lora", "tune__rank": 4, "train__max_steps": 1}
    train(recipe(**lora, tune__targets="encoder-linear"), output=tmp_path / "run")
    given: dict[str, Any] = {
        "tune.kind": "lora", "tune.rank": 4, "train.max_steps": 1, "model.checkpoint": str(tmp_path / "run/model"),
        "data.train": [{"path": str(data)}], "data.cache": str(tmp_path / "cache"), "run.device": "cpu",
    }  # fmt: skip
    for more in ({"data.cache_features": True}, {"run.strategy": "fsdp"}):
        with pytest.raises(NotPossibleError, match="LoRA on its encoders"):
            train(resolve("finetune", overrides={**given, **more}), output=tmp_path / "refused", dry_run=True)
    with pytest.raises(CheckpointError, match="rank 4"):
        train(resolve("finetune", overrides={**given, "tune.rank": 8}), output=tmp_path / "refused", dry_run=True)
    train(resolve("finetune", overrides=given), output=tmp_path / "further")
    assert any(name.startswith("encoders.") for name in in_memory(tmp_path / "further"))


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
def test_an_adapter_of_a_base_in_four_bits_fits_the_base_in_sixteen(recipe: Make, tmp_path: Path) -> None:
    from tests.tiny import save_tiny_lm

    wide = save_tiny_lm(tmp_path / "lm", hidden_size=64, intermediate_size=64, head_dim=16)
    train(recipe(tune__kind="qlora", tune__rank=4, model__base=wide), output=tmp_path / "run")
    for bits in (None, 4):
        model, _ = load(tmp_path / "run/model", device="cpu", bits=bits)
        found = dict(model.named_parameters())
        for name, tensor in in_memory(tmp_path / "run").items():
            assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"run__offload": True}, NotPossibleError),
        ({"run__strategy": "fsdp", "train__roles": ["method", "encoder"]}, NotPossibleError),
        ({"run__strategy": "fsdp", "tune__kind": "lora", "tune__targets": "encoder-linear"}, NotPossibleError),
        ({"run__strategy": "fsdp", "train__optimizer": "adamw_8bit"}, NotPossibleError),
        ({"run__trackers": ["tensorboard"]}, MissingExtraError),
    ],
)
def test_what_is_not_possible_is_said_first(
    changes: dict[str, Any], kind: type[Exception], recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmtune.train.precision.get_available_trackers", lambda: [])
    monkeypatch.setattr("mmtune.train.optim.find_spec", lambda name: True)
    with pytest.raises(kind) as caught:
        train(recipe(**changes), output=tmp_path / "run")
    assert caught.value.exit_code == 4  # type: ignore[attr-defined]
    assert not (tmp_path / "run").exists()
