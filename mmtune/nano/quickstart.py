"""Everything once, on the embedded base: draw data, train methods on it, measure them and lay them side by side."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mmtune.core.errors import Interruption, MMTuneError, UsageError
from mmtune.core.registry import canonical
from mmtune.data.prepare import prepare
from mmtune.nano.comparison import Comparison, gallery
from mmtune.nano.world.dataset import FORMAT, write_dataset
from mmtune.report.compare.build import compare
from mmtune.report.compare.view import view
from mmtune.report.html import write_quickstart_report
from mmtune.report.quickstart import label
from mmtune.report.run import read_rows
from mmtune.train.display import Display, LoggingDisplay
from mmtune.train.recipe import resolve
from mmtune.train.run import train

SIZES: Mapping[str, int] = {"train": 4000, "val": 160, "test": 800, "test_heldout": 400}
STATE = "quickstart.json"
_LOG = logging.getLogger(__name__)


def quickstart(
    methods: Sequence[str] = ("llava", "vlora"),
    output: str | Path = "quickstart",
    *,
    seed: int = 0,
    base: str = "nano",
    vision: str = "nano",
    sizes: Mapping[str, int] = SIZES,
    sets: Sequence[str] = (),
    progress: Display | None = None,
) -> dict[str, Any]:
    """Train and measure methods on the nano world; the same call goes on where it was interrupted.

    A method that fails is reported beside the others.

    Args:
        output: Folder for data, runs, answers and ``report.html``.
        base: Language model to teach; the embedded one unless another is named.
        vision: Image encoder.
        sizes: Rows of each split of the drawn data.
        sets: ``key=value`` on top of the nano recipes, as ``--set`` takes them.
        progress: Is told what happens.

    Returns:
        The JSON object of the verb: ``output``, ``report``, and ``methods`` with ``scores``, ``baselines``, ``seconds``
        and ``run``, or an ``error``.

    Raises:
        UsageError: The folder holds a quickstart of another seed or size.
        Interruption: A signal asked to stop.
        MMTuneError: Every method failed; the first error is raised.
    """
    settings = {"seed": seed, "base": base, "vision": vision, "sizes": dict(sizes), "sets": list(sets), "world": FORMAT}
    work = _Workplace(Path(output), settings, progress or LoggingDisplay())
    found: dict[str, dict[str, Any]] = {}
    errors: list[Exception] = []
    data = work.make_data()
    for name in dict.fromkeys(canonical(method) for method in methods):
        try:
            found[name] = _one_method(work, name, data)
        except Interruption:
            raise
        except Exception as error:  # whatever breaks one method must not lose the other
            _LOG.debug("%s failed", name, exc_info=True)
            work.display.note(f"{label(name)} failed: {error}")
            errors.append(error)
            found[name] = {"error": _error_json(error)}
    if len(errors) == len(found) and errors:
        raise errors[0]
    return _finish(work, found)


class _Workplace:
    """The folder of one quickstart, with its settings and the time that each part took."""

    def __init__(self, folder: Path, settings: dict[str, Any], display: Display) -> None:
        self.folder, self.settings, self.display = folder, settings, display
        path = folder / STATE
        if path.is_file():
            self.state = json.loads(path.read_text(encoding="utf-8"))
            old = self.state["settings"]
            changed = [
                f"{key}: {old[key]!r} -> {value!r}" for key, value in settings.items() if old.get(key, value) != value
            ]
            if changed:
                raise UsageError(
                    f"The folder holds another quickstart. {'; '.join(changed)}",
                    where=str(folder),
                    fix="give another --output, or remove the folder",
                )
            return
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UsageError(
                "The folder is not empty and no quickstart.", where=str(folder), fix="give another --output"
            )
        folder.mkdir(parents=True, exist_ok=True)
        self.state = {"settings": settings, "seconds": {}}
        self._write()

    def make_data(self) -> Path:
        """Draw the world and prepare what is trained on; what is there already is kept."""
        world = self.folder / "world"
        with self.phase("data"):
            if not (world / "dataset.json").is_file():
                write_dataset(world, seed=self.settings["seed"], **self.settings["sizes"])
            for name in ("pretrain", "train", "val"):
                target = self.prepared(name)
                if not (target / "manifest.json").is_file():
                    prepare([str(world / f"{name}.json")], target)
        return world

    def prepared(self, name: str) -> Path:
        """The prepared folder of a part of the data."""
        return self.folder / "data" / name

    def answers(self, method: str) -> tuple[Path, Path]:
        """Where a method's evaluations are, as `mmtune compare` finds them, and its other answers."""
        return self.folder / "runs" / "eval" / method, self.folder / "answers" / method

    @contextmanager
    def phase(self, name: str, *, part: str | None = None) -> Iterator[None]:
        """Tell that a phase begins, and keep how long it took over all calls."""
        self.display.phase(name)
        began = time.perf_counter()
        try:
            yield
        finally:
            taken = self.state["seconds"]
            taken[part or name] = taken.get(part or name, 0.0) + time.perf_counter() - began
            self._write()

    def seconds(self, part: str) -> float:
        """How long a phase took."""
        return float(self.state["seconds"].get(part, 0.0))

    def _write(self) -> None:
        partial = self.folder / f".{STATE}.partial"
        partial.write_text(json.dumps(self.state, indent=2) + "\n", encoding="utf-8")
        os.replace(partial, self.folder / STATE)


