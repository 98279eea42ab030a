"""The command ``mmtune``: finds the verb, parses its options, runs it, and turns every outcome into an exit code.

Nothing heavy is imported here: a verb's module is imported when that verb is called, and imports its work inside the
function that does it, so that help answers at once.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import sys
from collections.abc import Sequence
from typing import Any

from mmtune.cli.console import Console, ReaderGoneError, Result
from mmtune.core.errors import Abandoned, MMTuneError, Stopped, unknown_name

VERBS: dict[str, tuple[str, str]] = {
    "quickstart": ("mmtune.cli.quickstart", "See it all work in minutes, offline: data, training, evaluation, report."),
    "convert": ("mmtune.cli.convert", "Turn a published checkpoint into an mmtune folder."),
    "prepare-data": ("mmtune.cli.prepare_data", "Check, clean and pack training data."),
    "pretrain": ("mmtune.cli.training", "Train a fresh adapter on captions (stage 1)."),
    "finetune": ("mmtune.cli.training", "Train an adapter, LoRA or the whole model on conversations (stage 2)."),
    "plan": ("mmtune.cli.plan", "Tell memory, time and disk of a training run before anything is loaded."),
    "generate": ("mmtune.cli.generate", "Ask a model about pictures."),
    "chat": ("mmtune.cli.chat", "Talk with a model about pictures in the terminal."),
    "eval": ("mmtune.cli.eval", "Score a model on a benchmark or on data of your own."),
    "compare": ("mmtune.cli.compare", "Put finished runs side by side: budget, scores, costs, and a page."),
    "inspect": ("mmtune.cli.inspect", "Look at data, a checkpoint or a run: numbers, and a page."),
    "presets": ("mmtune.cli.presets", "List the published recipes, or print one."),
    "doctor": ("mmtune.cli.doctor", "Check this installation: devices, disk, extras, network."),
}
# Verbs that may be run again when they were stopped, and the option without which nothing is kept.
RESUMABLE: dict[str, str | None] = {
    "convert": None, "prepare-data": None, "pretrain": None, "finetune": None, "quickstart": None, "eval": None,
    "generate": "batch",
}  # fmt: skip
_COMMON = ("--json", "-q", "--quiet", "-v", "--verbose")
_HELP = """Usage: mmtune VERB [OPTIONS]

Parameter-efficient multimodal tuning of any Hugging Face language model.

Verbs:
{verbs}

Options:
  --version      Show the version.
  --help         Show this message; `mmtune VERB --help` shows a verb's options.

Every verb takes --json, -q/--quiet and -v/--verbose. A first run: mmtune quickstart
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code (0 to 8, 75, 130: see the README)."""
    # Threads of OpenMP wait for each other by spinning: with one other busy process on two cores a training step took
    # 50 s instead of 0.4 s. Read once, when torch is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    for name in ("stdout", "stderr"):  # closed by whoever started us
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    words = list(sys.argv[1:] if argv is None else argv)
    leading = list(itertools.takewhile(lambda word: word in _COMMON, words))
    rest = words[len(leading) :] or ["--help"]
    if rest[0] == "help" and len(rest) > 1:
        rest = [rest[1], "--help"]
    verb = rest[0] if rest[0].startswith("-") else rest[0].replace("_", "-")  # as with the names of methods
    arguments = [verb, *leading, *rest[1:]]  # `mmtune --json doctor` is `mmtune doctor --json`
    with Console(as_json=_wants_json(arguments), command=arguments) as console, contextlib.ExitStack() as end:
        return _guarded(console, arguments[0], arguments, end)


def _guarded(console: Console, verb: str, arguments: list[str], end: contextlib.ExitStack) -> int:
    try:
        result = _run(console, verb, arguments[1:], end)
        console.result(result)
        return result.exit_code
    except ReaderGoneError:
        return 0
    except Stopped as error:
        return _fail(console, verb, arguments, error.interruption())
    except KeyboardInterrupt:
        return _abandon(console)
    except SystemExit as exit_:  # a library that leaves by itself
        return exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    except BaseException as error:
        return _fail(console, verb, arguments, error)


def _abandon(console: Console) -> int:
    """Say so with nothing more to load: the next Ctrl-C may be on its way."""
    error = Abandoned("Ended at once; what was not saved by then is lost.", fix="run the command again")
    with contextlib.suppress(ReaderGoneError, OSError):
        console.error(error)
    return error.exit_code


def _fail(console: Console, verb: str, arguments: list[str], error: BaseException) -> int:
    from mmtune.cli.failures import explain, write_crash_report

    known = explain(error, verb=verb if verb in VERBS else None, arguments=arguments)
    if known is None:
        path = write_crash_report(error, arguments)
        known = MMTuneError(
            f"Internal error: {type(error).__name__}: {error}",
            where=str(path) if path else None,
            fix="report it with the crash report above; -v shows the traceback",
        )
    with contextlib.suppress(ReaderGoneError, OSError):
        console.error(known, cause=error)
    return known.exit_code


def _run(console: Console, verb: str, arguments: list[str], end: contextlib.ExitStack) -> Result:
    if verb in ("--help", "-h", "help"):
        return Result({"verbs": {name: text for name, (_, text) in VERBS.items()}}, overview())
    if verb in ("--version", "-V"):
        from mmtune import __version__

        return Result({"version": __version__}, f"mmtune {__version__}")
    if verb not in VERBS:
        kind = "option" if verb.startswith("-") else "verb"
        raise unknown_name(kind, verb, [*VERBS] if kind == "verb" else ["--help", "--version"], where="command line")
    return _invoke(console, verb, arguments, end)


def _invoke(console: Console, verb: str, arguments: list[str], end: contextlib.ExitStack) -> Result:
    import typer

    from mmtune.cli.command import build_command, common_options
    from mmtune.train.interrupt import StopRequest

    command, shown = build_command(verb, VERBS[verb][0]), io.StringIO()
    try:
        with contextlib.redirect_stdout(shown):
            context = command.make_context(f"mmtune {verb}", arguments)
    except typer.Exit:  # --help was asked for
        text = shown.getvalue().rstrip("\n")
        return Result({"verb": verb, "help": text}, text)
    console.configure(**common_options(context))
    context.obj = console
    if verb in RESUMABLE and (RESUMABLE[verb] is None or context.params[RESUMABLE[verb]] is not None):
        end.enter_context(StopRequest())  # to the very end: a second signal must not change what a first one came to
    with context, console.only_results_on_stdout():
        outcome: Any = command.invoke(context)
    return outcome if isinstance(outcome, Result) else Result(dict(outcome or {}))


def overview() -> str:
    """The text of ``mmtune --help``."""
    verbs = "\n".join(f"  {name:<14} {text}" for name, (_, text) in VERBS.items())
    return _HELP.format(verbs=verbs).rstrip()


def _wants_json(arguments: Sequence[str]) -> bool:
    """Whether errors go to stdout as JSON, known before anything is parsed."""
    words = list(arguments)
    if "--" in words:
        words = words[: words.index("--")]
    return "--json" in words
