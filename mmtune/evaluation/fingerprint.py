"""Short names for what an evaluation depends on: the bytes of the data and the weights of the model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmtune.data.locate import data_files
from mmtune.data.packing import MANIFEST

_CHUNK = 1 << 20
_PROBES = 64  # entries of a tensor that go into the fingerprint beside its sums


def data_sha256(path: Path) -> str:
    """SHA-256 of a data file, or over the names and hashes of the data files of a folder; media do not count."""
    if path.is_file():
        return _file_sha256(path)
    manifest = path / MANIFEST
    return files_sha256([manifest, *sorted(path.glob("*.parquet"))] if manifest.is_file() else data_files(path))


def files_sha256(files: Sequence[Path]) -> str:
    """SHA-256 of a single file, or over the names and hashes of several."""
    if len(files) == 1:
        return _file_sha256(files[0])
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\0{_file_sha256(file)}\n".encode())
    return digest.hexdigest()


def _file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def model_fingerprint(model: Any) -> str:
    """A hash over the names, shapes, sums and a few entries of all tensors: cheap, and no two checkpoints share it."""
    import torch  # only evaluations that ask a model need it

    digest = hashlib.sha256()
    with torch.no_grad():
        for name, tensor in sorted(model.state_dict().items()):
            if not isinstance(tensor, torch.Tensor):
                continue
            digest.update(f"{name}\0{tuple(tensor.shape)}\0{tensor.dtype}\0".encode())
            flat = tensor.detach().reshape(-1)
            stride = max(1, flat.numel() // _PROBES)
            probes = flat[::stride].double()
            sums = torch.stack([flat.sum(dtype=torch.float64), probes.abs().sum()])
            digest.update(torch.cat([sums, probes]).cpu().numpy().tobytes())
    return digest.hexdigest()
