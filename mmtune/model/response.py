"""LaVIN's prompt format: an instruction, and a response that follows its colon directly."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mmtune.model.rendering import Conversation, Markers, Segment, Template, turn_text


@dataclass(frozen=True)
class Response(Template):
    """``Instruction: question``, a line break, ``Response:answer`` and the EOS of the tokenizer.

    The published data has one round a sample; further ones begin on a line of their own. A system text is a first line.

    Args:
        before: Stands before what the user says; ScienceQA's questions bring their own words and have none.
        end: The text of the EOS token.

    Source:
        LaVIN (arXiv 2305.15023), the prompts of its code. Its demonstration misspells ``Response:``, unlike its
        training, which is what is written here.
    """

    name: str
    before: str = "Instruction: "
    end: str = "</s>"
    system: str = ""
    stop: tuple[str, ...] = ()
    media_first: bool = True

    def ended_by(self, eos: str | None) -> Template:
        return replace(self, end=eos or "")

    def lay_out(self, talk: Conversation, generate: bool, markers: Markers | None) -> list[Segment]:
        found = [Segment(f"{talk.system}\n")] if talk.system else []
        for index, turn in enumerate(talk.turns):
            text = turn_text(turn, markers, media_first=True)
            if turn.role == "user":
                line = "\n" if index else ""
                found.append(Segment(f"{line}{self.before}{text}\nResponse:"))
            else:
                found.append(Segment(f"{text}{self.end}", trained=not generate))
        return found
