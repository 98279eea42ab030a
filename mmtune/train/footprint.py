"""Bytes of a step by kind, for one of the processes that share a run.

On the CPU the C library and what is loaded with the first step count too, since they are part of the process.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass

from torch import nn

from mmtune.model.build import DTYPES
from mmtune.model.modeling import MMTuneModel
from mmtune.model.quantised import quantised_bytes
from mmtune.train.data_setup import Data
from mmtune.train.model_setup import bits_of
from mmtune.train.precision import base_dtype
from mmtune.train.recipe import Recipe
from mmtune.train.rehearsal import Cost, Shape, rehearse

_MOMENTS = 2  # numbers that AdamW keeps of each trained one
_FLOAT32 = 4
_SMALL, _BLOCK = 4096, 256  # bitsandbytes: smaller tensors keep float32 moments; larger ones a constant a block
# Measured, docs/adr/0021: what a process grows by with the first step of any model, and the share of a step's tensors
# that glibc's heap keeps in holes, since a freed block is a little too small for the next aligned one of its size.
_LIBRARIES = 50 * 2**20
_HOLES = 0.7


@dataclass(frozen=True)
class Memory:
    """Bytes at the worst moment of a step, by kind.

    Attributes:
        encoder: Most while the encoders run; part of no sum, since it is over before the rest begins.
        libraries: Code and tables that the first step brings in; none on accelerators, whose reserve has them.
        holes: What the C library's heap holds without using it; none on accelerators.
        media: Prepared media that stay for the next epochs; none on accelerators, whose data processes keep none.
        offloaded: In CPU memory beside an accelerator; part of no sum.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    encoder: int
    libraries: int
    holes: int
    media: int
    offloaded: int
    total: int

    @property
    def tensors(self) -> int:
        """What counts on an accelerator."""
        return self.total - self.libraries - self.holes - self.media


@dataclass(frozen=True)
class Held:
    """Bytes that are there from step to step."""

    weights: int
    gradients: int
    optimizer: int
    offloaded: int


def memory_of(
    recipe: Recipe, precision: str, model: MMTuneModel, shape: Shape, kind: str = "cpu", kept: int = 0
) -> tuple[Memory, Cost]:
    """Memory of a step by kind; the model, on the meta device, is turned into the dtype that the step computes in.

    Args:
        shape: Of a micro-batch of one process.
        kind: ``cpu`` or ``cuda``.
        kept: Bytes of prepared media that stay in memory, see :func:`kept_bytes`.
    """
    held = held_bytes(recipe, precision, model)
    full_gradients = _trained(model) * _FLOAT32
    dtype = DTYPES[base_dtype(precision, [])]
    workspace = _largest_quantised(recipe, model) * dtype.itemsize  # one matrix at a time is computed with
    model.to(dtype)
    checkpointing = recipe.train.gradient_checkpointing
    whole = None
    if kind == "cpu" and checkpointing:
        model.activation_checkpointing_disable()
        whole = rehearse(model, shape)
    cost = rehearse(model, shape, checkpointing=checkpointing)
    during = cost.with_gradients - (full_gradients - held.gradients)
    if recipe.train.accumulation > 1:  # gradients of earlier micro-batches are there all the time
        during = cost.activations + cost.logits + held.gradients
    during = max(during, held.gradients) + workspace
    passing = whole or cost  # blocks that run again pass through the heap too, one at a time
    holes = int(holes_share() * (passing.activations + passing.logits)) if kind == "cpu" else 0
    holes = max(0, holes - held.optimizer)  # moments are made when the first backward has left its holes
    libraries, media = (_LIBRARIES, kept) if kind == "cpu" else (0, 0)
    memory = Memory(
        weights=held.weights,
        gradients=held.gradients,
        optimizer=held.optimizer,
        activations=max(0, during - held.gradients - cost.logits),
        logits=cost.logits,
        encoder=cost.encoder,
        libraries=libraries,
        holes=holes,
        media=media,
        offloaded=held.offloaded,
        total=held.weights + held.optimizer + during + libraries + holes + media,
    )
    return memory, cost


