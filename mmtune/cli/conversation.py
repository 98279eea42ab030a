"""A conversation in the terminal: its history, its commands, and the loop that reads lines."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmtune.cli.console import Console
from mmtune.cli.requests import Reading, check_files, prompt_sample
from mmtune.core.errors import MMTuneError, ResourceError, UsageError, nearest
from mmtune.data.sample import Media, Sample, Text, Turn

_HELP = """/image F   show a picture with the next question; other media alike (/audio F, ...)
/reset     forget everything that was said and shown
/save F    write the conversation as a message file; `generate --messages F` reads it once a question stands last
/help      show this
/quit      leave (or Ctrl-D); Ctrl-C stops an answer"""


class Conversation:
    """What was said and shown, and how the model goes on with it."""

    def __init__(self, model: Any, processor: Any, decoding: Any) -> None:
        from mmtune.model.seen import Seen

        self.model, self.processor, self.decoding = model, processor, decoding
        self.reading = Reading.of(processor, decoding.template)
        self.seen = Seen()
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.turns: list[Turn] = []
        self.waiting: dict[str, list[str]] = {}  # media for the next question

    def show(self, modality: str, path: str) -> None:
        """Keep a medium for the next question.

        Raises:
            MMTuneError: No such file, none that can be opened, or the model has no such modality.
        """
        check_files(f"/{modality}", [path])
        sample = prompt_sample("", {modality: [path]}, self.reading, where=f"/{modality}")
        for item in sample.media:  # one that cannot be opened would stand in the way of every question from now on
            self.processor.modalities[item.modality].load(item.uri)
        self.waiting.setdefault(modality, []).append(path)

    def ask(self, text: str, on_text: Callable[[str], None]) -> str:
        """Put a question and return the answer; what an interrupted answer had said is kept as the answer.

        Raises:
            MMTuneError: It cannot be asked; the conversation is as it was before.
        """
        from mmtune.model.generation import answer

        turn = prompt_sample(text, self.waiting, self.reading).turns[0]
        pieces: list[str] = []

        def hear(piece: str) -> None:
            pieces.append(piece)
            on_text(piece)

        decoding = replace(self.decoding, seed=self.decoding.seed + len(self.turns))
        sample = Sample("chat", (*self.turns, turn), "chat")
        try:
            answer(self.model, self.processor, [sample], decoding, batch_size=1, on_token=hear, seen=self.seen)
        except KeyboardInterrupt:
            on_text(" [stopped]")
        said = "".join(pieces)
        self.turns += [turn, Turn("assistant", (Text(said),))]
        self.waiting = {}
        return said

    def messages(self) -> list[dict[str, Any]]:
        """The turns with OpenAI-style content parts."""
        return [{"role": turn.role, "content": [_part(part) for part in turn.parts]} for turn in self.turns]

    def save(self, path: Path) -> None:
        """Write a message file; paths of media are made absolute, so that it can be moved.

        Raises:
            MMTuneError: It cannot be written.
        """
        from mmtune.train.files import write_json

        try:
            write_json(path, {"messages": self.messages()})
        except ResourceError as error:
            raise ResourceError(error.message, where=str(path), fix="save it elsewhere: /save FILE") from error


def _part(part: Text | Media) -> dict[str, Any]:
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    uri = part.uri if part.uri.startswith(("data:", "http://", "https://")) else str(Path(part.uri).absolute())
    return {"type": part.modality, part.modality: uri}


def talk(console: Console, conversation: Conversation) -> None:
    """Read lines until the end of input or ``/quit``; an error is shown and the conversation goes on."""
    person = sys.stdin.isatty()
    if person:
        _enable_line_editing()
        console.note("Type a question; /help shows the commands, Ctrl-D leaves.")
    while True:
        try:
            line = _read_line(console, person)
        except KeyboardInterrupt:
            console.err("\n(Ctrl-D leaves)")
            continue
        if line is None or line in ("/quit", "/exit"):
            return
        if not line:
            continue
        try:
            _obey(console, conversation, line)
        except MMTuneError as error:
            console.note(f"{error.message}{f' ({error.fix})' if error.fix else ''}")


def _obey(console: Console, conversation: Conversation, line: str) -> None:
    if not line.startswith("/"):
        conversation.ask(line, (lambda text: None) if console.as_json else console.write)
        if not console.as_json:
            console.write("\n")
        return
    command, _, value = line[1:].partition(" ")
    value = value.strip()
    if command in conversation.reading.markers and value:
        conversation.show(command, value)
        console.note(f"{Path(value).name} goes with the next question.")
    elif command == "reset":
        conversation.reset()
        console.note("Everything is forgotten.")
    elif command == "save" and value:
        conversation.save(Path(value))
        console.note(f"Saved: {value}")
    elif command == "help":
        console.note(_HELP)
    else:
        known = [*conversation.reading.markers, "reset", "save", "help", "quit"]
        guess = nearest(command, known)
        hint = f" Did you mean '/{guess}'?" if guess and guess != command else ""
        fix = f"/{command} FILE" if command in known else "/help shows the commands"
        raise UsageError(f"'{line}' is no command.{hint}", where="chat", fix=fix)


def _read_line(console: Console, person: bool) -> str | None:
    if person:
        try:
            with contextlib.redirect_stdout(console.stdout):  # line editing works on the real output only
                return input("> ").strip()
        except EOFError:
            console.err("")
            return None
    line = sys.stdin.readline()
    return line.strip() if line else None


def _enable_line_editing() -> None:
    """Arrow keys and history, where the platform has them."""
    try:
        import readline  # noqa: F401  # importing it is what turns line editing on
    except ImportError:
        return
