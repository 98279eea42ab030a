"""Meta's Llamas of other sizes and shards: bit-equal tensors, the logits of transformers, both tokenizers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from sentencepiece import SentencePieceProcessor
from transformers import AutoModelForCausalLM, AutoTokenizer

from mmtune.convert.run import convert
from mmtune.convert.tensors import open_folder
from mmtune.convert.tokenizer_files import byte_pair_tokenizer
from mmtune.core.errors import CheckpointError, NotPossibleError
from tests.convert.meta import RANKS, make_meta
from tests.convert.originals import LLAVA, read_json

LLAMA3 = {"vocabulary": 576, "tokenizer": "ranks", "by_vocabulary": True}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"shards": 2, "tokenizer": "above"},
        {"shards": 3, "kv_heads": 3, "vocabulary": 444},
        {"shards": 2, "kv_heads": 2, "by_vocabulary": True, "nested": True},
        {"shards": 6, "kv_heads": 2, "vocabulary": 444},
        {"shards": 6, "kv_heads": 1, "vocabulary": 444, "dtype": torch.float16},
        {"shards": 2, "dtype": torch.bfloat16, "tokenizer": None},
        {"params": {"rope_theta": 1e6}, "rope_theta": 1e6},
        {**LLAMA3, "shards": 2, "kv_heads": 2, "params": {"rope_theta": 5e5}, "rope_theta": 5e5},
        {"tie_word_embeddings": True},
    ],
    ids=["one", "two", "grouped", "vocabulary", "repeated", "one-kv-head", "no-tokenizer", "code", "llama3", "tied"],
)
def test_any_shards(tmp_path: Path, options: dict[str, Any]) -> None:
    model = make_meta(tmp_path / "meta", **options)
    result = convert(tmp_path / "meta", tmp_path / "out")
    assert (result["from"], result["to"]) == ("meta-llama", "hf")
    assert result["verified"]["greedy_equal"] is True
    written = load_file(tmp_path / "out" / "model.safetensors")
    state = model.state_dict()
    if options.get("tie_word_embeddings"):
        state.pop("lm_head.weight")
    assert written.keys() == state.keys()
    assert all(torch.equal(tensor.float(), state[name]) for name, tensor in written.items())
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    ids = torch.arange(5, 30).unsqueeze(0)
    with torch.no_grad():
        assert (loaded(ids).logits - model(ids).logits).abs().max() < 1e-4


def test_stretched_rotations(tmp_path: Path) -> None:
    params = {"rope_theta": 5e5, "use_scaled_rope": True}
    make_meta(tmp_path / "meta", params=params, **LLAMA3)
    result = convert(tmp_path / "meta", tmp_path / "out", settings={"rope_factor": 32})
    assert result["verified"]["greedy_equal"] is True
    config = read_json(tmp_path / "out" / "config.json")
    assert config["rope_scaling"]["factor"] == 32.0
    assert config["max_position_embeddings"] == 131072


@pytest.mark.parametrize(
    ("params", "length"),
    [({"norm_eps": 1e-6}, 2048), ({}, 4096), ({"rope_theta": 1e6}, 16384), ({"rope_theta": 5e5}, 8192)],
)
def test_lengths(tmp_path: Path, params: dict[str, Any], length: int) -> None:
    make_meta(tmp_path / "meta", params=params)
    convert(tmp_path / "meta", tmp_path / "out", verify=False)
    assert read_json(tmp_path / "out" / "config.json")["max_position_embeddings"] == length


def test_sentencepiece_ids(tmp_path: Path) -> None:
    make_meta(tmp_path / "meta")
    convert(tmp_path / "meta", tmp_path / "out", verify=False)
    original = SentencePieceProcessor(model_file=str(LLAVA / "base_llm" / "tokenizer.model"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in ("What color is the boat?", " two  spaces", "\nWhat?", "é你 x"):
        assert tokenizer(text)["input_ids"] == [1, *original.encode(text)]


def test_byte_pair_ids(tmp_path: Path) -> None:
    make_meta(tmp_path / "meta", **LLAMA3)
    convert(tmp_path / "meta", tmp_path / "out", verify=False)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    ranks = {token: rank for rank, token in enumerate(RANKS)}
    words = [" in", "the", " the", " boating", "\n\n", "é"]
    text = "in" + "".join(words[:1]) + "".join(words[2:])
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == len(RANKS) == tokenizer.convert_tokens_to_ids("<|begin_of_text|>")
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    found = [next(token for token, rank in ranks.items() if rank == number) for number in ids[1:]]
    assert found[:4] == [b"in", b" in", b" the", b" b"]
    assert b"".join(found).decode() == text
    assert tokenizer.convert_tokens_to_ids("<|eot_id|>") == len(RANKS) + 9
    assert len(tokenizer) == len(RANKS) + 256
    assert byte_pair_tokenizer(ranks).encode("the", add_special_tokens=False).ids == [ranks[b"the"]]


def test_small_output_shards(tmp_path: Path) -> None:
    make_meta(tmp_path / "meta", shards=2)
    convert(tmp_path / "meta", tmp_path / "out", max_shard_size="40KB")
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) > 3
    assert len(open_folder(tmp_path / "out")) == 21


def test_a_language_model_alone_is_no_mmtune_folder(tmp_path: Path) -> None:
    make_meta(tmp_path / "meta")
    for target in ("mmtune", "adapter", "llava", "vlora"):
        with pytest.raises(NotPossibleError):
            convert(tmp_path / "meta", tmp_path / "out", to=target)
    assert not (tmp_path / "out").exists()


def test_meta_weights_as_the_base_of_an_adapter(tmp_path: Path) -> None:
    """A projector stands on Meta's own files as well as on those of transformers."""
    model = make_meta(tmp_path / "meta", tokenizer="above")
    config = read_json(LLAVA / "stage1_llava_pretrain" / "config.json")
    config |= {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 6}
    config |= {"intermediate_size": 96}
    source = tmp_path / "projector"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(config))
    sizes = {"0.weight": (48, 32), "0.bias": (48,), "2.weight": (48, 48), "2.bias": (48,)}
    torch.manual_seed(0)
    state = {f"model.mm_projector.{name}": torch.randn(shape) for name, shape in sizes.items()}
    torch.save(state, source / "mm_projector.bin")
    result = convert(source, tmp_path / "out", llm=str(tmp_path / "meta"), vision=str(LLAVA / "vision_tower"))
    assert result["verified"]["greedy_equal"] is True
    written = load_file(tmp_path / "out" / "language_model" / "model.safetensors")
    assert torch.equal(written["lm_head.weight"], model.state_dict()["lm_head.weight"])


