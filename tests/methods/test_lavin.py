"""LaVIN on any base: its size by formula, what its routes depend on, and the decision token that runs alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, LlamaConfig, LlamaForCausalLM

from mmtune.core.errors import NotPossibleError, UsageError
from mmtune.hosts.host import Host
from mmtune.methods.lavin import PICTURE, TEXT, LaVIN, LaVINSettings
from mmtune.modalities.image import ImageModality, ImageSettings
from mmtune.model.build import build_model
from tests.tiny import save_tiny_lm, save_tiny_vision


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("parts")
    return {
        "lm": save_tiny_lm(folder / "lm"),
        **{kind: save_tiny_vision(folder / kind, kind) for kind in ("clip", "siglip", "dinov2")},
    }


def build(parts: dict[str, str], vision: str = "clip", *, woken: bool = True, **settings: Any) -> Any:
    model, _ = build_model(
        base=parts["lm"], encoders={"image": parts[vision]}, method="lavin", settings=settings, template="lavin"
    )
    if woken:
        torch.manual_seed(1)
        for parameter in model.method.parameters():
            nn.init.normal_(parameter, std=0.3)
    return model.eval()


def media(owner: list[int], seed: int = 0) -> dict[str, dict[str, Tensor]]:
    pixels = torch.randn(len(owner), 3, 16, 16, generator=torch.Generator().manual_seed(seed))
    return {"image": {"pixel_values": pixels, "owner": torch.tensor(owner)}}


@pytest.mark.parametrize(
    ("width", "layers", "temperature", "count"), [(4096, 32, 10.0, 3_781_296), (5120, 40, 5.0, 5_390_080)]
)
def test_published_sizes(width: int, layers: int, temperature: float, count: int) -> None:
    """On the meta device, where nothing is allocated."""
    vision = CLIPVisionConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, patch_size=14)
    wanted = ImageSettings(**LaVIN.modality_settings["image"])
    modality = ImageModality("clip", None, wanted, vision, CLIPImageProcessorPil())
    assert modality.num_positions == 6
    with torch.device("meta"):
        config = LlamaConfig(hidden_size=width, num_hidden_layers=layers, num_attention_heads=width // 128)
        lm = LlamaForCausalLM(config)
        method = LaVIN(LaVINSettings(temperature=temperature), Host(lm), {"image": modality})
    assert sum(parameter.numel() for parameter in method.parameters()) == count
    adapter = (width * 8 + 8) + 2 * (width * 4 + width) + (2 * width + 2)
    language = sum(parameter.numel() for parameter in method.adapters["language"].parameters())
    assert language == layers * adapter


@pytest.mark.parametrize("vision", ["clip", "siglip", "dinov2"])
def test_encoders_of_each_kind(parts: dict[str, str], vision: str) -> None:
    """What is tapped without a class token are the means over patches; three blocks are tapped after the last."""
    model = build(parts, vision)
    with torch.no_grad():
        seen = model.perceive(media([0, 2]), 3)
        plain = build(parts, vision, woken=False)
        states = plain.encoders["image"](media([0, 2])["image"]["pixel_values"], output_hidden_states=True)
        last = states.hidden_states[3]
        wanted = last.mean(1) if vision == "siglip" else last[:, 0]
        found, _, _ = plain.modalities["image"].encode(plain.encoders["image"], media([0, 2])["image"])
    assert seen.tokens["image"].shape == (2, 32)
    torch.testing.assert_close(found[:, 0], wanted)


def test_routes_say_whether_there_is_a_picture_and_nothing_else(parts: dict[str, str]) -> None:
    model = build(parts)
    with torch.no_grad():
        first = model.perceive(media([0, 2]), 3).routes
        other = model.perceive(media([0, 2], seed=5), 3).routes
        none = model.perceive(None, 2).routes
    assert list(first) == ["layers.0.attention_norm", "layers.1.attention_norm"]
    for name, routes in first.items():
        assert torch.equal(routes, other[name])
        torch.testing.assert_close(routes[0], routes[2])
        torch.testing.assert_close(routes[1], none[name][0])
        assert not torch.allclose(routes[PICTURE - 1], routes[TEXT + 1], atol=1e-4)


def test_a_picture_does_not_depend_on_its_neighbours(parts: dict[str, str]) -> None:
    """It does with ``batch0``, which repeats the published code."""
    given = media([0, 1])
    alone = {"image": {"pixel_values": given["image"]["pixel_values"][1:], "owner": torch.tensor([0])}}
    for routing in ("per_sample", "batch0"):
        model = build(parts, routing=routing)
        with torch.no_grad():
            together = model.perceive(given, 2).tokens["image"][1]
            by_itself = model.perceive(alone, 1).tokens["image"][0]
        assert torch.allclose(together, by_itself, atol=1e-5) == (routing == "per_sample")


def test_the_decision_token_may_run_alone(parts: dict[str, str]) -> None:
    """Logits and gradients equal those of a sequence that begins with the token, behind the published mask.

    What differs is rounding of the rotations, which transformers computes in float32.
    """
    found, wanted = build(parts, dropout=0.0).double(), build(parts, dropout=0.0).double()
    for model in (found, wanted):
        model.set_trainable(["method"])
    ids = torch.randint(4, 200, (2, 7), generator=torch.Generator().manual_seed(0))
    ids[0, 1] = found.placeholder_ids["image"]
    given = media([0])
    given["image"]["pixel_values"] = given["image"]["pixel_values"].double()
    logits = found(input_ids=ids, media=given).logits
    expected = in_sequence(wanted, ids, given)
    torch.testing.assert_close(logits, expected, atol=1e-6, rtol=0)
    for output in (logits, expected):
        output.square().sum().backward()
    for (name, left), right in zip(found.method.named_parameters(), wanted.method.parameters(), strict=True):
        assert left.grad is not None, name
        assert left.grad.any(), name
        torch.testing.assert_close(left.grad, right.grad, atol=1e-5 * float(right.grad.abs().max()), rtol=0)


def in_sequence(model: Any, ids: Tensor, given: Any) -> Tensor:
    """The published form: the token stands first, sees itself alone, is seen by nobody, and each layer routes on it."""
    method, layers = model.method, model.language_model.model.layers
    for layer, adapter in zip(layers, method.adapters["language"], strict=True):
        layer.input_layernorm.register_forward_hook(
            lambda module, args, x, adapter=adapter: adapter(x, adapter.route(x[:, :1]))
        )
    values, _, _ = model.modalities["image"].encode(model.encoders["image"], given["image"])
    embedded = model.host.input_embeddings(ids.masked_fill(ids >= model.host.vocab_size, 0))
    embedded = embedded.masked_scatter((ids >= model.host.vocab_size).unsqueeze(-1), method.projector(values))
    token = method.modality_embedding(torch.tensor([PICTURE, TEXT])).unsqueeze(1)
    length = ids.shape[1] + 1
    seen = torch.ones(length, length, dtype=torch.bool).tril()
    seen[1:, 0] = False
    mask = torch.zeros(length, length, dtype=torch.float64).masked_fill(~seen, float("-inf"))
    whole = torch.cat([token, embedded], dim=1)
    found: Tensor = model.language_model(inputs_embeds=whole, attention_mask=mask.expand(2, 1, -1, -1)).logits[:, 1:]
    return found


def test_dropout_meets_the_decision_of_each_sample(parts: dict[str, str]) -> None:
    model = build(parts, dropout=0.5).train()
    routes = model.perceive(None, 2).routes["layers.1.attention_norm"]
    assert not torch.equal(routes[0], routes[1])
    model.eval()
    routes = model.perceive(None, 2).routes["layers.1.attention_norm"]
    assert torch.equal(routes[0], routes[1])


def test_the_encoder_stays_frozen_while_its_adapters_learn(parts: dict[str, str]) -> None:
    model = build(parts).train()
    model.set_trainable(["method"])
    assert not model.encoders["image"].training
    ids = torch.full((1, 4), 7)
    ids[0, 1] = model.placeholder_ids["image"]
    model(input_ids=ids, labels=torch.full((1, 4), 7), media=media([0])).loss.backward()
    assert all(p.grad is not None and p.grad.any() for p in model.method.adapters["image"][0].parameters())
    assert all(parameter.grad is None for parameter in model.encoders.parameters())


def test_a_checkpoint_holds_the_method_alone(parts: dict[str, str], tmp_path: Path) -> None:
    model = build(parts)
    model.save_pretrained(str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {"adapter.safetensors", "config.json"}


def test_roles_cover_everything_once(parts: dict[str, str]) -> None:
    model = build(parts)
    found = [parameter for members in model.method.roles().values() for parameter in members]
    assert len(found) == len(set(map(id, found))) == len(list(model.method.parameters()))


def test_a_base_without_a_norm_before_attention_is_refused(parts: dict[str, str], tmp_path: Path) -> None:
    base = save_tiny_lm(tmp_path, "olmo2")
    with pytest.raises(NotPossibleError, match="normalises after attention"):
        build({**parts, "lm": base})


def test_an_odd_bottleneck_is_refused(parts: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="groups"):
        build(parts, adapter_dim=3)


def test_no_loop_over_samples(parts: dict[str, str]) -> None:
    """One call of the encoder and two of the language model, however many rows there are."""
    model = build(parts)
    calls: list[str] = []
    for name, part in (("encoder", model.encoders["image"]), ("language", model.language_model)):
        part.register_forward_pre_hook(lambda module, args, name=name: calls.append(name))
    for rows in (1, 4):
        calls.clear()
        ids = torch.full((rows, 5), 9)
        ids[:, 1] = model.placeholder_ids["image"]
        model(input_ids=ids, media=media(list(range(rows))))
        assert calls == ["encoder", "language", "language"]
