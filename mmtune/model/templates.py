"""Prompt formats as values: a conversation in, text segments out, each marked as trained or not.

A trained segment is exactly what the model has to produce after the open prompt of :meth:`Template.render` with
``generate=True``: the answer with the space before it and the text that ends it. Labels follow from these segments
alone. Media stand in the text as their marker.

Source:
    The registered conversation formats of LLaVA 1.2.2 (Liu et al. 2023) and VLoRA (Ma et al. 2024), and the strings
    that their training code builds, which for the ``v0`` family differ from the prompts of inference.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmtune.core.errors import DataError, unknown_name
from mmtune.core.registry import canonical
from mmtune.data.sample import Media
from mmtune.model import prompts
from mmtune.model.rendering import Conversation, Markers, Segment, Template, marker_of, turn_text
from mmtune.model.response import Response

__all__ = [
    "CHAT",
    "INSTRUCTION",
    "TEMPLATES",
    "Markers",
    "Segment",
    "Template",
    "named_template",
    "template_name",
    "template_names",
]


@dataclass(frozen=True)
class TwoSeparators(Template):
    """``system USER: question ASSISTANT: answer</s>``, rounds joined without a space (LLaVA style TWO)."""

    name: str
    system: str = ""
    roles: tuple[str, str] = ("USER", "ASSISTANT")
    separators: tuple[str, str] = (" ", "</s>")
    wrap: str = "{}"  # of a marker, in training only
    stop: tuple[str, ...] = ()
    media_first: bool = True

    def lay_out(self, talk: Conversation, generate: bool, markers: Markers | None) -> list[Segment]:
        user, assistant = self.roles
        first, second = self.separators
        found = [Segment(talk.system + first)] if talk.system else []
        for turn in talk.turns:
            text = turn_text(turn, markers, media_first=True, wrap="{}" if generate else self.wrap)
            if turn.role == "user":
                found.append(Segment(f"{user}: {text}{first}"))
            else:
                found += [Segment(f"{assistant}:"), Segment(f" {text}{second}", trained=not generate)]
        return [*found, Segment(f"{assistant}:")] if generate else found


@dataclass(frozen=True)
class OneSeparator(Template):
    """``system###Human: question###Assistant:`` in prompts; another layout in training (LLaVA style SINGLE).

    Training text is ``system``, a blank line, ``### Human: question``, ``### Assistant: answer``, each on a line, and a
    last ``###``. The ``###`` after an answer is trained, since it is what ends the answer.
    """

    name: str
    system: str = prompts.HUMAN
    roles: tuple[str, str] = ("Human", "Assistant")
    separator: str = "###"
    wrap: str = "{}"
    stop: tuple[str, ...] = ("###",)
    media_first: bool = True

    def lay_out(self, talk: Conversation, generate: bool, markers: Markers | None) -> list[Segment]:
        names = {"user": self.roles[0], "assistant": self.roles[1]}
        if generate:
            texts = [f"{names[turn.role]}: {turn_text(turn, markers, media_first=True)}" for turn in talk.turns]
            return [Segment(self.separator.join([talk.system, *texts, f"{self.roles[1]}:"]))]
        found = [Segment(f"{talk.system}\n\n")]
        after_answer = False
        for turn in talk.turns:
            text = turn_text(turn, markers, media_first=True, wrap=self.wrap)
            found.append(Segment(self.separator, trained=after_answer))
            found += [Segment(f" {names[turn.role]}:"), Segment(f" {text}\n", trained=turn.role == "assistant")]
            after_answer = turn.role == "assistant"
        return [*found, Segment(self.separator, trained=after_answer), Segment(" ")]


@dataclass(frozen=True)
class Instruct(Template):
    """``[INST] <<SYS>> system <</SYS>> question [/INST] answer </s>`` (LLaVA style LLAMA_2)."""

    name: str
    system: str = ""
    separators: tuple[str, str] = ("<s>", "</s>")
    stop: tuple[str, ...] = ()
    media_first: bool = True

    def lay_out(self, talk: Conversation, generate: bool, markers: Markers | None) -> list[Segment]:
        before, after = self.separators
        found: list[Segment] = []
        for index, turn in enumerate(talk.turns):
            text = turn_text(turn, markers, media_first=True)
            if index == 0 and talk.system:
                text = f"<<SYS>>\n{talk.system}\n<</SYS>>\n\n{text}"
            if turn.role == "user":
                found.append(Segment(f"{before if index else ''}[INST] {text} [/INST]"))
            else:
                found.append(Segment(f" {text} {after}", trained=not generate))
        return found


@dataclass(frozen=True)
class ChatML(Template):
    """``<|im_start|>user`` and so on, each turn closed by ``<|im_end|>`` without a line break (LLaVA style MPT)."""

    name: str
    system: str = ""
    stop: tuple[str, ...] = ("<|im_end|>",)
    media_first: bool = True

    def lay_out(self, talk: Conversation, generate: bool, markers: Markers | None) -> list[Segment]:
        found = [Segment(f"<|im_start|>system\n{talk.system}<|im_end|>")]
        for turn in talk.turns:
            text = turn_text(turn, markers, media_first=True)
            found.append(Segment(f"<|im_start|>{turn.role}\n"))
            found.append(Segment(f"{text}<|im_end|>", trained=turn.role == "assistant" and not generate))
        return [*found, Segment("<|im_start|>assistant\n")] if generate else found


@dataclass(frozen=True)
class Plain(Template):
    """Caption after medium: ``<image>caption`` and a line break; what the user asked is left out in training."""

    name: str
    system: str = ""
    stop: tuple[str, ...] = ("\n",)
    media_first: bool = True

    def frames(self, *, generate: bool) -> bool:
        """In prompts alone: training rows begin with the medium itself, whatever was around it."""
        return generate

    def lay_out(self, talk: Conversation, generate: bool, markers: Markers | None) -> list[Segment]:
        media = tuple(part for part in talk.turns[0].parts if isinstance(part, Media))
        shown = "".join(marker_of(item.modality, markers) for item in media)
        expected = 1 if generate else 2
        if len(talk.turns) != expected:
            raise DataError(
                f"Template '{self.name}' takes {expected} turn{'s'[: expected - 1]}, not {len(talk.turns)}.",
                fix="use a template for conversations, for example vicuna_v1",
            )
        if generate:
            text = turn_text(talk.turns[0], markers, media_first=True)
            return [Segment(talk.system + (f"{text}\n" if talk.turns[0].text.strip() else shown))]
        if not (media or talk.led):
            raise DataError(
                f"Template '{self.name}' leaves the question out, so a row without media would have no prompt.",
                fix="give the row a medium, or use a template for conversations, for example vicuna_v1",
            )
        caption = turn_text(talk.turns[1], markers)
        return [Segment(talk.system + shown), Segment(f"{caption}\n", trained=True)]


@dataclass(frozen=True)
class Raw(Template):
    """The texts exactly as given, joined without anything between them; answers are trained as they stand."""

    name: str = "raw"
    system: str = ""
    stop: tuple[str, ...] = ()
    media_first: bool = False

    def frames(self, *, generate: bool) -> bool:
        """The text has them where it wants them."""
        return False

    def lay_out(self, talk: Conversation, generate: bool, markers: Markers | None) -> list[Segment]:
        found = [Segment(talk.system)] if talk.system else []
        return found + [
            Segment(turn_text(turn, markers), trained=turn.role == "assistant" and not generate) for turn in talk.turns
        ]


_ALL: tuple[Template, ...] = (
    TwoSeparators("vicuna_v1", prompts.USER),
    TwoSeparators("v1", prompts.USER),
    TwoSeparators("llava_v1", prompts.HUMAN),
    TwoSeparators("vlora"),
    TwoSeparators("nano"),
    TwoSeparators("v1_mmtag", prompts.MMTAG, wrap="<Image>{}</Image>"),
    OneSeparator("v0"),
    OneSeparator("default"),
    OneSeparator("llava_v0"),
    OneSeparator("v0_mmtag", prompts.MMTAG, wrap="<Image>{}</Image>"),
    Instruct("llama_2", prompts.LLAMA_2),
    Instruct("llava_llama_2", prompts.LLAVA_LLAMA_2),
    Instruct("mistral_instruct", separators=("", "</s>")),
    ChatML("mpt", prompts.MPT),
    ChatML("chatml_direct", prompts.DIRECT),
    ChatML("mistral_direct", prompts.DIRECT),
    Plain("plain"),
    Plain("v0_plain"),
    Response("lavin"),
    Response("lavin_sqa", before=""),
    Raw(),
)
TEMPLATES: dict[str, Template] = {template.name: template for template in _ALL}
CHAT = "chat"  # the tokenizer's own chat template: see mmtune.model.chat
INSTRUCTION = "multi_token"  # the same in the pieces of the published code: see mmtune.model.instruction


def template_names() -> list[str]:
    """The names that a recipe or ``--template`` takes."""
    return sorted([*TEMPLATES, CHAT, INSTRUCTION])


def template_name(given: str, *, where: str | None = None) -> str:
    """The one spelling of a template's name: ``vicuna-v1`` and ``vicuna_v1`` are the same.

    Raises:
        UsageError: No such template; the message suggests the nearest.
    """
    name = canonical(given)
    if name not in template_names():
        raise unknown_name("template", given, template_names(), where=where)
    return name


def named_template(name: str) -> Template:
    """The template of a name other than ``chat`` and ``multi_token``, which need a tokenizer.

    Raises:
        UsageError: No such template; the message suggests the nearest.
    """
    if canonical(name) not in TEMPLATES:
        raise unknown_name("template", name, template_names())
    return TEMPLATES[canonical(name)]
