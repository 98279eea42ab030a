"""CapsFusion-120M: ``{"image_url", "capsfusion", "laion_2b", "laion_coco"}``, a URL and the fused caption.

The pictures are on the web: keep the rows with ``--allow-urls``, or download them first (``--download``).

Source:
    CapsFusion (Yu et al. 2023, arXiv 2310.20550); VLoRA's first stage trains on 30 M pairs of it.
"""

from __future__ import annotations

from typing import Any

from mmtune.data.checks import row_id
from mmtune.data.messages import RowError
from mmtune.data.sample import Sample
from mmtune.data.sources import SourceFormat
from mmtune.data.sources.captions import captioned

_PICTURES = ("image", "image_path", "image_url", "url")


def parse(row: dict[str, Any], default_id: str) -> Sample:
    """One row as a sample; the fused caption is the text, the raw captions are left out.

    Raises:
        RowError: ``no_picture``, or a reason of :func:`mmtune.data.sources.captions.parse`.
    """
    picture = next((row[key] for key in _PICTURES if row.get(key)), None)
    if picture is None:
        raise RowError("no_picture", "The row has no 'image_url'.", fix="give the URL or the path of the picture")
    return captioned(row_id(row, default_id), picture, row.get("capsfusion"), {})


FORMAT = SourceFormat(
    parse,
    recognises=lambda row: "capsfusion" in row and any(key in row for key in _PICTURES),
    describe="CapsFusion: image_url and capsfusion",
    columns=("image_url", "capsfusion"),
)