def damaged(folder: Path, kind: str) -> str:
    """Damage a checkpoint of two shards; returns what the error has to name."""
    last = folder / "consolidated.01.pth"
    state = torch.load(last, weights_only=True)
    wk = "layers.1.attention.wk.weight"
    if kind == "missing-last":
        last.unlink()
        return "one slice of 1"
    if kind == "missing-first":
        (folder / "consolidated.00.pth").unlink()
        return "consolidated.00.pth"
    if kind == "truncated":
        last.write_bytes(last.read_bytes()[:5000])
        return "consolidated.01.pth"
    if kind == "text":
        last.write_text("version https://git-lfs.github.com/spec/v1")
        return "consolidated.01.pth"
    if kind == "surplus-tensor":
        state["layers.0.extra.weight"] = torch.ones(2)
    elif kind == "missing-tensor":
        del state[wk]
    elif kind == "nan":
        state[wk][0, 0] = float("nan")
    elif kind == "wrong-shape":
        state[wk] = torch.ones(24, 24)
    elif kind == "scalar":
        state[wk] = torch.tensor(1.0)
    elif kind == "other-dtype":
        state[wk] = state[wk].half()
    elif kind == "integers":
        state = {name: tensor.to(torch.int8) for name, tensor in state.items()}
    torch.save(state, last)
    return "layers.0.extra.weight" if kind == "surplus-tensor" else "int8" if kind == "integers" else wk


@pytest.mark.parametrize(
    "kind",
    [
        *("missing-last", "missing-first", "truncated", "text", "surplus-tensor", "missing-tensor", "nan"),
        *("wrong-shape", "scalar", "other-dtype", "integers"),
    ],
)
def test_damaged_shards(tmp_path: Path, kind: str) -> None:
    make_meta(tmp_path / "meta", shards=2)
    told = damaged(tmp_path / "meta", kind)
    with pytest.raises(CheckpointError) as caught:
        convert(tmp_path / "meta", tmp_path / "out")
    assert told in f"{caught.value.message} {caught.value.where}"
    assert [path.name for path in tmp_path.iterdir()] == ["meta"]


@pytest.mark.parametrize(
    "params",
    [
        {"dim": None},
        {"dim": "48"},
        {"n_heads": 5},
        {"n_layers": 3},
        {"n_layers": 10**9},
        {"n_kv_heads": 4},
        {"n_kv_heads": 3},
        {"dim": 96},
        {"vocab_size": 441},
    ],
    ids=str,
)
def test_params_that_do_not_fit(tmp_path: Path, params: dict[str, Any]) -> None:
    make_meta(tmp_path / "meta", shards=2, params=params)
    with pytest.raises(CheckpointError):
        convert(tmp_path / "meta", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "content", [b"", b"\x00\x01", b"aGk= 5\n", b"aGk= 0\nxx 1\n"], ids=["empty", "bytes", "gap", "no-base64"]
)
def test_damaged_tokenizers(tmp_path: Path, content: bytes) -> None:
    make_meta(tmp_path / "meta")
    (tmp_path / "meta" / "tokenizer.model").write_bytes(content)
    with pytest.raises(CheckpointError):
        convert(tmp_path / "meta", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_of_another_model(tmp_path: Path) -> None:
    make_meta(tmp_path / "meta", vocabulary=300)
    with pytest.raises(CheckpointError, match="tokens"):
        convert(tmp_path / "meta", tmp_path / "out")


@pytest.mark.parametrize("theta", ["x", [1], -1, float("inf")])
def test_a_rotation_that_cannot_be(tmp_path: Path, theta: Any) -> None:
    make_meta(tmp_path / "meta", params={"rope_theta": theta})
    with pytest.raises(CheckpointError, match="rope_theta"):
        convert(tmp_path / "meta", tmp_path / "out", verify=False)
