"""Bases in few bits: refused with what to install where bitsandbytes is missing, quantised for real where it runs."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import mmtune
from mmtune.core.errors import MissingExtraError, NotPossibleError
from mmtune.model import quantised
from mmtune.model.quantised import quantisation
from tests.tiny import save_tiny_lm, save_tiny_vision


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantised, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError) as caught:
        quantisation(4, torch.float32, torch.device("cpu"))
    assert caught.value.exit_code == 4
    assert caught.value.fix == 'pip install "mmtune[quant]"'


def test_on_a_device_that_it_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantised, "find_spec", lambda name: True)
    with pytest.raises(NotPossibleError, match="mps"):
        quantisation(4, torch.float32, torch.device("mps"))


def test_never_in_more_bits_than_asked_for() -> None:
    with pytest.raises(NotPossibleError, match="in 4 bits: no kernel"), quantised.quantising(4):
        raise RuntimeError("no kernel")
    with pytest.raises(RuntimeError), quantised.quantising(None):
        raise RuntimeError("something else")


def test_torchao_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantised, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError) as caught:
        quantisation(8, torch.float32, torch.device("cpu"), "torchao")
    assert caught.value.fix == 'pip install "mmtune[torchao]"'
    monkeypatch.setattr(quantised, "find_spec", lambda name: True)
    with pytest.raises(NotPossibleError, match="4 bits on the device 'cpu'"):
        quantisation(4, torch.float32, torch.device("cpu"), "torchao")


@pytest.mark.skipif(find_spec("torchao") is None, reason="needs torchao")
def test_eight_bits_by_torchao(tmp_path: Path) -> None:
    """The blocks alone are in integers, they give nearly the same scores, and an adapter finds its base again."""
    from torchao.quantization import Int8Tensor

    base, vision = save_tiny_lm(tmp_path / "lm"), save_tiny_vision(tmp_path / "vision")
    options = {"base": base, "encoders": {"image": vision}, "method": "vlora", "template": "vicuna_v1"}
    options["settings"] = {"dim": 32, "rank": 4, "depth": 1, "heads": 4, "types": "qkvom", "every": 1}
    plain, _ = mmtune.build_model(**options)
    model, processor = mmtune.build_model(**options, bits=8, quantiser="torchao")
    weight = model.language_model.model.layers[0].self_attn.q_proj.weight
    assert isinstance(weight, Int8Tensor)
    assert type(model.language_model.lm_head.weight.data) is torch.Tensor
    ids = torch.tensor([[1, 70, 80, 90]])
    with torch.no_grad():
        difference = (model(input_ids=ids).logits - plain(input_ids=ids).logits).abs().max()
    assert 0 < difference < 0.05
    assert model.eval().generate(ids, max_new_tokens=4, min_new_tokens=4).shape == (1, 4)
    model.add_lora(rank=2)
    model.set_trainable(["method", "lora"])
    model.train()(input_ids=ids, labels=ids).loss.backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert all(parameter.grad is not None for parameter in trained)
    model.save_pretrained(str(tmp_path / "saved"))
    processor.save_pretrained(tmp_path / "saved")
    for settings in ({}, {"bits": 8, "quantiser": "torchao"}):
        found, _ = mmtune.load(tmp_path / "saved", device="cpu", **settings)
        assert found.lora_names


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
@pytest.mark.parametrize("bits", [4, 8])
def test_the_blocks_alone_are_quantised(tmp_path: Path, bits: int) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 64, "head_dim": 16}
    base = save_tiny_lm(tmp_path / "lm", **sizes)
    vision = save_tiny_vision(tmp_path / "vision")
    model, processor = mmtune.build_model(
        base=base, encoders={"image": vision}, method="lavin", template="lavin", bits=bits
    )
    block = model.language_model.model.layers[0]
    assert block.self_attn.q_proj.weight.dtype in (torch.uint8, torch.int8)
    assert model.language_model.lm_head.weight.is_floating_point()
    assert model.language_model.model.embed_tokens.weight.is_floating_point()
    model.set_trainable(["method"])
    ids = torch.tensor([[1, 70, 80, 90]])
    assert model.eval().generate(ids, max_new_tokens=4, min_new_tokens=4).shape == (1, 4)
    model.train()(input_ids=ids, labels=ids).loss.backward()
    assert all(parameter.grad is not None for parameter in model.method.adapters["language"].parameters())
    model.save_pretrained(str(tmp_path / "saved"))
    processor.save_pretrained(tmp_path / "saved")
    assert mmtune.load(tmp_path / "saved")[0].language_model.model.layers[0].self_attn.q_proj.weight.dim() == 2
