"""What ``mmtune doctor`` looks at; each check answers with findings and never raises."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import os
import platform
import shutil
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal
from urllib.parse import SplitResult, urlsplit

Status = Literal["OK", "WARN", "FAIL"]
_NEEDED = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "datasets",
    "huggingface-hub",
    "pillow",
    "tokenizers",
    "safetensors",
)
_EXTRAS = {
    "audio": ("soundfile", "soxr"),
    "video": ("av",),
    "quant": ("bitsandbytes",),
    "torchao": ("torchao",),
    "liger": ("liger_kernel",),
    "deepspeed": ("deepspeed",),
    "lmms-eval": ("lmms_eval",),
    "download": ("img2dataset",),
    "dedup": ("datasketch", "imagehash"),
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb",),
    "trackio": ("trackio",),
    "mlflow": ("mlflow",),
}
_GIB = 1024**3
_HUB_TIMEOUT_S = 2.0
_ASSETS = Path(__file__).parent.parent / "nano" / "assets"
ASSET_FILES = (
    "llm/config.json",
    "llm/model.safetensors",
    "llm/tokenizer.json",
    "vision/config.json",
    "vision/model.safetensors",
    "vision/preprocessor_config.json",
    "adapter/config.json",
    "adapter/adapter.safetensors",
)


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    name: str
    status: Status
    found: str
    fix: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The line as JSON."""
        return asdict(self)


def all_checks(*, cache: Path | None = None, offline: bool = False) -> Iterator[Callable[[], list[Finding]]]:
    """The checks in the order of the report."""
    yield check_python
    yield check_packages
    yield check_devices
    yield check_memory
    yield functools.partial(check_disk, Path.cwd())
    yield functools.partial(check_cache, cache)
    yield check_extras
    yield check_assets
    if not offline:
        yield check_hub


def check_python() -> list[Finding]:
    """Python and mmtune itself."""
    from mmtune import __version__

    given = platform.python_version()
    fine = sys.version_info >= (3, 10)
    fix = None if fine else "install Python 3.10 or newer"
    found = [Finding("mmtune", "OK", f"{__version__} in {Path(__file__).parent.parent}")]
    return [*found, Finding("python", "OK" if fine else "FAIL", f"{given} on {platform.platform()}", fix)]


def check_packages() -> list[Finding]:
    """The packages that mmtune needs, without importing them."""
    found = []
    for name in _NEEDED:
        try:
            found.append(Finding(name, "OK", version(name)))
        except PackageNotFoundError:
            found.append(Finding(name, "FAIL", "not installed", f"pip install {name}"))
    return found


