"""A modality of your own: one class, one entry point.

"Series" reads lists of numbers, cut into windows, through a small convolution. In a package of yours the entry point
would be

    [project.entry-points."mmtune.modalities"]
    series = "my_package.series:Series"

Run this file to see it checked, alone and with every property of a method that reads it.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import mmtune
from mmtune.core import config
from mmtune.core.errors import MediaError
from mmtune.testing import check_modality


class SeriesSettings(config.Settings):
    window: int = 4  # numbers that become one position


class Series(mmtune.Modality):
    """Lists of numbers, or files of one number a line, of any length."""

    name = "series"
    marker = "<series>"
    data_key = "series"

    def __init__(self, source: str, settings: SeriesSettings) -> None:
        self.source, self.revision, self.settings = source, None, settings
        self.width = int(json.loads((Path(source) / "config.json").read_text())["width"])
        self.num_positions = 8

    @classmethod
    def from_source(
        cls, source: str, *, revision: str | None = None, settings: Mapping[str, Any] | None = None
    ) -> Series:
        return cls(source, config.parse_settings(SeriesSettings, settings or {}, where="encoders.series.settings"))

    def load(self, item: Any) -> dict[str, Tensor]:
        try:
            from_file = isinstance(item, (str, Path))
            numbers = [float(word) for word in Path(item).read_text().split()] if from_file else item
            values = torch.tensor(numbers, dtype=torch.float32)
        except (OSError, ValueError, TypeError) as error:
            raise MediaError(f"Not a series: {error}", where=str(item), fix="give a file or a list") from error
        windows = -(-len(values) // self.settings.window)
        padded = nn.functional.pad(values, (0, windows * self.settings.window - len(values)))
        return {"windows": padded.view(windows, self.settings.window)}  # [P, window]

    def positions(self, raw: Mapping[str, Tensor]) -> int:
        return len(raw["windows"])

    def collate(self, raws: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        lengths = torch.tensor([len(raw["windows"]) for raw in raws])
        windows = nn.utils.rnn.pad_sequence([raw["windows"] for raw in raws], batch_first=True)  # [N, P, window]
        return {"windows": windows, "lengths": lengths}

    def load_encoder(self, dtype: torch.dtype) -> nn.Module:
        encoder = nn.Linear(self.settings.window, self.width)
        encoder.load_state_dict(load_file(Path(self.source) / "model.safetensors"))
        return encoder.to(dtype).eval()

    def encode(self, encoder: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None, Tensor | None]:
        windows = inputs["windows"].to(next(encoder.parameters()).dtype)
        places = torch.arange(windows.shape[1], device=windows.device)
        return torch.tanh(encoder(windows)), places < inputs["lengths"].unsqueeze(-1), None

    def save_source(self, encoder: nn.Module, folder: str) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        save_file(
            {name: value.contiguous() for name, value in encoder.state_dict().items()}, f"{folder}/model.safetensors"
        )
        (Path(folder) / "config.json").write_text(json.dumps({"width": self.width}))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        save_file(nn.Linear(4, 12).state_dict(), f"{folder}/model.safetensors")
        (Path(folder) / "config.json").write_text(json.dumps({"width": 12}))
        items = [[0.0, 1.0, 0.5, 2.0, 1.0], [3.0] * 12, [1.0, -1.0]]
        print(check_modality(Series, source=folder, items=items))


if __name__ == "__main__":
    main()
