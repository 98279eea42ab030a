"""The recipe: layers, messages with places, and a dump that re-runs alone."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from mmtune.core.errors import CheckpointError, MMTuneError, RecipeError, UsageError
from mmtune.train.recipe import check_method_settings, difference, dump, recipe_hash, resolve


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def test_layers_lie_on_top_of_each_other(tmp_path: Path) -> None:
    file = write(tmp_path, "method: llava\nmodel: {base: x/y}\ntrain: {batch_size: 5, epochs: 7, seed: 1}\n")
    recipe = resolve(
        "finetune",
        preset="llava-1.5-7b-lora",
        file=file,
        overrides={"train.batch_size": 6, "train.seed": None, "data.train": ["a.json"]},
        sets=["train.batch_size=8", "data.media_root=[x, y]"],
    )
    assert (recipe.train.batch_size, recipe.train.epochs, recipe.train.seed) == (8, 7, 1)
    assert recipe.tune.alpha == 256
    assert recipe.model.base == "x/y"
    assert recipe.data.media_root == ["x", "y"]
    assert recipe.data.train[0].path == "a.json"
    assert recipe.train.weight_decay == 0.0


def test_epochs_alone_lift_the_steps_of_a_lower_layer() -> None:
    assert resolve("finetune", overrides={"method": "vlora"}).train.max_steps is not None
    longer = resolve("finetune", overrides={"method": "vlora", "train.epochs": 3.0}).train
    assert (longer.epochs, longer.max_steps) == (3.0, None)
    both = resolve("finetune", overrides={"method": "vlora", "train.epochs": 3.0, "train.max_steps": 5}).train
    assert (both.epochs, both.max_steps) == (3.0, 5)
    apart = resolve("finetune", overrides={"method": "vlora", "train.max_steps": 5}, sets=["train.epochs=3"]).train
    assert (apart.epochs, apart.max_steps) == (3.0, 5)


def test_a_quantiser_without_bits_is_refused() -> None:
    with pytest.raises(RecipeError, match="nothing is quantised"):
        resolve("finetune", overrides={"method": "vlora"}, sets=["tune.quantiser=torchao"])
    assert (
        resolve("finetune", overrides={"method": "vlora"}, sets=["tune.quantiser=torchao", "tune.bits=8"]).tune.bits
        == 8
    )


def test_one_learning_rate_keeps_the_others() -> None:
    recipe = resolve("finetune", preset="llava-1.5-7b-lora", overrides={"train.learning_rate": 1e-3})
    assert recipe.train.learning_rate == {"default": 1e-3, "projector": 2e-5}
    recipe = resolve("finetune", preset="llava-1.5-7b-lora", sets=["train.learning_rate={projector: 1e-4}"])
    assert recipe.train.learning_rate == {"default": 2e-4, "projector": 1e-4}
    whole = ["train.learning_rate={default: 1e-4, lora: 1e-5}"]
    recipe = resolve("finetune", preset="llava-1.5-7b-lora", sets=whole)
    assert recipe.train.learning_rate == {"default": 1e-4, "lora": 1e-5}


EXAMPLE = """
schema: mmtune/1
method: vlora
model:  {base: nano, vision: nano, revision: null, encoders: {}, settings: {rank: 64, depth: 8, types: qkvom, every: 4}}
tune:   {kind: lora, rank: 64, alpha: 16, dropout: 0.05, targets: language-linear, bits: null}
data:   {train: [{path: data/mix, weight: 1.0, limit: null}], validation: null, media_root: [], template: vicuna_v1,
         max_length: 2048, overlong: error, max_bad_fraction: 0.0, workers: 2, cache: null, allow_urls: false,
         allow_outside: false}
train:  {roles: [method, lora], epochs: 1, max_steps: null, batch_size: 16, tokens_per_batch: null, accumulation: 1,
         learning_rate: {default: 2.0e-4, projector: 2.0e-5}, schedule: cosine, warmup_ratio: 0.03, weight_decay: 0.0,
         max_grad_norm: 1.0, precision: auto, gradient_checkpointing: false, compile: false, seed: 0,
         deterministic: false}
