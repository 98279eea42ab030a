"""The demo data: drawn once into a cache, the same for everybody."""

from __future__ import annotations

from pathlib import Path

from mmtune.data.cache import cache_folder, writable
from mmtune.nano.world.dataset import FORMAT, write_dataset
from mmtune.train.files import writing

_SEED = 0


def demo_data(cache: str | None = None, *, train: int = 4000) -> Path:
    """The folder of the drawn world, written on first use: ``pretrain.json``, ``train.json``, ``val.json``, tests.

    Raises:
        ResourceError: The cache cannot be written to.
    """
    name = f"nano-world-v{FORMAT}-{train}-{_SEED}"
    folder = cache_folder(cache) / name
    if cache is None and not (folder / "dataset.json").is_file():
        folder = writable(cache_folder()) / name
    if not (folder / "dataset.json").is_file():
        with writing(folder):
            try:
                write_dataset(folder, seed=_SEED, train=train)
            except OSError:
                if not (folder / "dataset.json").is_file():  # else another process was faster
                    raise
    return folder
