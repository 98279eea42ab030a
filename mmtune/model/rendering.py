"""What every prompt format is made of: segments, turns as text, and a conversation taken apart."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mmtune.core.errors import DataError
from mmtune.data.sample import Media, Text, Turn

Markers = Mapping[str, str]  # modality -> what stands for one of its items in a text


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of rendered text; media stand in it as their marker."""

    text: str
    trained: bool = False
    apart: bool = False  # tokenised by itself, not together with what stands beside it


def marker_of(modality: str, markers: Markers | None) -> str:
    """What stands in a text for one item of a modality."""
    return (markers or {}).get(modality, f"<{modality}>")


def turn_text(turn: Turn, markers: Markers | None = None, *, media_first: bool = False, wrap: str = "{}") -> str:
    """The text of a turn.

    Args:
        media_first: LLaVA's rule: in a turn with media all markers are taken out, the text is stripped, and each
            marker stands on a line of its own before it. Otherwise markers stay where their media are.
        wrap: What surrounds each marker.
    """
    marks = [wrap.format(marker_of(part.modality, markers)) for part in turn.parts if isinstance(part, Media)]
    if media_first and marks:
        return "\n".join([*marks, turn.text.strip()]).strip()
    return "".join(
        part.text if isinstance(part, Text) else wrap.format(marker_of(part.modality, markers)) for part in turn.parts
    )


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation taken apart: its system text and its turns, which begin with the user and alternate."""

    system: str
    turns: tuple[Turn, ...]
    led: bool = False  # something stands before it already

    @classmethod
    def of(cls, turns: Sequence[Turn], *, generate: bool, system: str | None, default: str) -> Conversation:
        """Take a conversation apart.

        Raises:
            DataError: No turn, roles that do not alternate, a system turn that is not the first, or a prompt that
                does not end with the user.
        """
        spoken = list(turns)
        if spoken and spoken[0].role == "system":
            own = turn_text(spoken.pop(0))
            system = own if system is None else system
        for index, turn in enumerate(spoken):
            expected = "assistant" if index % 2 else "user"
            if turn.role != expected:
                raise DataError(
                    f"Turn {index + 1} is spoken by the {turn.role}, but must be by the {expected}.",
                    fix="let user and assistant alternate, the user first, after at most one system turn",
                )
        if not spoken:
            raise DataError("The conversation has no turn.", fix="give at least one user turn")
        if generate and spoken[-1].role != "user":
            raise DataError("A prompt must end with a turn of the user.", fix="leave the last answer out")
        return cls(default if system is None else system, tuple(spoken))


class Template(ABC):
    """A prompt format with a name.

    Attributes:
        system: Text that opens every conversation unless it brings its own.
        stop: Texts that end an answer besides the EOS token.
        media_first: Whether markers move to the head of their turn (see :func:`turn_text`).
        separate: Whether each segment is tokenised by itself, and not the text as a whole.
    """

    name: str
    system: str = ""
    stop: tuple[str, ...] = ()
    media_first: bool = True
    separate: bool = False

    def render(
        self,
        turns: Sequence[Turn],
        *,
        generate: bool = False,
        system: str | None = None,
        markers: Markers | None = None,
        led: bool = False,
    ) -> list[Segment]:
        """Render a conversation.

        Args:
            generate: Leave the assistant's turn open at the end, and mark nothing as trained.
            system: Stands in for the conversation's and the template's own system text.
            markers: Marker of each modality, ``<name>`` by default.
            led: Something stands before the conversation already: a medium in a place of its own, or word of none.

        Raises:
            DataError: A conversation that the format cannot hold.
        """
        talk = Conversation.of(turns, generate=generate, system=system, default=self.system)
        return self.lay_out(replace(talk, led=led), generate, markers)

    def ended_by(self, eos: str | None) -> Template:
        """The same format for a tokenizer with this text of its EOS; most formats write one of their own."""
        return self

    def frames(self, *, generate: bool) -> bool:
        """Whether the texts that a method has around each item are written."""
        return True

    @abstractmethod
    def lay_out(self, talk: Conversation, generate: bool, markers: Markers | None) -> list[Segment]:
        """The segments of a conversation that has been taken apart; the part that differs between formats."""