def check_devices() -> list[Finding]:
    """What torch computes on, and whether bfloat16 works there."""
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a shared library is missing
        return [Finding("devices", "FAIL", f"torch does not load: {error}", "install torch again: see pytorch.org")]
    found = [Finding("cpu", "OK", f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads")]
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        found.append(_check_cuda(torch, index))
    if torch.backends.mps.is_available():
        found.append(Finding("mps", "OK", "Apple GPU"))
    if len(found) == 1:
        built = torch.version.cuda or torch.version.hip
        hint = "torch is built for GPUs but sees none: check the driver" if built else None
        found.append(Finding("accelerator", "WARN" if built else "OK", "none: everything runs on the CPU", hint))
    return found


def _check_cuda(torch: Any, index: int) -> Finding:
    name = f"cuda:{index}"
    try:
        properties = torch.cuda.get_device_properties(index)
        with torch.cuda.device(index):
            free, total = torch.cuda.mem_get_info()
            bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
            torch.ones(8, 8, device=name).sum().item()
    except RuntimeError as error:
        return Finding(name, "FAIL", f"does not compute: {error}", "check the driver with nvidia-smi")
    text = f"{properties.name}, {free / _GIB:.1f} of {total / _GIB:.1f} GiB free, bf16 {'yes' if bf16 else 'no'}"
    return Finding(name, "OK" if bf16 else "WARN", text, None if bf16 else "use --set train.precision=fp16 or fp32")


def check_memory() -> list[Finding]:
    """Main memory, where the system tells it."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return []
    few = total < 2 * _GIB
    fix = "2 GiB and more are needed for the embedded model" if few else None
    return [Finding("memory", "WARN" if few else "OK", f"{total / _GIB:.1f} GiB", fix)]


def check_disk(folder: Path) -> list[Finding]:
    """Space and write access where runs are written."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return [Finding("disk", "FAIL", f"{folder}: {error.strerror}", "change to another folder")]
    if not _writable(folder):
        return [Finding("disk", "WARN", f"{folder} cannot be written to", "give --output, or change to another folder")]
    status: Status = "OK" if free > 5 * _GIB else "WARN" if free > 0.2 * _GIB else "FAIL"
    fix = None if status == "OK" else "free some space, or give --output on another disk"
    return [Finding("disk", status, f"{free / _GIB:.1f} GiB free in {folder}", fix)]


def check_cache(folder: Path | None) -> list[Finding]:
    """The data cache and the hub's cache can be written to."""
    found = []
    places = {"data cache": folder or _data_cache(), "hub cache": _hub_cache()}
    for name, place in places.items():
        nearest = next((part for part in (place, *place.parents) if part.exists()), Path.cwd())
        fine = nearest.is_dir() and _writable(nearest)
        fix = "give data.cache in the recipe" if name == "data cache" else "set HF_HOME to a folder you may write to"
        found.append(Finding(name, "OK" if fine else "WARN", str(place), None if fine else fix))
    return found


def check_extras() -> list[Finding]:
    """Optional features."""
    found = []
    for extra, modules in _EXTRAS.items():
        missing = [name for name in modules if importlib.util.find_spec(name) is None]
        text = f"not installed ({', '.join(missing)})" if missing else "installed"
        fix = f'pip install "mmtune[{extra}]", if you need it' if missing else None
        found.append(Finding(f"extra {extra}", "WARN" if missing else "OK", text, fix))
    return found


def check_assets(folder: Path = _ASSETS) -> list[Finding]:
    """The embedded model is all there, and equal to its list of hashes."""
    missing = [name for name in ASSET_FILES if not (folder / name).is_file()]
    if missing:
        fix = "pip install --force-reinstall --no-deps mmtune"
        return [Finding("embedded model", "FAIL", f"missing in {folder}: {', '.join(missing)}", fix)]
    hashes = {name: _sha256(folder / name) for name in ASSET_FILES}
    try:
        listed = json.loads((folder / "sha256.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        text = ", ".join(f"{name} {hashes[name][:8]}" for name in ASSET_FILES if name.endswith(".safetensors"))
        return [Finding("embedded model", "OK", f"present: {text}")]
    changed = [name for name, value in listed.items() if hashes.get(name, _sha256(folder / name)) != value]
    if changed:
        fix = "pip install --force-reinstall --no-deps mmtune"
        return [Finding("embedded model", "FAIL", f"changed or damaged: {', '.join(changed)}", fix)]
    return [Finding("embedded model", "OK", f"{len(listed)} files, hashes as published")]


def check_hub() -> list[Finding]:
    """Whether the Hugging Face hub can be reached; needed only for models that are not local."""
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return [Finding("hub", "WARN", "HF_HUB_OFFLINE is set", "unset it to download models")]
    url = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    proxy = os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy")
    problem = _connection_problem(urlsplit(proxy) if proxy else url)
    if problem:
        fix = "local folders and the embedded model work without it"
        return [Finding("hub", "WARN", f"{url.hostname} is out of reach: {problem}", fix)]
    return [Finding("hub", "OK", f"{url.hostname} answers" + (" (through a proxy)" if proxy else ""))]


def _connection_problem(place: SplitResult) -> str | None:
    """Why a server cannot be connected to, or None; in a thread, since looking up a name has no time limit."""
    found: list[str | None] = [f"no answer within {_HUB_TIMEOUT_S:.0f} s"]

    def connect() -> None:
        try:
            socket.create_connection((place.hostname or "", place.port or 443), timeout=_HUB_TIMEOUT_S).close()
            found[0] = None
        except (OSError, ValueError) as error:
            found[0] = str(error)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(_HUB_TIMEOUT_S)
    return found[0]


def _writable(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"mmtune")
    except OSError:
        return False
    return True


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return "unreadable"


def _data_cache() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "mmtune"


def _hub_cache() -> Path:
    home = os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub")
