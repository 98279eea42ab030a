"""Deltas stay right in every way a model is called: checkpointing, cached decoding, beams, compilation, autocast."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from mmtune.core.conditioning import Slot
from mmtune.core.perception import LowRank, Perception
from mmtune.hosts.host import Host, attach_deltas
from tests.hosts.families import REQUIRED, SOME_FIRST, all_sites, make, prompts, random_deltas, take


def prepare(variant: str, batch: int = 2) -> tuple[PreTrainedModel, Slot, Perception]:
    model = make(variant)
    host, slot = Host(model), Slot()
    sites = all_sites(host)
    attach_deltas(host, sites, slot)
    return model, slot, random_deltas(sites, batch)


def rebinding(slot: Slot) -> Callable[[], tuple[Any, Any]]:
    """What a model gives to gradient checkpointing, so that the recomputation sees the perception of its forward."""

    def contexts() -> tuple[Any, Any]:
        return nullcontext(), slot.bind(slot.perception)

    return contexts


def losses(model: PreTrainedModel, slot: Slot, perceptions: list[Perception]) -> list[Tensor]:
    """Two forwards with different perceptions, before any backward."""
    found = []
    for seed, perception in enumerate(perceptions):
        with slot.bind(perception):
            ids = prompts(seed=seed)
            found.append(model(ids, labels=ids, use_cache=False).loss)
    return found


def gradients(variant: str, checkpointing: bool) -> list[Tensor]:
    model, slot, first = prepare(variant)
    second = random_deltas(all_sites(Host(model)), seed=5)
    leaves = [factor.requires_grad_() for p in (first, second) for d in p.deltas.values() for factor in (d.a, d.b)]
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": rebinding(slot)})
    torch.manual_seed(0)
    one, two = losses(model, slot, [first, second])
    (one + 2 * two).backward()
    return [leaf.grad for leaf in leaves] + [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("variant", SOME_FIRST)
def test_checkpointing_gives_the_same_gradients(variant: str) -> None:
    """Dropout off where the family has any: its random numbers are not what is tested here."""
    plain, checkpointed = gradients(variant, False), gradients(variant, True)
    for left, right in zip(plain, checkpointed, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6)


def decode(model: PreTrainedModel, ids: Tensor, **settings: Any) -> Tensor:
    fixed = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "pad_token_id": 3}
    mask = torch.ones_like(ids)
    return model.generate(inputs_embeds=model.get_input_embeddings()(ids), attention_mask=mask, **{**fixed, **settings})


@pytest.mark.parametrize("variant", SOME_FIRST)
@torch.no_grad()
def test_cached_decoding_equals_uncached(variant: str) -> None:
    model, slot, perception = prepare(variant)
    ids = prompts()
    with slot.bind(perception):
        cached = decode(model, ids)
        rows = ids
        for _ in range(8):
            rows = torch.cat([rows, _next(model, rows)], dim=1)
    assert torch.equal(cached, rows[:, ids.shape[1] :])


def _next(model: PreTrainedModel, rows: Tensor) -> Tensor:
    scores = model(rows, use_cache=False).logits[:, -1]
    scores[:, 2] = -torch.inf  # min_new_tokens forbids the end
    return scores.argmax(-1, keepdim=True)


@pytest.mark.parametrize("variant", SOME_FIRST)
@torch.no_grad()
def test_batched_beams_equal_single_ones(variant: str) -> None:
    model, slot, perception = prepare(variant)
    ids = prompts()
    with slot.bind(perception):
        batched = decode(model, ids, num_beams=3)
    for row in range(2):
        with slot.bind(take(perception, [row])):
            alone = decode(model, ids[row : row + 1], num_beams=3)
        assert torch.equal(batched[row], alone[0])


@contextmanager
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    try:
        yield
    finally:
        torch.compiler.reset()


@pytest.mark.parametrize("variant", ["llama", "opt", "gpt_neox", "phi3"])
def test_compiles_without_graph_breaks(variant: str) -> None:
    model, slot, first = prepare(variant)
    second = random_deltas(all_sites(Host(model)), seed=9)
    ids = prompts()
    graphs = []

    def count(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    with fresh_compiler(), torch.no_grad():
        compiled = torch.compile(model, backend=count, fullgraph=True)
        for perception in (first, second, first):
            with slot.bind(perception):
                expected = model(ids, use_cache=False).logits
                found = compiled(ids, use_cache=False).logits
            torch.testing.assert_close(found, expected)
    assert len(graphs) == 1  # a new picture is no reason to compile again


@pytest.mark.parametrize("variant", ["llama", "opt", "gpt2"])
@torch.no_grad()
def test_a_copy_reads_its_own_slot(variant: str) -> None:
    model, slot, perception = prepare(variant)
    with slot.bind(perception):
        expected = model(prompts()).logits
    twin, own = copy.deepcopy((model, slot))
    plain = twin(prompts()).logits
    with own.bind(perception):
        assert torch.equal(twin(prompts()).logits, expected)
        assert torch.equal(model(prompts()).logits, plain)  # which is not touched by the copy's


@torch.no_grad()
def test_autocast_keeps_the_width_of_the_projection() -> None:
    model, slot, perception = prepare("llama")
    widths = []
    Host(model).blocks()[0].self_attn.q_proj.register_forward_hook(lambda m, a, output: widths.append(output.dtype))
    with slot.bind(perception), torch.autocast("cpu", dtype=torch.bfloat16):
        model(prompts())
    assert widths == [torch.bfloat16]


@torch.no_grad()
def test_half_precision_model_with_full_precision_factors() -> None:
    model, slot, perception = prepare("qwen2")
    with slot.bind(perception):
        expected = model(prompts()).logits
        found = model.to(torch.bfloat16)(prompts()).logits
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).abs().max() < 0.1


@pytest.mark.parametrize("variant", REQUIRED)
@torch.no_grad()
def test_samples_do_not_mix(variant: str) -> None:
    """Permuting the batch permutes the outputs, and a sample with a zero A is the plain model."""
    model, slot, perception = prepare(variant)
    ids = prompts()
    plain = model(ids).logits
    keep = torch.tensor([1.0, 0.0]).view(2, 1, 1)
    half = Perception(deltas={name: LowRank(delta.a * keep, delta.b) for name, delta in perception.deltas.items()})
    with slot.bind(half):
        found = model(ids).logits
    with slot.bind(take(half, [1, 0])):
        swapped = model(ids.flip(0)).logits
    torch.testing.assert_close(found[1], plain[1])
    assert (found[0] - plain[0]).abs().max() > 1e-2
    torch.testing.assert_close(swapped.flip(0), found)
