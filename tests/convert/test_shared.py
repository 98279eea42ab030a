"""Golden checkpoints that are too large for the repository: looked for in ``shared`` beside it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, CLIPVisionModel

from mmtune.convert.run import convert
from mmtune.model.tokenization import PieceTokenizer, load_tokenizer

SHARED = Path(__file__).parents[3] / "shared" / "golden"
META = SHARED / "llava" / "a" / "meta_llama"
LAVIN = SHARED / "lavin" / "a" / "checkpoint"


def needed(path: Path) -> Path:
    if not path.exists():
        pytest.skip(f"{path.relative_to(SHARED.parent)} is not beside the repository")
    return path


def test_metas_shards_are_the_base_bit_by_bit(tmp_path: Path) -> None:
    result = convert(needed(META), tmp_path / "out")
    assert (result["from"], result["to"], result["verified"]["greedy_equal"]) == ("meta-llama", "hf", True)
    written = load_file(tmp_path / "out" / "model.safetensors")
    base = load_file(SHARED / "llava" / "a" / "base_llm" / "model.safetensors")
    assert written.keys() == base.keys()
    assert all(torch.equal(written[name].to(base[name].dtype), value) for name, value in base.items())
    row = json.loads((META / "expected_tokenizer.json").read_text())
    pieces = PieceTokenizer(load_tokenizer(tmp_path / "out"))
    assert [*pieces.opening, *(token.id for token in pieces.tokens(row["text"]))] == row["ids"]


def test_metas_shards_give_the_expected_logits(tmp_path: Path) -> None:
    wanted = load_file(needed(META / "expected.safetensors"))
    convert(META, tmp_path / "out", verify=False)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(wanted["input_ids"]).logits
    assert (logits - wanted["logits"]).abs().max() < 1e-4


def test_lavins_language_model_and_tower(tmp_path: Path) -> None:
    language = convert(needed(LAVIN / "llama" / "7B"), tmp_path / "language")
    assert language["verified"]["greedy_equal"] is True
    stored = torch.load(LAVIN / "llama" / "7B" / "consolidated.00.pth", weights_only=True)
    written = load_file(tmp_path / "language" / "model.safetensors")
    for ours, theirs in (
        ("model.embed_tokens.weight", "tok_embeddings.weight"),
        ("lm_head.weight", "output.weight"),
        ("model.layers.0.mlp.gate_proj.weight", "layers.0.feed_forward.w1.weight"),
    ):
        assert torch.equal(written[ours], stored[theirs])
    tower = convert(LAVIN / "clip" / "ViT-L-14.pt", tmp_path / "tower")
    assert tower["from"] == "openai-clip"
    archive = torch.jit.load(str(LAVIN / "clip" / "ViT-L-14.pt"), map_location="cpu").state_dict()
    made = CLIPVisionModel.from_pretrained(tmp_path / "tower", dtype="auto").state_dict()
    first = made["embeddings.patch_embedding.weight"]
    assert torch.equal(first, archive["visual.conv1.weight"].to(first.dtype))
    width = archive["visual.transformer.resblocks.0.attn.in_proj_weight"].shape[1]
    for index, name in enumerate(("q_proj", "k_proj", "v_proj")):
        theirs = archive["visual.transformer.resblocks.0.attn.in_proj_weight"][index * width : (index + 1) * width]
        ours = made[f"encoder.layers.0.self_attn.{name}.weight"]
        assert torch.equal(ours, theirs.to(ours.dtype))