def kept_bytes(data: Data, shape: Shape) -> int:
    """Prepared media that stay in memory once every row was seen, rows having those of a micro-batch's mean row."""
    batch = sum(len(owners) * sum(t.nbytes for t in raw.values()) for raw, owners in shape.media.values())
    feeds = [feed for feed in (data.feed, data.validation) if feed is not None]
    return sum(min(feed.encoding.keep_bytes, len(feed.mixture) * batch // shape.samples) for feed in feeds)


def holes_share() -> float:
    """Holes in the heap as a share of what passes through it; no other allocator than glibc's was measured."""
    return _HOLES if platform.libc_ver()[0] == "glibc" else 0.0


def rows_of_process(recipe: Recipe, rows: int) -> int:
    """Rows of a micro-batch that one process takes, as ``team.share_of`` shares them out."""
    size = recipe.run.num_processes
    return rows if recipe.train.accumulation % size == 0 else -(-rows // size)


def moment_bytes(numbers: int, kind: str) -> int:
    """Bytes of both moments of a tensor."""
    if kind == "adamw_8bit" and numbers >= _SMALL:
        return _MOMENTS * (numbers + _FLOAT32 * -(-numbers // _BLOCK))
    return _MOMENTS * numbers * _FLOAT32


def _trained(model: MMTuneModel) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def held_bytes(recipe: Recipe, precision: str, model: MMTuneModel) -> Held:
    """Weights, gradients and moments of one process, by the strategy that shares them out."""
    run, itemsize = recipe.run, DTYPES[base_dtype(precision, [])].itemsize
    moments = sum(moment_bytes(p.numel(), recipe.train.optimizer) for p in model.parameters() if p.requires_grad)
    gradients, copies = _trained(model) * _FLOAT32, _trained(model) * itemsize if itemsize < _FLOAT32 else 0
    weights = weight_bytes(recipe, model)
    size, strategy = run.num_processes, run.strategy
    if size == 1 or strategy == "ddp":  # autocast's own copies of what is trained are kept until the step is over
        return Held(weights + copies, gradients, moments, 0)
    if strategy == "zero2":
        away = (gradients + moments) // size if run.offload else 0
        return Held(weights + copies, 0 if away else gradients // size, 0 if away else moments // size, away)
    whole = sum(p.numel() * p.element_size() for p in model.encoders.parameters())  # encoders are not shared out
    share = (weights - whole) // size
    gathered = _gathered(model)
    away = share + (gradients + moments) // size if run.offload else 0
    kept = whole + gathered + (0 if away else share)
    return Held(kept, 0 if away else gradients // size, 0 if away else moments // size, away)


def _gathered(model: MMTuneModel) -> int:
    """Most bytes of weights that are put together at once: a block, the next one, and what is outside of blocks."""
    shared = {id(p): p.numel() * p.element_size() for p in model.parameters()}
    for parameter in model.encoders.parameters():
        shared.pop(id(parameter), None)
    if model.method.runs_language_model:  # one unit
        return sum(shared.values())
    blocks = [sum(shared[id(p)] for p in block.parameters()) for block in model.host.blocks()]
    return sum(shared.values()) - sum(blocks) + 2 * max(blocks)


def weight_bytes(recipe: Recipe, model: MMTuneModel) -> int:
    """Bytes of all weights and buffers, matrices of quantised blocks with their constants."""
    stored = sum(tensor.numel() * tensor.element_size() for tensor in [*model.parameters(), *model.buffers()])
    bits = bits_of(recipe)
    if bits is None:
        return stored
    for matrix in _quantised(model):
        stored += quantised_bytes(*matrix.shape, bits, recipe.tune.quantiser) - matrix.numel() * matrix.element_size()
    return stored


def _largest_quantised(recipe: Recipe, model: MMTuneModel) -> int:
    return max((m.numel() for m in _quantised(model)), default=0) if bits_of(recipe) is not None else 0


def _quantised(model: MMTuneModel) -> list[nn.Parameter]:
    """The matrices that are replaced: those of the language model's blocks, LoRA's left out."""
    own = set(map(id, model.roles()["language"]))
    return [p for block in model.host.blocks() for p in block.parameters() if p.dim() == 2 and id(p) in own]
