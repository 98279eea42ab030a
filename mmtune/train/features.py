"""What frozen encoders made of media, kept on disk: from the second time on a medium is neither decoded nor encoded.

An entry is one file, named by the hash of the medium's bytes, in a folder named by the hash of all else that the
features follow from: the encoder's weights and dtype, its settings, preparation and kind of attention, the precision,
the kind of device, the versions of torch and transformers. A medium is encoded by itself, so that its features do not
depend on its neighbours in a batch: they are the same whichever run or process made them, and a run that goes on meets
what it met before.

Shapes: N items of a batch, P positions of one, D width.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from transformers import PreTrainedModel

from mmtune.core.errors import MediaError
from mmtune.modalities.base import Modality
from mmtune.modalities.opening import decode_data_uri
from mmtune.train.files import replacing, sha256

_FORMAT = 1
_DIGEST_BYTES = 32  # before the tensors of an entry: the hash of them
_KEPT, _FRESH, _IS_KEPT = "kept", "fresh", "is_kept"  # of collated inputs
_DIGEST, _DAMAGED = "feature digest", "feature damaged"  # of what a medium that is not kept comes with
_VALUES = "feature values"


class DamagedEntry(Exception):
    """An entry whose content is not what was written."""


class FeatureStore:
    """The entries of one encoder on disk. Light and picklable, for data-loader workers.

    Args:
        folder: Of the encoder; made with the first entry.
        room: Bytes that this process may still write.
    """

    def __init__(self, folder: Path, room: int) -> None:
        self.folder, self.room = folder, room
        self.written = 0

    def get(self, digest: str) -> dict[str, Tensor] | None:
        """An entry; None when there is none.

        Raises:
            DamagedEntry: It is not what was written.
        """
        try:
            content = self._path(digest).read_bytes()
        except OSError:
            return None
        expected, tensors = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if hashlib.sha256(tensors).digest() != expected:
            raise DamagedEntry(digest)
        try:
            return load(tensors)
        except SafetensorError as error:
            raise DamagedEntry(digest) from error

    def put(self, digest: str, tensors: Mapping[str, Tensor], *, again: bool = False) -> bool:
        """Write an entry whole or not at all, ``again`` also in place of another; says whether it is there now.

        Raises:
            OSError: It cannot be written.
        """
        path = self._path(digest)
        if not again and path.exists():
            return True
        body = save({name: tensor.contiguous().cpu() for name, tensor in tensors.items()})
        content = hashlib.sha256(body).digest() + body
        if len(content) > self.room:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            partial.write_bytes(content)
        self.room -= len(content)
        self.written += len(content)
        return True

    def _path(self, digest: str) -> Path:
        return self.folder / digest[:2] / f"{digest}.features"


class KeptModality(Modality):
    """A modality whose features are kept. It stands in the place of another one, in the data and in the model.

    Attributes:
        hits: Items whose features came from the disk; ``misses`` those that were encoded.
        damaged: Entries that were not what had been written, and were made again.
        fault: Why nothing more is written; None as long as there is no reason.
    """

    def __init__(self, inner: Modality, store: FeatureStore) -> None:
        self.inner, self.store = inner, store
        self.name, self.marker, self.data_key = inner.name, inner.marker, inner.data_key  # type: ignore[misc]
        self.takes, self.has_encoder = inner.takes, inner.has_encoder  # type: ignore[misc]
        self.source, self.revision, self.settings = inner.source, inner.revision, inner.settings
        self.width, self.num_positions, self.num_blocks = inner.width, inner.num_positions, inner.num_blocks
        self.has_line_breaks = inner.has_line_breaks
        self.hits = self.misses = self.damaged = self.read = 0
        self.dtype: torch.dtype | None = None
        self.fault: str | None = None

    @classmethod
    def from_source(
        cls, source: str, *, revision: str | None = None, settings: Mapping[str, Any] | None = None
    ) -> Modality:
        """There is none: it is made of another modality."""
        raise NotImplementedError("a kept modality is made of another one")

    def load(self, item: Any) -> dict[str, Tensor]:
        """What is kept of an item, or the item opened and prepared."""
        found = self.load_all([item])[0]
        if isinstance(found, MediaError):
            raise found
        return found

    def load_all(self, items: Sequence[Any]) -> list[dict[str, Tensor] | MediaError]:
        """What is kept of the items; those of which nothing is kept, opened and prepared together."""
        kept = [self._look_up(item) for item in items]
        missing = [item for item, found in zip(items, kept, strict=True) if _VALUES not in found]
        opened = iter(self.inner.load_all(missing) if missing else ())
        return [found if _VALUES in found else _marked(next(opened), found) for found in kept]

    def _look_up(self, item: Any) -> dict[str, Tensor]:
        """The features of an item, or else its hash and whether its entry is damaged."""
        digest = medium_digest(item)
        if digest is None:
            return {_DIGEST: torch.zeros(0, dtype=torch.uint8), _DAMAGED: torch.tensor(False)}
        try:
            found, damaged = self.store.get(digest), False
        except DamagedEntry:
            found, damaged = None, True
        return found or {
            _DIGEST: torch.tensor(list(bytes.fromhex(digest)), dtype=torch.uint8),
            _DAMAGED: torch.tensor(damaged),
        }

    def positions(self, raw: Mapping[str, Tensor]) -> int:
        """P of one item, kept or not."""
        return len(raw[_VALUES]) if _VALUES in raw else self.inner.positions(raw)

    def collate(self, raws: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The kept items, and each of the others as a batch of its own."""
        kept = [raw for raw in raws if _VALUES in raw]
        fresh = [self._alone(raw) for raw in raws if _VALUES not in raw]
        parts = {name: _bundle(part) for name, part in ((_KEPT, kept), (_FRESH, fresh)) if part}
        return {**parts, _IS_KEPT: torch.tensor([_VALUES in raw for raw in raws])}  # type: ignore[dict-item]

    def _alone(self, raw: Mapping[str, Tensor]) -> dict[str, Tensor]:
        own = {key: value for key, value in raw.items() if key not in (_DIGEST, _DAMAGED)}
        return {**self.inner.collate([own]), _DIGEST: raw[_DIGEST], _DAMAGED: raw[_DAMAGED]}

    def load_encoder(self, dtype: torch.dtype) -> nn.Module:
        """That of the other modality."""
        return self.inner.load_encoder(dtype)

    def empty_encoder(self, dtype: torch.dtype) -> nn.Module:
        """That of the other modality."""
        return self.inner.empty_encoder(dtype)

    def save_source(self, encoder: nn.Module, folder: str) -> None:
        """As the other modality does."""
        self.inner.save_source(encoder, folder)

    @torch.compiler.disable  # it reads and writes files
    def encode(self, encoder: nn.Module, inputs: Mapping[str, Any]) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Features of all items, ``[N, P, D]``; what had to be encoded is kept. Plain inputs are only encoded."""
        if _IS_KEPT not in inputs:
            return self.inner.encode(encoder, inputs)
        kept, fresh = (iter(_unbundled(inputs[name]) if name in inputs else ()) for name in (_KEPT, _FRESH))
        items = [
            self._noted(next(kept)) if is_kept else self._seen(encoder, next(fresh))
            for is_kept in inputs[_IS_KEPT].tolist()
        ]
        return _joined(items)

    def _noted(self, entry: dict[str, Tensor]) -> dict[str, Tensor]:
        self.hits += 1
        self.read += sum(tensor.nbytes for tensor in entry.values())
        return entry

    def _seen(self, encoder: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Encode one item and keep the result."""
        values, mask, breaks = self.inner.encode(encoder, inputs)
        parts = {_VALUES: values, "mask": mask, "breaks": breaks}
        entry = {name: part[0].detach() for name, part in parts.items() if part is not None}
        self.misses += 1
        self.damaged += int(inputs[_DAMAGED])
        self.dtype = values.dtype
        if self.fault is None and len(inputs[_DIGEST]):
            try:
                digest = bytes(inputs[_DIGEST].tolist()).hex()
                if not self.store.put(digest, entry, again=bool(inputs[_DAMAGED])):
                    self.fault = "the limit of data.cache_features_gb is reached"
            except OSError as error:  # the run goes on without it
                self.fault = f"it cannot be written: {error.strerror or error}"
        return entry


