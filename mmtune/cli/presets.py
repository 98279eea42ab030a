"""``mmtune presets``: the published recipes."""

from __future__ import annotations

from typing import Annotated

import typer

from mmtune.cli.console import Result
from mmtune.cli.tables import plain_table


def run(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Print this preset as YAML.")] = None,
) -> Result:
    """List the presets, or print one as YAML.

    A preset carries the published settings of one system and names their source. Use one with
    `mmtune finetune --preset NAME`, or save it and change it: `mmtune presets NAME > my.yaml`.
    """
    from mmtune.train.presets import list_presets, load_preset, preset_name, preset_text

    if name is None:
        found = list_presets()
        rows = [{"preset": key, "settings of": text} for key, text in found.items()]
        return Result({"presets": found}, plain_table("", rows))
    text = preset_text(name)
    return Result({"name": preset_name(name), "recipe": load_preset(name), "yaml": text}, text.rstrip("\n"))
