"""What a processor makes: one encoded sample, and batches of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor

from mmtune.core.errors import DataError
from mmtune.data.markers import cut_at_markers
from mmtune.modalities.base import Modality
from mmtune.model.rendering import Segment
from mmtune.model.tokenization import PieceTokenizer

IGNORED = -100  # label of a position that is not trained


class OverlongError(DataError):
    """A sample with more positions than the limit allows."""

    code = "overlong"


class UntrainedError(DataError):
    """A sample without a token to train."""

    code = "nothing_to_train"


@dataclass(slots=True)
class Encoded:
    """One sample as ids, with its media loaded.

    Attributes:
        input_ids: Token ids; placeholder positions hold an id beyond the vocabulary.
        labels: As long as ``input_ids``, -100 where nothing is trained; empty for a prompt.
        media: Modality name to its loaded items in reading order.
        num_targets: Labels that are trained.
        dropped_turns: Leading assistant turns left out.
        truncated: Positions cut off at the end.
        media_end: Positions up to the last placeholder, which must not be cut.
    """

    id: str
    input_ids: list[int]
    labels: list[int]
    media: dict[str, list[dict[str, Tensor]]] = field(default_factory=dict)
    num_targets: int = 0
    dropped_turns: int = 0
    truncated: int = 0
    media_end: int = 0


class Batch(dict[str, Any]):
    """``input_ids``, ``attention_mask``, ``labels`` (all ``[B, T]``), ``media`` and ``ids``, as a plain nested dict."""


@dataclass(frozen=True, slots=True)
class Sequences:
    """Token ids of a rendered conversation, with the end of its last placeholder run."""

    input_ids: list[int]
    labels: list[int]
    media_end: int  # positions up to here must not be cut


def encode_segments(
    segments: Sequence[Segment],
    pieces: PieceTokenizer,
    markers: Mapping[str, str],
    placeholders: Mapping[str, Sequence[tuple[int, int]]],
    *,
    separate: bool = False,
) -> Sequences:
    """Turn rendered segments into ids and labels.

    Text between markers is tokenised piece by piece. A token is trained when a character of it lies in a trained
    segment; placeholders never are.

    Args:
        markers: Modality to marker.
        placeholders: Modality to the (id, count) of each of its items in reading order.
        separate: Tokenise each segment by itself too.

    Raises:
        DataError: Markers in the text do not match the items.
    """
    text = "".join(segment.text for segment in segments)
    trained = _trained_spans(segments)
    begins_itself = any(text.startswith(control) for control in _openings(pieces))
    input_ids = [] if begins_itself else list(pieces.opening)
    labels = [IGNORED] * len(input_ids)
    left = {name: list(items) for name, items in placeholders.items()}
    media_end = start = 0
    stretches = _stretches(segments, separate)
    for piece, modality in chain.from_iterable(cut_at_markers(stretch, markers) for stretch in stretches):
        if modality is not None:
            if not left.get(modality):
                raise _mismatch(modality, text.count(markers[modality]), len(placeholders.get(modality, ())), markers)
            token_id, count = left[modality].pop(0)
            input_ids += [token_id] * count
            labels += [IGNORED] * count
            media_end = len(input_ids)
        else:
            for token in pieces.tokens(piece):
                first, last = start + token.start, start + max(token.end, token.start + 1)
                input_ids.append(token.id)
                labels.append(token.id if _overlaps(trained, first, last) else IGNORED)
        start += len(piece)
    for modality, items in left.items():
        if items:
            raise _mismatch(modality, text.count(markers[modality]), len(placeholders[modality]), markers)
    if labels:
        labels[0] = IGNORED  # nothing comes before the first position to predict it from
    return Sequences(input_ids, labels, media_end)


def _stretches(segments: Sequence[Segment], separate: bool) -> list[str]:
    """The texts that are tokenised each by itself."""
    found: list[str] = []
    joins = False
    for segment in segments:
        if joins and not segment.apart:
            found[-1] += segment.text
        else:
            found.append(segment.text)
        joins = not (separate or segment.apart)
    return found


def _openings(pieces: PieceTokenizer) -> list[str]:
    bos = pieces.tokenizer.bos_token
    return [bos] if bos and pieces.tokenizer.bos_token_id in pieces.opening else []


def _trained_spans(segments: Sequence[Segment]) -> list[tuple[int, int]]:
    spans, position = [], 0
    for segment in segments:
        if segment.trained and segment.text:
            spans.append((position, position + len(segment.text)))
        position += len(segment.text)
    return spans


def _overlaps(spans: Sequence[tuple[int, int]], first: int, last: int) -> bool:
    return any(first < end and start < last for start, end in spans)


def _mismatch(modality: str, num_markers: int, num_items: int, markers: Mapping[str, str]) -> DataError:
    return DataError(
        f"{num_markers} marker{'s' * (num_markers != 1)} {markers[modality]} for {num_items} {modality} "
        f"item{'s' * (num_items != 1)}.",
        fix="write one marker for each item, and the marker nowhere else in the text",
    )


def collate(
    encoded: Sequence[Encoded],
    modalities: Mapping[str, Modality],
    pad_id: int,
    side: Literal["right", "left"] = "right",
) -> Batch:
    """Pad samples to one length and stack their media.

    Returns:
        A batch; ``labels`` only if the samples have them, ``media`` only with the modalities that occur. Each modality
        has ``owner`` ``[N]``: the row of each of its items.
    """
    length = max((len(row.input_ids) for row in encoded), default=0)
    batch = Batch(
        input_ids=_padded([row.input_ids for row in encoded], length, pad_id, side),
        attention_mask=_padded([[1] * len(row.input_ids) for row in encoded], length, 0, side),
    )
    if any(row.labels for row in encoded):
        batch["labels"] = _padded([row.labels for row in encoded], length, IGNORED, side)
    media: dict[str, dict[str, Tensor]] = {}
    for name, modality in modalities.items():
        raws = [raw for row in encoded for raw in row.media.get(name, ())]
        owners = [index for index, row in enumerate(encoded) for _ in row.media.get(name, ())]
        if raws:
            media[name] = {**modality.collate(raws), "owner": torch.tensor(owners, dtype=torch.int64)}
    if media:
        batch["media"] = media
    batch["ids"] = [row.id for row in encoded]
    return batch


def packed(batch: Batch) -> Batch:
    """The same rows one behind the other in a single row without padding; positions begin again with each.

    Language models that build their own mask from such positions keep the rows apart.
    """
    real = batch["attention_mask"].bool()  # [B, T]
    positions = real.long().cumsum(-1) - 1
    ids = batch["input_ids"][real].unsqueeze(0)
    labels = batch["labels"].clone()
    labels.scatter_(1, real.long().argmax(-1, keepdim=True), IGNORED)  # nothing of the row before predicts a first one
    found = Batch(
        {
            **batch,
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "labels": labels[real].unsqueeze(0),
            "position_ids": positions[real].unsqueeze(0),
        }
    )
    if "media" in batch:
        found["media"] = {
            name: {**inputs, "owner": torch.zeros_like(inputs["owner"])} for name, inputs in batch["media"].items()
        }
    return found


def row_lengths(batch: Batch) -> list[int]:
    """Positions of every row of a batch, padding left out; also of rows that stand one behind the other."""
    if len(batch["ids"]) == len(batch["input_ids"]):
        return [int(length) for length in batch["attention_mask"].sum(-1)]
    positions = batch["position_ids"][0]
    starts = (positions == 0).nonzero()[:, 0].tolist()
    return [end - start for start, end in zip(starts, [*starts[1:], len(positions)], strict=True)]


def _padded(rows: Sequence[list[int]], length: int, value: int, side: str) -> Tensor:
    filled = torch.full((len(rows), length), value, dtype=torch.int64)
    for index, row in enumerate(rows):
        if row:
            place = slice(0, len(row)) if side == "right" else slice(length - len(row), length)
            filled[index, place] = torch.tensor(row, dtype=torch.int64)
    return filled