def encoder_key(modality: Modality, encoder: nn.Module, preparation: Any, precision: str, device: torch.device) -> str:
    """A name that changes with all that features follow from besides the medium."""
    about = {
        "format": _FORMAT,
        "kind": type(modality).__qualname__,
        "settings": modality.settings.model_dump(mode="json"),
        "preparation": preparation,
        "precision": precision,
        "device": device.type,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "attention": _attention(encoder),
    }
    digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().contiguous().cpu().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]


def _attention(encoder: nn.Module) -> list[str]:
    """The kinds of attention that an encoder's parts run with, which round differently."""
    parts = (module for module in encoder.modules() if isinstance(module, PreTrainedModel))
    return sorted({str(part.config._attn_implementation) for part in parts})


def medium_digest(item: Any) -> str | None:
    """Hash of a medium's bytes, as hex digits; None for what has no bytes of its own or cannot be read."""
    try:
        if isinstance(item, (bytes, bytearray, memoryview)):
            return hashlib.sha256(item).hexdigest()
        if isinstance(item, str) and item.startswith("data:"):
            return hashlib.sha256(decode_data_uri(item)).hexdigest()
        return sha256(Path(item)) if isinstance(item, (str, Path)) else None
    except (OSError, ValueError, MediaError):  # told when it is opened
        return None


def _marked(opened: dict[str, Tensor] | MediaError, found: Mapping[str, Tensor]) -> dict[str, Tensor] | MediaError:
    return opened if isinstance(opened, MediaError) else {**opened, **found}


def _bundle(items: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors of equal names as one flat tensor each: every tensor that a worker hands over takes an open file."""
    found: dict[str, Tensor] = {}
    for name in items[0]:
        found[name] = torch.cat([item[name].flatten() for item in items])
        found[f"{name} shapes"] = torch.tensor([list(item[name].shape) for item in items], dtype=torch.int64)
    return found


def _unbundled(bundle: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    names = [name for name in bundle if f"{name} shapes" in bundle]
    shapes = {name: [torch.Size(shape) for shape in bundle[f"{name} shapes"].tolist()] for name in names}
    parts = {name: bundle[name].split([shape.numel() for shape in shapes[name]]) for name in names}
    for index in range(len(shapes[names[0]])):
        yield {name: parts[name][index].view(shapes[name][index]) for name in names}


def _joined(items: Sequence[Mapping[str, Tensor]]) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Items as one batch, padded to the longest, with a mask where there was one or items differ in length."""
    device, pad = items[0][_VALUES].device, nn.utils.rnn.pad_sequence
    values = pad([item[_VALUES] for item in items], batch_first=True)
    masks = [item.get("mask", torch.ones(len(item[_VALUES]), dtype=torch.bool, device=device)) for item in items]
    needed = any("mask" in item for item in items) or len({len(item[_VALUES]) for item in items}) > 1
    breaks = pad([item["breaks"] for item in items], batch_first=True) if "breaks" in items[0] else None
    return values, pad(masks, batch_first=True) if needed else None, breaks
