"""From a recipe to its data: tables, their mixture, and what is kept to validate with."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmtune.core.errors import DataError, RecipeError, UsageError
from mmtune.data.dataset import load_samples
from mmtune.data.sample import Sample
from mmtune.model.modeling import MMTuneModel
from mmtune.model.processing import MMTuneProcessor
from mmtune.train.batching import Batching, RowLengths
from mmtune.train.demo import cache_folder, demo_data
from mmtune.train.display import Display
from mmtune.train.feed import Encoding, Feed, Mixture, Table
from mmtune.train.lengths import measure_rows
from mmtune.train.recipe import Recipe

_VALIDATION_ROWS = 512  # of a prepared folder's own split; a validation set that is named counts in full
_KEPT_BYTES = 512 * 1024**2  # of prepared media that stay in memory for the next epochs


@dataclass(frozen=True)
class Data:
    """What is learnt from, what is validated with, and a name for both.

    Attributes:
        measure: Gives the lengths of all rows that are learnt from.
    """

    feed: Feed
    validation: Feed | None
    rows: int
    fingerprint: str
    measure: Callable[[], RowLengths]
    rejected: tuple[dict[str, Any], ...] = ()

    def share(self, rank: int, size: int) -> None:
        """Make this the part of one of ``size`` processes."""
        for feed in (self.feed, self.validation):
            if feed is not None:
                feed.rank, feed.size = rank, size


def make_data(
    recipe: Recipe, verb: str, model: MMTuneModel, processor: MMTuneProcessor, device: torch.device, display: Display
) -> Data:
    """Open the data and decide the order of everything.

    Raises:
        DataError: No rows, or rows that cannot be read.
    """
    tables, weights, validation = _tables(recipe, verb, display)
    mixture = Mixture(tables, weights, recipe.train.seed)
    options = _encode_options(recipe, model, processor, display)
    workers = _workers(recipe.data.workers, device)
    keeps_media = not recipe.data.cache_features  # features are kept instead
    keep = _KEPT_BYTES if keeps_media and not workers and _repeats(recipe, mixture) else 0
    prints = [_fingerprint(table) for table in tables]
    cache = cache_folder(recipe.data.cache)
    measure = partial(measure_rows, mixture, tuple(prints), processor, options, cache)
    batching = _batching(recipe, mixture, measure, display)
    packing = recipe.train.packing
    encoding = Encoding(mixture, processor, options, keep, packing=packing)
    feed = Feed(encoding, mixture, batching, workers, device.type == "cuda")
    checked = None
    if validation is not None and len(validation):
        fixed = Mixture([validation], [1.0], 0)
        prints.append(_fingerprint(validation))
        own = partial(measure_rows, fixed, prints[-1:], processor, options, cache)
        alone = replace(_batching(recipe, fixed, own, display), accumulation=1)
        encoding = Encoding(fixed, processor, options, _KEPT_BYTES // 4 * keeps_media, packing=packing)
        checked = Feed(encoding, fixed, alone, 0)
    rejected = tuple(row.to_json() for table in tables for row in getattr(table, "rejected", ()))
    return Data(feed, checked, len(mixture), " ".join(prints), measure, rejected)


def _batching(recipe: Recipe, mixture: Mixture, measure: Callable[[], RowLengths], display: Display) -> Batching:
    """How the recipe puts rows together; rows are only measured where their length matters."""
    train = recipe.train
    grouping = train.grouping or ("none" if train.tokens_per_batch is None else "length")
    plain = Batching(train.batch_size, train.accumulation, grouping=grouping, seed=train.seed, packed=train.packing)
    if grouping == "none" and train.tokens_per_batch is None:
        return plain
    display.phase("lengths")
    lengths = measure()
    longest = int(np.argmax(np.maximum(lengths.positions, lengths.media)))
    needed = int(max(lengths.positions[longest], lengths.media[longest]))
    if train.tokens_per_batch is not None and needed > train.tokens_per_batch:
        sample = mixture.row(longest)
        raise RecipeError(
            f"Row '{sample.id}' has {needed} positions, train.tokens_per_batch is {train.tokens_per_batch}.",
            where=recipe.where("train.tokens_per_batch"),
            fix=f"--set train.tokens_per_batch={needed}, or leave long rows out with data.overlong=drop and a smaller "
            "data.max_length",
        )
    return replace(plain, tokens=train.tokens_per_batch, lengths=lengths)


def _fingerprint(table: Table) -> str:
    return str(getattr(table, "fingerprint", ""))


def _repeats(recipe: Recipe, mixture: Mixture) -> bool:
    """Whether some rows are seen more than once."""
    train = recipe.train
    by_epochs = train.epochs * mixture.epoch_size
    if train.tokens_per_batch is not None:
        return by_epochs > len(mixture)
    by_steps = (train.max_steps or by_epochs) * train.batch_size * train.accumulation
    return min(by_epochs, by_steps) > len(mixture)


def _workers(given: int | None, device: torch.device) -> int:
    """Preparing pictures beside an accelerator is worth processes of its own; on the CPU they only compete with it."""
    wanted = given if given is not None else (0 if device.type == "cpu" else 4)
    return min(wanted, os.cpu_count() or 1)


def _tables(recipe: Recipe, verb: str, display: Display) -> tuple[list[Table], list[float], Table | None]:
    if not recipe.data.train:
        folder = demo_data(recipe.data.cache)
        name = "pretrain.json" if verb == "pretrain" else "train.json"
        display.note(f"No data is named: training on mmtune's own drawn pictures, {folder / name}")
        validation = (
            _named_validation(recipe) if recipe.data.validation is not None else _open(recipe, folder / "val.json")
        )
        return [_open(recipe, folder / name)], [1.0], validation
    tables = [_open(recipe, source.path, limit=source.limit, split="train") for source in recipe.data.train]
    validation = _named_validation(recipe)
    if validation is None and recipe.data.validation is None:
        own = [table.validation for table in tables if getattr(table, "validation", None) is not None]
        validation = _First(_Joined(own), _VALIDATION_ROWS) if own else None
    return tables, [source.weight for source in recipe.data.train], validation


def _named_validation(recipe: Recipe) -> Table | None:
    if not recipe.data.validation:
        return None
    tables = [_open(recipe, source.path, limit=source.limit, split="train") for source in recipe.data.validation]
    # A folder that was prepared with a validation split means that split; a file or an unsplit folder means all of it.
    return _Joined([table if table.validation is None else table.validation for table in tables])


def _open(recipe: Recipe, path: str | Path, *, limit: int | None = None, split: str | None = None) -> Any:
    data = recipe.data
    table = load_samples(
        path,
        media_root=data.media_root,
        cache=data.cache,
        split=split,
        limit=limit,
        max_bad_fraction=data.max_bad_fraction,
        allow_urls=data.allow_urls,
        allow_outside=data.allow_outside,
    )
    if not len(table):
        raise DataError("The data has no rows.", where=str(path), fix="give a file or folder with conversations")
    return table


def _encode_options(recipe: Recipe, model: MMTuneModel, processor: MMTuneProcessor, display: Display) -> dict[str, Any]:
    data, positions = recipe.data, model.host.max_positions
    try:
        processor.template_of(data.template)
    except UsageError as error:
        where = recipe.where("data.template")
        raise UsageError(error.message, where=where, fix=error.fix, allowed=error.allowed) from error
    length = data.max_length
    if positions is not None and (length is None or length > positions):
        if length is not None:
            display.note(
                f"data.max_length {length} is beyond the {positions} positions of the language model: using {positions}"
            )
        length = positions
    return {"max_length": length, "overlong": data.overlong, "template": data.template}


class _Joined:
    """Tables one after the other."""

    def __init__(self, tables: Sequence[Table]) -> None:
        self._tables = list(tables)
        self.fingerprint = " ".join(str(getattr(table, "fingerprint", "")) for table in tables)

    def __len__(self) -> int:
        return sum(len(table) for table in self._tables)

    def __getitem__(self, index: int) -> Sample:
        for table in self._tables:
            if index < len(table):
                return table[index]
            index -= len(table)
        raise IndexError(index)


class _First:
    """The first rows of a table."""

    def __init__(self, table: _Joined, count: int) -> None:
        self._table = table
        self._count = count
        self.fingerprint = table.fingerprint

    def __len__(self) -> int:
        return min(len(self._table), self._count)

    def __getitem__(self, index: int) -> Sample:
        return self._table[index]