save:   {every_steps: 500, every_minutes: null, keep: 2, best: null}
run:    {output: null, num_processes: 1, trackers: []}
"""


def test_a_whole_recipe_means_what_it_says(tmp_path: Path) -> None:
    recipe = resolve("finetune", file=write(tmp_path, EXAMPLE))
    assert recipe.train.learning_rate == {"default": 2e-4, "projector": 2e-5}
    assert recipe.train.max_steps is None
    assert recipe.train.epochs == 1
    assert recipe.data.train[0].path == "data/mix"
    check_method_settings(recipe)


@pytest.mark.parametrize(
    ("kind", "roles"),
    [
        ("method", ["method"]),
        ("lora", ["method", "lora"]),
        ("qlora", ["method", "lora"]),
        ("full", ["method", "language"]),
    ],
)
def test_kinds_name_roles(kind: str, roles: list[str]) -> None:
    assert resolve("finetune", overrides={"method": "llava", "tune.kind": kind}).train.roles == roles


def test_a_later_kind_replaces_earlier_roles_and_the_other_way_round(tmp_path: Path) -> None:
    file = write(tmp_path, "method: llava\ntrain: {roles: [method, encoder]}\n")
    assert resolve("finetune", file=file).train.roles == ["method", "encoder"]
    assert resolve("finetune", file=file, overrides={"tune.kind": "lora"}).train.roles == ["method", "lora"]
    assert resolve("finetune", overrides={"method": "llava"}, sets=["train.roles=[encoder]"]).train.roles == ["encoder"]


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("method: vlora\ntrain: {batchsize: 3}\n", "recipe.yaml:2", "Did you mean 'batch_size'"),
        ("method: vlora\ntrain:\n  batch_size: x\n", "recipe.yaml:3", "valid integer"),
        ("method: vlora\ntrain:\n  seed: 3\n  seed: 4\n", "recipe.yaml:4", "twice"),
        ("method: [vlora\n", "recipe.yaml:2", "Broken YAML"),
        ("\nmetod: vlora\n", "recipe.yaml:2", "Did you mean 'method'"),
        ("method: vlora\nschema: mmtune/2\n", "recipe.yaml:2", "schema"),
        ("just words\n", "recipe.yaml:1", "mapping"),
        ("method: vlora\ntrain: {learning_rate: {projector: 1.0}}\nmodel: {base: x}\n", "", ""),
        ("method: vlora\ndata:\n  train:\n  - {path: a}\n  - {pat: b}\n", "recipe.yaml:5", "Did you mean 'path'"),
        ("method: vlora\ntrain: {roles: [lora]}\n", "recipe.yaml:2", "tune.kind is 'method'"),
        ("method: vlora\ntune: {kind: lora}\ntrain: {roles: [method]}\n", "recipe.yaml:3", "leaves 'lora' out"),
        ("method: vlora\ntune: {kind: full, bits: 4}\n", "recipe.yaml:2", "tune.bits"),
        ("method: vlora\ntrain:\n  learning_rate: .inf\n", "recipe.yaml:3", "finite"),
        ("method: vlora\ntrain:\n  epochs: .inf\n", "recipe.yaml:3", "finite"),
        ("method: vlora\ntrain:\n  betas: [0.9, 1.5]\n", "recipe.yaml:3", "less than 1"),
        ("method: vlora\ntrain:\n  seed: 99999999999\n", "recipe.yaml:3", "less than 4294967296"),
        ("method: vlora\ndata:\n  train: ['']\n", "recipe.yaml:3", "at least 1 character"),
        ("method: vlora\ntrain:\n  seed: !!int abc\n", "recipe.yaml:3", "no int"),
        ("method: vlora\nmodel:\n  settings: &a {b: *a}\n", "recipe.yaml", "Broken YAML"),
        ("method: vlora\nmodel:\n  encoders: {x: &a [*a]}\n", "recipe.yaml:3", "Broken YAML"),
        ("method: vlora\nmodel: " + "[" * 3000, "recipe.yaml", "Broken YAML"),
        ("method: vlora\nmodel:\n  encoders:\n    image: {sorce: x}\n", "recipe.yaml:4", "Did you mean 'source'"),
        ("method: vlora\nmodel:\n  encoders:\n    image: 3\n", "recipe.yaml:4", "got 3"),
        ('method: vlora\ndata:\n  cache: "a\\0b"\n', "recipe.yaml:3", "character 0"),
        ("1: vlora\n", "recipe.yaml:1", "Unknown key '1'"),
        ("\ufeffmethod: vlora\r\ntrain:\r\n  sead: 3\r\n", "recipe.yaml:3", "Did you mean 'seed'"),
        ("method: vlora\ntrain:\n\tseed: 3\n", "recipe.yaml:3", "Broken YAML"),
    ],
)
def test_faults_name_file_and_line(tmp_path: Path, text: str, place: str, words: str) -> None:
    file = write(tmp_path, text)
    if not place:
        assert resolve("finetune", file=file).train.learning_rate["default"] == 2e-4
        return
    with pytest.raises(RecipeError) as caught:
        resolve("finetune", file=file)
    assert place in str(caught.value.where)
    assert words in caught.value.message
    assert caught.value.fix


@pytest.mark.parametrize(
    ("sets", "where"),
    [
        (["train.rols=1"], "--set train.rols"),
        (["train=1"], "--set train"),
        (["seed"], "--set"),
        (["train.seed=[1"], "--set train.seed"),
        (["model.settings=&a {b: *a}"], "--set model.settings"),
        (["train.seed=!!bool maybe"], "--set train.seed"),
    ],
)
def test_faults_of_set_name_the_option(sets: list[str], where: str) -> None:
    with pytest.raises(RecipeError) as caught:
        resolve("finetune", overrides={"method": "vlora"}, sets=sets)
    assert where in str(caught.value.where)


def test_a_section_without_settings_says_nothing_and_a_date_is_a_text(tmp_path: Path) -> None:
    file = write(tmp_path, "method: vlora\ntrain:\n  # seed: 3\nmodel: {base: nano, revision: 2026-01-31}\n")
    found = resolve("finetune", file=file)
    assert found.train == resolve("finetune", overrides={"method": "vlora"}).train
    assert found.model.revision == "2026-01-31"


ODD = (
    "", "~", "-1", "1e400", ".nan", ".inf", "9" * 5000, "true", "[]", "{}", "[[]]", "{a: 1}", "{1: 2}", "{null: 2}",
    "2020-01-02", "!!binary aGk=", "!!python/object:os.system x", "&a [*a]", "&a {b: *a}", "*b", "? [a]", "<<: 3",
    "!foo bar", '"\\0"', "{? {a: 1} : 2}", "!!int abc", "!!bool x", "!!timestamp x", "12:30:45", "=", "- a",
    "|\n  text",
)  # fmt: skip


def test_changed_at_random_a_recipe_is_read_or_refused(tmp_path: Path) -> None:
    """Values, keys and bytes of a whole recipe: whatever is read can be written and read again."""
    chance = random.Random(0)
    whole = dump(resolve("finetune", overrides={"method": "vlora", "data.train": ["x.json"]})).splitlines()
    outcomes = {"read": 0, "refused": 0}
    for _ in range(180):
        lines = list(whole)
        for place in chance.sample(range(len(lines)), 2):
            key, colon, value = lines[place].partition(":")
            changed = chance.choice([f"{key}: {chance.choice(ODD)}", f"{key}x{colon}{value}", "", value])
            lines[place] = changed
        text = bytearray("\n".join(lines).encode())
        if chance.random() < 0.2:
            text[chance.randrange(len(text))] = chance.randrange(256)
        (tmp_path / "recipe.yaml").write_bytes(text)
        refusal = None
        try:
            found = resolve("finetune", file=tmp_path / "recipe.yaml")
            check_method_settings(found)
        except MMTuneError as error:
            refusal = error
        if refusal is not None:
            assert (refusal.exit_code, bool(refusal.fix)) == (2, True), text
            outcomes["refused"] += 1
            continue
        assert not difference(found, resolve("finetune", file=write(tmp_path, dump(found)))), text
        outcomes["read"] += 1
    assert min(outcomes.values()) > 5


def test_flags_are_named_as_typed() -> None:
    with pytest.raises(RecipeError) as caught:
        resolve("finetune", overrides={"method": "vlora", "train.batch_size": 0})
    assert "--batch-size" in str(caught.value.where)


def test_a_model_that_is_not_there_is_not_a_missing_method(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no model in 'gone'"):
        resolve("finetune", overrides={"model.checkpoint": "gone"})
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "model" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError) as caught:
        resolve("finetune", overrides={"model.checkpoint": str(tmp_path / "run")})
    assert caught.value.fix == f"--model {tmp_path / 'run' / 'model'}"


def test_no_method_and_unknown_names() -> None:
    with pytest.raises(UsageError, match="No method"):
        resolve("finetune")
    with pytest.raises(UsageError, match="Did you mean 'vlora-7b-pretrain'"):
        resolve("pretrain", preset="vlora-7b-pretain")
    with pytest.raises(UsageError, match="cannot be read"):
        resolve("pretrain", file="missing.yaml")
    with pytest.raises(UsageError, match="Did you mean 'vlora'") as caught:
        check_method_settings(resolve("finetune", overrides={"method": "vlra"}))
    assert caught.value.where == "--method"


def test_method_settings_are_checked_with_their_place(tmp_path: Path) -> None:
    file = write(tmp_path, "method: vlora\nmodel:\n  settings:\n    rnk: 4\n")
    with pytest.raises(RecipeError, match="Did you mean 'rank'") as caught:
        check_method_settings(resolve("finetune", file=file))
    assert "recipe.yaml:4" in str(caught.value.where)


def test_the_dump_reruns_alone(tmp_path: Path) -> None:
    recipe = resolve("pretrain", overrides={"method": "vlora", "train.seed": 3}, sets=["train.learning_rate=3e-4"])
    again = resolve("finetune", file=write(tmp_path, dump(recipe)))
    assert difference(recipe, again) == []
    assert dump(again) == dump(recipe)


def test_the_hash_names_what_a_run_does() -> None:
    base = resolve("finetune", overrides={"method": "vlora"})
    moved = resolve("finetune", overrides={"method": "vlora", "run.output": "elsewhere"})
    other = resolve("finetune", overrides={"method": "vlora", "train.seed": 1})
    assert recipe_hash(base) == recipe_hash(moved)
    assert recipe_hash(base) != recipe_hash(other)
    assert recipe_hash(base, "pretrain") != recipe_hash(base, "finetune")
    assert difference(base, other) == ["train.seed: 0 -> 1"]


def test_nano_presets_are_picked_for_the_nano_base_only() -> None:
    nano = resolve("finetune", overrides={"method": "vlora"})
    assert nano.train.max_steps is not None
    other = resolve("finetune", overrides={"method": "vlora", "model.base": "some/model"})
    assert other.train.max_steps is None


def test_method_and_base_come_from_the_checkpoint(tmp_path: Path) -> None:
    config = {"method": "llava", "settings": {"projector": "linear"}, "base": {"source": "nano"}, "encoders": {}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    recipe = resolve("finetune", overrides={"model.checkpoint": str(tmp_path)})
    assert recipe.method == "llava"
    assert recipe.train.max_steps is not None
    assert recipe.model.settings["projector"] == "linear"
    with pytest.raises(RecipeError, match="stands on 'nano'"):
        resolve("finetune", overrides={"model.checkpoint": str(tmp_path), "model.base": "other/model"})


def test_resolving_imports_no_torch() -> None:
    work = "import sys; from mmtune.train.recipe import resolve; resolve('finetune', overrides={'method': 'vlora'})"
    code = f"{work}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_names_of_templates_have_one_spelling() -> None:
    assert resolve("finetune", sets=["method=llava", "data.template=Vicuna-v1"]).data.template == "vicuna_v1"
