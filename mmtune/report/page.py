"""One self-contained HTML page: templates, number formats, pictures and plots inside the file."""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

_GAP = "\u00a0"  # keeps a number and its unit on one line
_LOG = logging.getLogger(__name__)
_LARGEST = 320  # pixels of the longer side of an embedded picture
_SOURCE_LIMIT = 4_000_000  # pixels; larger files are not opened for a thumbnail's sake


def render(template: str, **values: Any) -> str:
    """Fill a template of this package; everything is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": format_count,
        "percent": format_percent,
        "seconds": format_seconds,
        "bytes": format_bytes,
        "value": format_value,
        "score": format_score,
    }
    return environment.get_template(template).render(**values)


def picture_uri(item: Any) -> str | None:
    """A picture (path, bytes or PIL image) as a small data URI, or None when it cannot be shown."""
    try:
        picture = item if isinstance(item, Image.Image) else Image.open(io.BytesIO(item) if _is_bytes(item) else item)
        if picture.width * picture.height > _SOURCE_LIMIT:
            picture.draft("RGB", (_LARGEST, _LARGEST))
        picture = picture.convert("RGB")
        if max(picture.size) > _LARGEST:
            picture.thumbnail((_LARGEST, _LARGEST))
        buffer = io.BytesIO()
        small = max(picture.size) <= 128
        picture.save(buffer, "PNG") if small else picture.save(buffer, "JPEG", quality=85)
    except (OSError, ValueError, TypeError, AttributeError, Image.DecompressionBombError) as error:
        _LOG.info("a picture is left out of the report: %s", error)
        return None
    kind = "png" if small else "jpeg"
    return f"data:image/{kind};base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _is_bytes(item: Any) -> bool:
    return isinstance(item, bytes | bytearray)


def format_count(number: float | None) -> str:
    """A number for people: ``1,234``, ``12.3 M``, ``6.7 B``."""
    if number is None:
        return "–"
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e5, "k")):
        if abs(number) >= limit:
            scale = 1e3 if unit == "k" else limit
            return (
                f"{number / scale:.3g}{_GAP}{unit}" if number / scale < 1000 else f"{number / scale:,.0f}{_GAP}{unit}"
            )
    return f"{number:,.0f}"


def format_percent(share: float | None, digits: int = 0) -> str:
    """A share as a percentage."""
    return "–" if share is None else f"{100 * share:.{digits}f}{_GAP}%"


def format_seconds(seconds: float | None) -> str:
    """A duration: ``8.4 s``, ``3 min 05 s``, ``2 h 07 min``."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f}{_GAP}s" if seconds < 10 else f"{seconds:.0f}{_GAP}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}{_GAP}min{_GAP}{rest:02d}{_GAP}s"
    return f"{minutes // 60}{_GAP}h{_GAP}{minutes % 60:02d}{_GAP}min"


def format_bytes(size: float | None) -> str:
    """A file size in decimal units."""
    if size is None:
        return "–"
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= limit:
            return f"{size / limit:.3g}{_GAP}{unit}"
    return f"{size:.0f}{_GAP}B"


def format_score(value: float | None) -> str:
    """A score: four significant digits are all that an interval leaves."""
    return "–" if value is None else f"{value:.4g}" if abs(value) >= 10 else f"{value:.3f}"


def format_flops(number: float | None) -> str:
    """Operations: ``98.0 MFLOP``, ``1.25 TFLOP``."""
    if number is None:
        return "–"
    for limit, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if number >= limit:
            return f"{number / limit:.3g}{_GAP}{unit}FLOP"
    return f"{number:,.0f}{_GAP}FLOP"


def format_value(value: Any) -> str:
    """Any setting on one line."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {format_value(inner)}" for key, inner in value.items()) or "–"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(format_value(inner) for inner in value) or "–"
    return str(value)


def flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested settings as dotted keys, in their order."""
    rows: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            rows += flatten(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", value))
    return rows
