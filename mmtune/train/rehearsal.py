"""One step of a model on the meta device: what it takes in bytes and operations, before there is anything to run.

Shapes: B rows, T positions, H hidden size, K targets, N media items.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mmtune.core.errors import MMTuneError, NotPossibleError
from mmtune.core.perception import Perception
from mmtune.model.modeling import MMTuneModel
from mmtune.train.meter import META, Meter

_FLOAT32 = 4


@dataclass(frozen=True)
class Shape:
    """The sizes of a micro-batch.

    Args:
        media: Modality name to one prepared item, as ``Modality.load`` gives it, and the row of every item.
        padded: Whether some rows are shorter, so that attention needs a mask.
        packed: Samples that stand one behind the other in the one row, kept apart by their positions; 0: none do.
    """

    rows: int
    positions: int
    targets: int
    media: Mapping[str, tuple[Mapping[str, Tensor], list[int]]] = field(default_factory=dict)
    padded: bool = False
    packed: int = 0

    @property
    def samples(self) -> int:
        """Rows of the data."""
        return self.packed or self.rows


@dataclass(frozen=True)
class Cost:
    """What a step takes besides the weights.

    Attributes:
        activations: Most bytes at once, without logits and gradients of weights.
        logits: Bytes of the scores and of what the loss makes of them.
        with_gradients: Most bytes at once, gradients of weights included as they come.
        encoder: Most bytes at once while the encoders run.
        forward_flops: Reading the batch, all of it, encoders included.
        encoder_flops: Those of the encoders alone.
        step_flops: Forward and backward, recomputation included.
    """

    activations: int
    logits: int
    with_gradients: int
    encoder: int
    forward_flops: float
    encoder_flops: float
    step_flops: float


def rehearse(
    model: MMTuneModel,
    shape: Shape,
    *,
    checkpointing: bool = False,
    gradient_bytes: int = _FLOAT32,
    all_logits: bool = False,
) -> Cost:
    """Go through a training step with tensors that have a shape and no content.

    Args:
        model: On the meta device, in the dtype that the step computes in.
        checkpointing: Whether the language model's blocks run again in backward.
        all_logits: Run the LM head at all positions, as reading a prompt was counted in the literature.

    Raises:
        NotPossibleError: The method or the language model decides by values, which nothing here has.
    """
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    masks = shape.padded or shape.packed > 0 or _hides_slots(model, shape)
    try:
        with Meter(trained, gradient_bytes, full_masks=not masks) as meter:
            media = _media(model, shape)  # there until the step is over
            if checkpointing:
                _checkpoint_within(model, meter)
            seen = {name: model._encode(name, inputs) for name, inputs in media.items()}
            encoder, encoder_flops = meter.peak, meter.flops
            perception = Perception()
            if media or model.method.perceives_text:
                perception = model.method.perceive(seen, shape.rows)
            del seen
            scores = _scores(model, shape, perception, all_logits)
            forward_flops = meter.flops
            loss = nn.functional.cross_entropy(scores.float(), torch.empty(len(scores), dtype=torch.int64, device=META))
            logits = _logit_bytes(scores)
            del scores
            if loss.requires_grad:
                loss.backward()
    except RuntimeError as error:
        raise NotPossibleError(
            f"The step of '{model.config.method}' on {model.host.kind} cannot be rehearsed: {_first_line(error)}",
            fix="use --probe on the device itself, which runs it",
        ) from error
    for parameter in trained:
        parameter.grad = None
    return Cost(
        activations=max(0, meter.peak - logits),
        logits=logits,
        with_gradients=meter.peak_with_gradients,
        encoder=encoder,
        forward_flops=forward_flops,
        encoder_flops=encoder_flops,
        step_flops=meter.flops,
    )


def prompt_flops(model: MMTuneModel, text: int, items: Mapping[str, Any]) -> tuple[float, float]:
    """Operations of reading one prompt: of the language side, and of the encoders.

    Two a multiply-add, all of the prompt at once with logits everywhere, no halving for causal attention; norms,
    softmax and other element-wise work left out.

    Args:
        model: On the meta device.
        text: Tokens besides the media's placeholders.
        items: Modality name to one item that the prompt shows.
    """
    media = {name: (model.modalities[name].load(item), [0]) for name, item in items.items()}
    slots = sum(
        model.method.placeholders(name, model.modalities[name].positions(raw)) for name, (raw, _) in media.items()
    )
    cost = rehearse(model, Shape(1, text + slots, 1, media), all_logits=True)
    return cost.forward_flops - cost.encoder_flops, cost.encoder_flops


def _checkpoint_within(model: MMTuneModel, meter: Meter) -> None:
    """Let blocks that run again be counted as when they ran first."""

    @contextmanager
    def again(perception: Perception | None) -> Iterator[None]:
        with model.slot.bind(perception), meter.attention:
            yield

    def contexts() -> tuple[Any, Any]:
        return nullcontext(), again(model.slot.perception)

    model.checkpoint_language_model({"use_reentrant": False, "context_fn": contexts, "preserve_rng_state": False})


def _hides_slots(model: MMTuneModel, shape: Shape) -> bool:
    """Whether nothing attends to placeholders, of which there are some."""
    counts = (model.method.placeholders(n, model.modalities[n].positions(raw)) for n, (raw, _) in shape.media.items())
    return model.method.masked_slots and any(counts)


def _media(model: MMTuneModel, shape: Shape) -> dict[str, dict[str, Tensor]]:
    """Prepared items as often as they occur, their numbers without content."""
    media: dict[str, dict[str, Tensor]] = {}
    for name, (raw, owners) in shape.media.items():
        empty = {key: value.to(META) if value.is_floating_point() else value for key, value in raw.items()}
        collated = model.modalities[name].collate([empty] * len(owners))
        media[name] = {**collated, "owner": torch.tensor(owners, dtype=torch.int64)}
    return media


def _scores(model: MMTuneModel, shape: Shape, perception: Perception, all_logits: bool) -> Tensor:
    """``[K, V]``, or ``[B * T, V]`` with all logits."""
    host = model.host
    dtype = next(model.language_model.parameters()).dtype
    embeddings = torch.empty(shape.rows, shape.positions, host.embedding_size, dtype=dtype, device=META)
    for tokens in perception.tokens.values():
        place = torch.empty(shape.rows, shape.positions, 1, dtype=torch.bool, device=META).expand_as(embeddings)
        embeddings = embeddings.masked_scatter(place, tokens.to(dtype))
    options: dict[str, Any] = {"use_cache": False}
    if not shape.packed:
        options["attention_mask"] = torch.empty(shape.rows, shape.positions, dtype=torch.int64, device=META)
    if model._takes_positions:
        options["position_ids"] = torch.empty(shape.rows, shape.positions, dtype=torch.int64, device=META)
    targets = -(-shape.targets // shape.rows)  # of each row; meta tensors cannot tell which positions they are
    if model._slices_logits and not all_logits:
        options["logits_to_keep"] = targets
    with model.slot.bind(perception):
        logits: Tensor = model.language_model(inputs_embeds=embeddings, **options).logits
    return (logits if all_logits else logits[:, -targets:]).flatten(0, 1)


def _logit_bytes(scores: Tensor) -> int:
    """Scores, in float32 too where they are narrower, their logarithms and their gradient."""
    narrow = 0 if scores.element_size() == _FLOAT32 else scores.element_size()
    return int(scores.numel() * (narrow + 3 * _FLOAT32))


def _first_line(error: BaseException) -> str:
    text = error.message if isinstance(error, MMTuneError) else str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
