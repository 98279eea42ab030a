"""A fast forward pass over the weights of a small Llama, for rows of one context and several short turns.

Same arithmetic as the model of transformers; but attention is only computed where a turn may look (the context and
itself), and everything runs in bfloat16 except the residual stream.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaForCausalLM

HIDDEN = -30000.0


@dataclass(frozen=True)
class Layout:
    """Where the turns are: ``context`` places, then ``turns`` of ``width``; ``joined``: all look at all before."""

    context: int
    turns: int
    width: int
    masks: tuple[Tensor, ...]
    cosine: Tensor
    sine: Tensor

    @property
    def joined(self) -> bool:
        """Whether one mask [rows, 1, length, length] governs everything."""
        return len(self.masks) == 1


def make_layout(valid: Tensor, context: int, turns: int, joined: bool, theta: float, head: int) -> Layout:
    """Masks and rotations for rows with the given valid places [rows, length]."""
    rows, length = valid.shape
    width = (length - context) // turns
    counted = valid.long().cumsum(1) - 1
    if joined:
        mask = torch.ones(length, length, dtype=torch.bool).tril() & valid[:, None, :]
        masks: tuple[Tensor, ...] = (_additive(mask | torch.eye(length, dtype=torch.bool))[:, None],)
        position = counted
    else:
        first, later = valid[:, :context], valid[:, context:].reshape(rows, turns, width)
        inner = torch.ones(width, width, dtype=torch.bool).tril() & later[:, :, None, :]
        front = torch.ones(context, context, dtype=torch.bool).tril() & first[:, None, :]
        masks = (
            _additive(front | torch.eye(context, dtype=torch.bool))[:, None],
            _additive(first)[:, None, None, None],
            _additive(inner | torch.eye(width, dtype=torch.bool))[:, None],
        )
        inside = later.long().cumsum(2) - 1 + first.sum(1)[:, None, None]
        position = torch.cat([counted[:, :context], inside.reshape(rows, -1)], 1)
    frequency = theta ** (-torch.arange(0, head, 2).float() / head)
    angle = position.clamp(min=0)[..., None].float() * frequency
    angle = torch.cat([angle, angle], -1)[:, None]
    return Layout(context, turns, width, masks, angle.cos().bfloat16(), angle.sin().bfloat16())


def _additive(mask: Tensor) -> Tensor:
    return torch.zeros(mask.shape, dtype=torch.bfloat16).masked_fill_(~mask, HIDDEN)


def forward(
    model: LlamaForCausalLM, embeds: Tensor, layout: Layout, added: Tensor | None = None, depth: int = 0
) -> tuple[Tensor, list[Tensor]]:
    """Final normed hidden states [rows, length, width], and the residual stream before each layer.

    ``added`` joins the residual stream before layer ``depth``.
    """
    state, before = embeds, []
    heads = model.config.num_attention_heads
    for index, layer in enumerate(model.model.layers):
        if added is not None and index == depth:
            state = state + added
        before.append(state)
        state = state + _attention(layer.self_attn, _norm(state, layer.input_layernorm), layout, heads)
        hidden = _norm(state, layer.post_attention_layernorm)
        mlp = layer.mlp
        both = functional.linear(hidden, torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]).bfloat16())
        gate, up = both.chunk(2, -1)
        state = state + functional.linear(functional.silu(gate) * up, mlp.down_proj.weight.bfloat16())
    return _norm(state, model.model.norm), before


def _norm(state: Tensor, norm: nn.Module) -> Tensor:
    return functional.rms_norm(state, (state.shape[-1],), norm.weight, norm.variance_epsilon).bfloat16()


def _rotate(x: Tensor, layout: Layout) -> Tensor:
    left, right = x.chunk(2, -1)
    return x * layout.cosine + torch.cat([-right, left], -1) * layout.sine


def _attention(attention: nn.Module, hidden: Tensor, layout: Layout, heads: int) -> Tensor:
    weight = torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]).bfloat16()
    rows, length, _ = hidden.shape
    packed = functional.linear(hidden, weight).view(rows, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
    query, key, value = _rotate(packed[0] * attention.scaling, layout), _rotate(packed[1], layout), packed[2]
    mixed = _mix(query, key, value, layout).transpose(1, 2).reshape(rows, length, -1)
    return functional.linear(mixed, attention.o_proj.weight.bfloat16())


def _mix(query: Tensor, key: Tensor, value: Tensor, layout: Layout) -> Tensor:
    if layout.joined:
        return (query @ key.transpose(-1, -2) + layout.masks[0]).softmax(-1) @ value
    split, turns, width = layout.context, layout.turns, layout.width
    rows, heads, _, size = query.shape
    past, kept = key[:, :, :split].transpose(-1, -2), value[:, :, :split]
    front = (query[:, :, :split] @ past + layout.masks[0]).softmax(-1) @ kept
    asking = query[:, :, split:].reshape(rows, heads, turns * width, size)
    own_key = key[:, :, split:].reshape(rows, heads, turns, width, size)
    own_value = value[:, :, split:].reshape(rows, heads, turns, width, size)
    outer = (asking @ past).view(rows, heads, turns, width, split) + layout.masks[1]
    inner = asking.view(rows, heads, turns, width, size) @ own_key.transpose(-1, -2) + layout.masks[2]
    weights = torch.cat([outer, inner], -1).softmax(-1)
    far = weights[..., :split].reshape(rows, heads, turns * width, split) @ kept
    near = (weights[..., split:] @ own_value).reshape(rows, heads, turns * width, size)
    return torch.cat([front, far + near], 2)
