"""One Typer command a verb, built when it is called, with the options that every verb has."""

from __future__ import annotations

from importlib import import_module
from typing import Annotated, Any

import typer


def _common(
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, errors too.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show errors only.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show details, and tracebacks of errors.")] = False,
) -> None:
    """Carry the options of every verb."""


def build_command(verb: str, module: str) -> Any:
    """The click command of one verb: the function ``run`` of its module plus the common options."""
    command = _command(verb, import_module(module).run)
    command.params = [*command.params, *_command("common", _common).params]
    return command


def _command(name: str, function: Any) -> Any:
    application = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    settings = {"help_option_names": ["--help", "-h"], "max_content_width": 110}
    application.command(name=name, context_settings=settings)(function)
    return typer.main.get_command(application)


def common_options(context: Any) -> dict[str, bool]:
    """Take the common options out of a parsed command line: ``as_json``, ``quiet``, ``verbose``."""
    params = context.params
    return {"as_json": params.pop("json"), "quiet": params.pop("quiet"), "verbose": params.pop("verbose")}
