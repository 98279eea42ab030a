"""The chat template of an ``[INST]`` model, cut into the pieces that multi_token trains and answers with."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from mmtune.core.errors import DataError
from mmtune.model.chat import ChatTemplate
from mmtune.model.rendering import Conversation, Markers, Segment, turn_text

_BRACKET = re.compile(r"\[(/?)INST\]")


@dataclass(frozen=True)
class InstructionPieces(ChatTemplate):
    """Each ``[INST] … [/INST]`` and each text between two of them is tokenised by itself.

    A SentencePiece tokenizer puts a word mark before every piece, so that the ids differ from those of the whole
    prompt. Everything outside the brackets is trained, the blank behind an answer's EOS included. Brackets that the
    user or the assistant writes count for nothing.

    Source:
        multi_token (Sshh 2023), the encoding of its training rows and requests.
    """

    name: str = "multi_token"
    separate: bool = field(default=True, init=False)

    def lay_out(self, talk: Conversation, generate: bool, markers: Markers | None) -> list[Segment]:
        messages = [{"role": "system", "content": talk.system}] if talk.system else []
        messages += [{"role": turn.role, "content": turn_text(turn, markers)} for turn in talk.turns]
        whole = self._render(messages, open_turn=generate)
        contents = self._places(messages, range(len(messages)), whole, open_turn=generate)
        found, done = [], 0
        for start, end in _instructions(whole, contents):
            found += [Segment(whole[done:start], trained=not generate), Segment(whole[start:end])]
            done = end
            contents = [(first, last) for first, last in contents if not (start <= first and last <= end)]
        if len(contents) != sum(turn.role == "assistant" for turn in talk.turns):
            raise DataError(
                "The tokenizer's chat template does not put all that the user says into [INST] … [/INST].",
                fix="use --template chat, which trains exactly the answers of any chat template",
            )
        return [segment for segment in (*found, Segment(whole[done:], trained=not generate)) if segment.text]


def has_instructions(template: ChatTemplate) -> bool:
    """Whether a chat template writes ``[INST]`` around what the user says."""
    return _BRACKET.search(template.probe()) is not None


def _instructions(whole: str, contents: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The bracketed stretches of a rendering, by the brackets that the template itself has written."""
    found, opened = [], None
    for match in _BRACKET.finditer(whole):
        if any(first < match.end() and match.start() < last for first, last in contents):
            continue
        if not match.group(1):
            opened = match.start() if opened is None else opened
        elif opened is not None:
            found.append((opened, match.end()))
            opened = None
    return found
