"""What a host tells about a model, what it refuses, and encoders as hosts."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from mmtune.core.conditioning import Slot
from mmtune.core.errors import NotPossibleError
from mmtune.hosts.host import Host, attach_deltas
from mmtune.hosts.layout import LAYOUTS
from tests.hosts.families import VARIANTS, all_sites, make, merged, prompts, random_deltas
from tests.tiny import VOCAB_SIZE, tiny_lm, tiny_vision


@pytest.mark.parametrize("variant", VARIANTS)
def test_facts(variant: str) -> None:
    host = Host(make(variant))
    assert (host.hidden_size, host.num_layers, host.vocab_size) == (32, 2, VOCAB_SIZE)
    assert host.max_positions == (None if variant == "bloom" else 512)  # ALiBi has no limit of its own
    assert host.embedding_size == (16 if variant == "opt-narrow-embedding" else 32)
    assert len(host.blocks()) == 2


def test_every_decoder_of_the_tables_is_tested() -> None:
    encoders = {"clip_vision_model", "siglip_vision_model", "dinov2"}
    assert set(LAYOUTS) - encoders - {"gpt_oss"} <= {family for family, _ in VARIANTS.values()}


def test_grouped_heads_make_k_and_v_rectangular() -> None:
    sites = {site.name: site for site in all_sites(Host(make("llama")))}
    assert [sites[f"layers.1.{kind}"].in_features for kind in "qkvom"] == [32] * 5
    assert [sites[f"layers.1.{kind}"].out_features for kind in "qkvom"] == [32, 16, 16, 32, 32]


def test_the_inner_model_is_a_host_too() -> None:
    model = tiny_lm("llama")
    assert Host(model.model).blocks() is Host(model).blocks()


def test_resized_embeddings_are_seen() -> None:
    model = tiny_lm("llama")
    model.resize_token_embeddings(VOCAB_SIZE + 7)
    assert Host(model).vocab_size == VOCAB_SIZE + 7


def test_fused_experts_have_no_mlp_site() -> None:
    host = Host(tiny_lm("gpt_oss"))
    assert host.site(1, "q").out_features == 32
    with pytest.raises(NotPossibleError, match=r"gpt_oss has no m site: its experts are bare parameters") as caught:
        host.site(1, "m")
    assert caught.value.where == "layers.1.m"


@torch.no_grad()
def test_experts_behind_one_tensor_have_one() -> None:
    model = tiny_lm("mixtral")
    host, slot, ids = Host(model), Slot(), prompts()
    sites = all_sites(host)
    perception = random_deltas(sites)
    expected = torch.cat([merged(model, perception, row)(ids[row : row + 1]).logits for row in range(2)])
    attach_deltas(host, sites, slot)
    with slot.bind(perception):
        assert (model(ids).logits - expected).abs().max() < 2e-4


def test_refuses_with_the_reason() -> None:
    host = Host(tiny_lm("olmo2"))
    with pytest.raises(NotPossibleError, match="normalises after attention"):
        host.site(0, "attention_norm")
    with pytest.raises(NotPossibleError, match="no layer 2"):
        host.site(2, "q")
    with pytest.raises(NotPossibleError, match="No site of kind 'gate'"):
        host.site(0, "gate")
    sliced = Host(tiny_lm("bloom", slow_but_exact=True, pretraining_tp=2))
    with pytest.raises(NotPossibleError, match="slices the weights"):
        sliced.site(0, "m")


def test_an_unknown_layout_is_named() -> None:
    host = Host(tiny_lm("openai-gpt"))
    assert host.vocab_size == VOCAB_SIZE  # enough for methods that need no sites
    with pytest.raises(NotPossibleError, match=r"'openai-gpt' model were not found: looked for model\.layers"):
        host.blocks()


def test_a_model_without_attention_has_no_sites() -> None:
    config = AutoConfig.for_model("mamba", hidden_size=16, num_hidden_layers=1, vocab_size=32, state_size=4)
    host = Host(AutoModelForCausalLM.from_config(config))
    with pytest.raises(NotPossibleError, match=r"Layer 0 of mamba has no module 'self_attn.q_proj'"):
        host.site(0, "q")


def test_a_layer_of_another_kind_is_named() -> None:
    """Hybrid models have layers without attention projections."""
    model = tiny_lm("llama")
    del model.model.layers[0].self_attn.q_proj
    host = Host(model)
    assert host.site(1, "q").out_features == 32
    with pytest.raises(NotPossibleError, match=r"Layer 0 of llama has no module 'self_attn.q_proj'"):
        host.site(0, "q")


@pytest.mark.parametrize("kind", ["clip", "siglip", "dinov2"])
@torch.no_grad()
def test_encoders_are_hosts(kind: str) -> None:
    model = tiny_vision(kind, num_hidden_layers=2)
    host, slot = Host(model), Slot()
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    sites = all_sites(host)
    perception = random_deltas(sites)
    expected = [merged(model, perception, row)(pixels[row : row + 1]).last_hidden_state[0] for row in range(2)]
    attach_deltas(host, sites, slot)
    with slot.bind(perception):
        found = model(pixels).last_hidden_state
    assert (found - torch.stack(expected)).abs().max() < 2e-4
    assert (host.num_layers, host.hidden_size, host.vocab_size, host.max_positions) == (2, 32, 0, None)
    norm = host.site(0, "attention_norm")
    assert isinstance(norm.first, torch.nn.LayerNorm)
    assert (norm.in_features, norm.out_features) == (32, 32)


@pytest.mark.parametrize("variant", ["llama", "gpt2", "opt"])
@torch.no_grad()
def test_lora_and_deltas_add_up(variant: str) -> None:
    """Hooks attached before PEFT stay on the base layers; merging the adapter afterwards changes nothing."""
    model = make(variant)
    host, slot, ids = Host(model), Slot(), prompts()
    sites = all_sites(host)
    attach_deltas(host, sites, slot)
    lora = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    torch.manual_seed(0)
    tuned = get_peft_model(model, lora).eval()
    with slot.bind(random_deltas(sites)):
        with tuned.disable_adapter():
            without = tuned(ids).logits
        apart = tuned(ids).logits
        tuned.merge_adapter()
        together = tuned(ids).logits
    assert (apart - without).abs().max() > 1e-2
    torch.testing.assert_close(apart, together, rtol=1e-4, atol=1e-4)
