"""Options that several verbs share, and checks of their values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from mmtune.core.errors import DataError, UsageError, nearest

DATA = Annotated[list[str] | None, typer.Option(metavar="PATH", help="Prepared folder or data file; repeatable.")]
MEDIA_ROOT = Annotated[list[str] | None, typer.Option(metavar="DIR", help="Where media are looked up; repeatable.")]
DEVICE = Annotated[str, typer.Option(metavar="D", help="auto, cpu, cuda, cuda:1, mps.")]
DTYPE = Annotated[str, typer.Option(metavar="T", help="auto, float32, bfloat16, float16.")]
MODEL = Annotated[
    str | None,
    typer.Option(
        metavar="DIR", help="Model folder or run. [default: newest finished run, else the bundled nano model]"
    ),
]
OUTPUT = Annotated[Path, typer.Option(metavar="DIR", help="Folder to write.")]
OVERWRITE = Annotated[bool, typer.Option("--overwrite", help="Replace what the output folder holds.")]
SEED = Annotated[int | None, typer.Option(metavar="N", min=0, help="Seed of everything random.")]
SET = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any other setting; repeatable.")]
POSITIVE = {"min": 1, "metavar": "N"}


def one_of(option: str, given: str, allowed: Sequence[str]) -> str:
    """A value checked against its few allowed ones, ``-`` and ``_`` being the same.

    Raises:
        UsageError: It is none of them; the message names the nearest.
    """
    for name in allowed:
        if given.lower().replace("-", "_") == name.lower().replace("-", "_"):
            return name
    guess = nearest(given, allowed)
    hint = f" Did you mean '{guess}'?" if guess else ""
    fix = f"{option} {guess or allowed[0]}"
    message = f"Unknown value '{given}'.{hint} Allowed: {', '.join(allowed)}."
    raise UsageError(message, where=option, fix=fix, allowed=allowed)


def readable(option: str, given: str | None) -> str | None:
    """A text as it was given.

    Raises:
        UsageError: It is none that can be encoded.
    """
    from mmtune.data.checks import check_text
    from mmtune.data.messages import RowError

    try:
        check_text(given or "")
    except RowError as error:
        raise UsageError(error.message, where=option, fix=error.fix) from error
    return given


def template_of(given: str | None) -> str | None:
    """The one spelling of a prompt format's name, None for the model's own.

    Raises:
        UsageError: No such format; the message names the nearest.
    """
    if given is None:
        return None
    from mmtune.model.templates import template_name

    return template_name(given, where="--template")


def pairs(option: str, given: Sequence[str] | None) -> dict[str, str]:
    """``NAME=VALUE`` options as a mapping.

    Raises:
        UsageError: One of them has no ``=`` or no name.
    """
    found: dict[str, str] = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise UsageError(f"'{text}' is no NAME=VALUE.", where=option, fix=f"{option} name=value")
        found[name.strip()] = value
    return found


def shard_of(text: str | None) -> tuple[int, int] | None:
    """``--shard 2/4`` as a pair.

    Raises:
        UsageError: Not of this form, or no such shard.
    """
    if text is None:
        return None
    index, _, count = text.partition("/")
    if index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count):
        return int(index), int(count)
    raise UsageError(f"'{text}' is no shard I/N.", where="--shard", fix="--shard 1/4 for the first of four parts")


def settings(given: Sequence[str] | None) -> dict[str, Any]:
    """``--set key=value`` options as a mapping from dotted keys to YAML values.

    Raises:
        UsageError: No ``key=value``, or a value that is no YAML.
    """
    from mmtune.train.yaml_marks import parse_value

    return {key: parse_value(value, where=f"--set {key}") for key, value in pairs("--set", given).items()}


def check_data(path: str) -> None:
    """Notice a missing data file before a model is loaded.

    Raises:
        DataError: Nothing there; the message names the nearest entry of its folder.
    """
    place = Path(path)
    if place.exists():
        return
    siblings = [entry.name for entry in place.parent.iterdir()] if place.parent.is_dir() else []
    guess = nearest(place.name, siblings)
    hint = f" Did you mean '{place.parent / guess}'?" if guess else ""
    raise DataError(f"There is no file or folder '{path}'.{hint}", where="--data", fix="check the path")
