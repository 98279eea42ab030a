"""Counting what a computation on the meta device would take: bytes alive at the same time, and operations.

Nothing is computed and nothing allocated: each operation only tells the shapes of its results. Bytes are counted where
torch makes tensors, so that what a kernel needs inside itself is not seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

META = torch.device("meta")


class Meter:
    """Counts while it is entered.

    Attributes:
        peak: Most bytes alive at once of all that was made inside, gradients of ``parameters`` left out.
        peak_with_gradients: The same with gradients as they come, in the parameter's own ``gradient_bytes``.
        kept: Bytes alive now, gradients left out.

    Args:
        parameters: Those whose gradients are counted apart.
        gradient_bytes: Of one element of a gradient.
        full_masks: Whether every position may be attended to, so that no mask is made.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter] = (), gradient_bytes: int = 4, *, full_masks: bool = True
    ) -> None:
        self.peak = self.peak_with_gradients = self.kept = 0
        self._gradients = 0
        self._gradient_bytes = gradient_bytes
        self._parameters = list(parameters)
        self._seen: dict[int, int] = {}  # storage -> its bytes
        self._attention = _MemoryEfficientAttention(full_masks)
        self._operations = _Operations(self._on_input, self._on_result)
        self._modes = (self._operations, self._attention)
        self._handles: list[Any] = []

    @property
    def attention(self) -> TorchFunctionMode:
        """To be entered once more where autograd runs a block again: function modes do not reach into backward."""
        return self._attention

    @property
    def flops(self) -> float:
        """Operations so far, two a multiply-add: matrix products, convolutions and attention, forward and backward."""
        return self._operations.flops + self._attention.flops

    def __enter__(self) -> Meter:
        self._handles = [p.register_post_accumulate_grad_hook(self._on_gradient) for p in self._parameters]
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(kind, error, trace)
        for handle in self._handles:
            handle.remove()

    def _on_input(self, tensor: Tensor) -> None:
        """What an operation reads and nobody made in here was there before: it counts nothing, nor do views of it."""
        if tensor.device == META:
            self._seen.setdefault(tensor.untyped_storage()._cdata, 0)

    def _on_result(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if tensor.device != META or key in self._seen:
            return
        self._seen[key] = storage.nbytes()
        weakref.finalize(storage, self._on_release, key)
        self.kept += self._seen[key]
        self._note()

    def _on_release(self, key: int) -> None:
        self.kept -= self._seen.pop(key, 0)

    def _on_gradient(self, parameter: nn.Parameter) -> None:
        if parameter.grad is None:
            return
        key = parameter.grad.untyped_storage()._cdata
        self.kept -= self._seen.get(key, 0)
        if key in self._seen:
            self._seen[key] = 0
        self._gradients += parameter.numel() * self._gradient_bytes
        self._note()

    def _note(self) -> None:
        self.peak = max(self.peak, self.kept)
        self.peak_with_gradients = max(self.peak_with_gradients, self.kept + self._gradients)


class _Operations(TorchDispatchMode):
    """Tells of every tensor that an operation reads and returns, and adds up what operations cost."""

    def __init__(self, read: Callable[[Tensor], None], made: Callable[[Tensor], None]) -> None:
        super().__init__()
        self._read, self._made = read, made
        self.flops = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor):
                self._read(leaf)
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._made(leaf)
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.flops += float(formula(*args, **(kwargs or {}), out_val=result))
        return result


class _MemoryEfficientAttention(TorchFunctionMode):
    """Attention as the kernels of real devices keep it: without its matrix of scores, which meta tensors would show.

    Questions about values, which meta tensors cannot answer, are whether masks are full, and answered so.
    """

    def __init__(self, full_masks: bool) -> None:
        super().__init__()
        self.flops = 0.0
        self._full_masks = full_masks

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        given = kwargs or {}
        if func is nn.functional.scaled_dot_product_attention and args[0].device == META:
            query, key, value = args[:3]
            mask = args[3] if len(args) > 3 else given.get("attn_mask")
            self.flops += _attention_flops(query, key, value)
            return _Attention.apply(query, key, value, mask, self)
        if func is Tensor.__bool__ and args[0].device == META:
            return self._full_masks
        return func(*args, **given)


class _Attention(torch.autograd.Function):
    """Keeps query, key, value, the result and one number a row, as flash attention does; and a mask as it adds it.

    Kernels add a mask in the dtype of the query: of a boolean one every call makes a copy of its own.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, counter: _MemoryEfficientAttention
    ) -> Tensor:
        result = query.new_empty(*query.shape[:-1], value.shape[-1])
        added = query.new_empty(mask.shape) if mask is not None and mask.dtype == torch.bool else mask
        row = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, result, row, added)
        ctx.counter = counter
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        query, key, value, _, _, _ = ctx.saved_tensors
        ctx.counter.flops += 2 * _attention_flops(query, key, value)
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None, None


def _attention_flops(query: Tensor, key: Tensor, value: Tensor) -> float:
    """Scores and weighted values, no halving for causal masks."""
    return 2.0 * query[..., 0].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1])