def _one_method(work: _Workplace, method: str, world: Path) -> dict[str, Any]:
    """Captions first, then questions, then the measurement."""
    first = _stage(work, method, "pretrain", "pretrain", model=None)
    second = _stage(work, method, "finetune", "train", model=first["model"])
    comparison = Comparison(world, *work.answers(method), work.display)
    with work.phase(f"{label(method)}: questions it has not seen", part=f"{method}.evaluate"):
        scores, baselines = comparison.measure(Path(second["model"]))
    phases = {
        "pretrain": float(first["seconds"]),
        "finetune": float(second["seconds"]),
        "evaluate": work.seconds(f"{method}.evaluate"),
    }
    return {
        "scores": scores,
        "baselines": baselines,
        "seconds": round(sum(phases.values()), 2),
        "run": second["run"],
        "model": second["model"],
        "phases": phases,
        "trainable_parameters": second["trainable_parameters"],
        "adapter_bytes": (Path(second["model"]) / "adapter.safetensors").stat().st_size,
        "loss": second["loss"],
    }


def _stage(work: _Workplace, method: str, verb: str, data: str, *, model: str | None) -> dict[str, Any]:
    """Run a stage, go on with it, or read the result of a finished one."""
    folder = work.folder / "runs" / f"{method}-{verb}"
    status = _status(folder)
    if status.get("status") == "completed":
        return status
    overrides = {
        "method": method,
        "model.checkpoint": model,
        "data.train": [str(work.prepared(data))],
        "train.seed": work.settings["seed"],
    }
    if model is None:
        overrides |= {"model.base": work.settings["base"], "model.vision": work.settings["vision"]}
    else:
        overrides["data.validation"] = [str(work.prepared("val"))]
    recipe = resolve(verb, overrides=overrides, sets=work.settings["sets"])
    display = _Named(work.display, f"{label(method)}: {'captions' if verb == 'pretrain' else 'questions'}")
    return train(recipe, verb=verb, model=model, output=folder, display=display)


class _Named:
    """Passes the events of a training on, with the name of the stage before each phase."""

    def __init__(self, inner: Display, name: str) -> None:
        self._inner, self._name = inner, name
        self.start, self.step, self.end = inner.start, inner.step, inner.end
        self.note, self.table = inner.note, inner.table

    def phase(self, name: str) -> None:
        """A part of the stage begins."""
        self._inner.phase(self._name if name == "train" else f"{self._name} ({name})")


def _finish(work: _Workplace, found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The report and the result."""
    work.display.phase("report")
    done = {name: result for name, result in found.items() if "error" not in result}
    metrics = {name: _metrics(work.folder, name) for name in done}
    base = _parameters(Path(next(iter(done.values()))["model"]))
    report = write_quickstart_report(
        work.folder,
        {
            "methods": {name: {**result, "metrics": metrics.get(name, {})} for name, result in found.items()},
            "seed": work.settings["seed"],
            "seconds": work.seconds("data") + sum(result["seconds"] for result in done.values()),
            "world": work.settings["sizes"],
            "base": base,
            "environment": _environment(),
        },
        gallery(work.folder / "world", {name: work.answers(name) for name in done}, label),
        _compared(work, list(done.values())),
    )
    return {
        "output": str(work.folder),
        "report": str(report),
        "seed": work.settings["seed"],
        "seconds": round(work.seconds("data") + sum(result["seconds"] for result in done.values()), 2),
        "methods": found,
        "failed": [name for name in found if name not in done],
    }


def _compared(work: _Workplace, done: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """What `mmtune compare` shows of the runs; for one run alone there is nothing to compare."""
    if len(done) < 2:
        return None
    try:
        return view(compare([result["run"] for result in done], note=work.display.note))
    except Interruption:
        raise
    except Exception as error:  # hours of training must not end without their report
        _LOG.debug("the comparison failed", exc_info=True)
        work.display.note(f"the runs could not be compared: {type(error).__name__}: {error}")
        return None


def _metrics(folder: Path, method: str) -> dict[str, list[dict[str, Any]]]:
    return {
        verb: read_rows(folder / "runs" / f"{method}-{verb}" / "metrics.jsonl") for verb in ("pretrain", "finetune")
    }


def _parameters(model: Path) -> dict[str, int]:
    from mmtune.model.build import load_model

    loaded = load_model(model)
    return {
        "language": sum(parameter.numel() for parameter in loaded.language_model.parameters()),
        "encoder": sum(parameter.numel() for parameter in loaded.encoders.parameters()),
    }


def _environment() -> dict[str, Any]:
    return {**{name: version(name) for name in ("torch", "transformers")}, "cores": os.cpu_count()}


def _status(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / "status.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _error_json(error: Exception) -> dict[str, Any]:
    known = error if isinstance(error, MMTuneError) else MMTuneError(f"{type(error).__name__}: {error}")
    return known.to_json()
