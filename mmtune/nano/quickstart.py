"""Everything once, on the embedded base: draw data, train methods on it, measure them and lay them side by side."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mmtune.core.errors import Interruption, MMTuneError
from mmtune.core.registry import canonical
from mmtune.nano.comparison import Comparison, gallery
from mmtune.nano.course import STAGES, Course
from mmtune.nano.workplace import Workplace
from mmtune.nano.world.dataset import FORMAT
from mmtune.report.compare.build import Compared, compare
from mmtune.report.compare.view import view
from mmtune.report.compare.write import markdown
from mmtune.report.html import write_quickstart_report
from mmtune.report.quickstart import label
from mmtune.report.run import read_rows
from mmtune.train.apart import apart
from mmtune.train.display import Display, LoggingDisplay
from mmtune.train.files import write_text
from mmtune.train.run_directory import default_command

SIZES: Mapping[str, int] = {"train": 4000, "val": 160, "test": 800, "test_heldout": 400}
BUDGET: Mapping[str, int] = {"pretrain": 300, "finetune": 1050}
"""Steps of each stage for methods that are compared; a method alone takes those of its own recipes."""

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

    Several methods learn under one budget: the same rows in the same order, from the same seed, for as many steps in
    each stage, every method in a process of its own. One alone learns for as long as its recipes say. A method that
    fails is reported beside the others.

    Args:
        output: Folder for data, runs, answers and ``report.html``.
        base: Language model to teach; the embedded one unless another is named.
        vision: Image encoder.
        sizes: Rows of each split of the drawn data.
        sets: ``key=value`` on top of the nano recipes, as ``--set`` takes them.
        progress: Is told what happens.

    Returns:
        The JSON object of the verb: ``output``, ``report``, and ``methods`` with ``scores``, ``baselines``, ``seconds``
        and ``run``, or an ``error``; of several methods also ``matched``, whether their budgets turned out equal, and
        the files ``comparison`` (JSON) and ``markdown``.

    Raises:
        UsageError: The folder holds a quickstart of another seed, size or budget.
        Interruption: A signal asked to stop.
        MMTuneError: Every method failed; the first error is raised.
    """
    names = list(dict.fromkeys(canonical(method) for method in methods))
    settings = {
        **{"seed": seed, "base": base, "vision": vision, "sets": list(sets)},
        **{"sizes": dict(sizes), "world": FORMAT, "steps": dict(BUDGET) if len(names) > 1 else None},
    }
    work = Workplace(Path(output), settings, progress or LoggingDisplay())
    return _finish(work, _all_methods(work, names))


def _all_methods(work: Workplace, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    errors: list[Exception] = []
    data = work.make_data()
    run = _apart if len(names) > 1 else _alone
    chosen = {key: work.settings[key] for key in ("seed", "base", "vision", "sets", "steps")}
    for name in names:
        course = Course(work.folder, name, label(name), command=tuple(default_command()), **chosen)
        try:
            found[name] = _one_method(work, course, data, run)
        except Interruption:
            raise
        except Exception as error:  # whatever breaks one method must not lose the other
            _LOG.debug("%s failed", name, exc_info=True)
            work.display.note(f"{label(name)} failed: {error}")
            errors.append(error)
            found[name] = {"error": _error_json(error)}
    if len(errors) == len(found) and errors:
        raise errors[0]
    return found


def _one_method(work: Workplace, course: Course, world: Path, run: Callable[[Course, Display], Any]) -> dict[str, Any]:
    """Captions first, then questions, then the measurement."""
    method, name = course.method, course.label
    stages = course.run(work.display) if course.is_finished() else run(course, work.display)
    first, second = stages["pretrain"], stages["finetune"]
    comparison = Comparison(world, *work.answers(method), work.display)
    with work.phase(f"{name}: questions it has not seen", part=f"{method}.evaluate"):
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


def _alone(course: Course, display: Display) -> dict[str, dict[str, Any]]:
    return course.run(display)


def _apart(course: Course, display: Display) -> dict[str, dict[str, Any]]:
    """Methods that are laid side by side must not inherit each other's memory."""
    stages: dict[str, dict[str, Any]] = apart(course.run, display)
    return stages


def _finish(work: Workplace, found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The report and the result."""
    work.display.phase("report")
    done = {name: result for name, result in found.items() if "error" not in result}
    metrics = {name: _metrics(work.folder, name) for name in done}
    base = _parameters(Path(next(iter(done.values()))["model"]))
    compared = _compared(work, list(done.values()))
    seconds = work.seconds("data") + sum(result["seconds"] for result in done.values())
    report = write_quickstart_report(
        work.folder,
        {
            "methods": {name: {**result, "metrics": metrics.get(name, {})} for name, result in found.items()},
            "seed": work.settings["seed"],
            "seconds": seconds,
            "world": work.settings["sizes"],
            "base": base,
            "environment": _environment(),
        },
        gallery(work.folder / "world", {name: work.answers(name) for name in done}, label),
        view(compared) if compared is not None else None,
    )
    return {
        "output": str(work.folder),
        "report": str(report),
        "seed": work.settings["seed"],
        "seconds": round(seconds, 2),
        "methods": found,
        "failed": [name for name in found if name not in done],
        **(_written(work.folder, compared) if compared is not None else {}),
    }


def _compared(work: Workplace, done: Sequence[Mapping[str, Any]]) -> Compared | None:
    """What `mmtune compare` finds in the runs; for one run alone there is nothing to compare."""
    if len(done) < 2:
        return None
    try:
        return compare([result["run"] for result in done], note=work.display.note)
    except Interruption:
        raise
    except Exception as error:  # hours of training must not end without their report
        _LOG.debug("the comparison failed", exc_info=True)
        work.display.note(f"the runs could not be compared: {type(error).__name__}: {error}")
        return None


def _written(folder: Path, compared: Compared) -> dict[str, Any]:
    """The comparison as JSON and Markdown beside the page."""
    found = write_text(folder / "comparison.json", json.dumps(compared.result, indent=2) + "\n")
    text = write_text(folder / "report.md", markdown(compared))
    return {"matched": compared.result["budget"]["matched"], "comparison": str(found), "markdown": str(text)}


def _metrics(folder: Path, method: str) -> dict[str, list[dict[str, Any]]]:
    return {verb: read_rows(folder / "runs" / f"{method}-{verb}" / "metrics.jsonl") for verb in STAGES}


def _parameters(model: Path) -> dict[str, int]:
    from mmtune.model.build import load_model

    loaded = load_model(model)
    return {
        "language": sum(parameter.numel() for parameter in loaded.language_model.parameters()),
        "encoder": sum(parameter.numel() for parameter in loaded.encoders.parameters()),
    }


def _environment() -> dict[str, Any]:
    return {**{name: version(name) for name in ("torch", "transformers")}, "cores": os.cpu_count()}


def _error_json(error: Exception) -> dict[str, Any]:
    known = error if isinstance(error, MMTuneError) else MMTuneError(f"{type(error).__name__}: {error}")
    return known.to_json()
