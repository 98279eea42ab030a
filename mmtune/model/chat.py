"""The tokenizer's own chat template, with the exact characters that the assistant has to produce."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from mmtune.core.errors import DataError, NotPossibleError
from mmtune.model.rendering import Conversation, Markers, Segment, Template, turn_text

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_SENTINEL = "xQ{index}AnswerGoesHereQx"  # letters and digits only: no template treats it specially

Message = dict[str, str]


@dataclass(frozen=True)
class ChatTemplate(Template):
    """Render with the tokenizer's chat template; answers are located, never guessed.

    A template with ``{% generation %}`` blocks tells the trained characters itself. Any other is rendered a second time
    with a unique word in place of each answer; the pieces between the words, put together with the answers again, must
    give the first rendering letter by letter. A trained span then begins where the open prompt of generation ends and
    includes the special token that closes the turn.

    Args:
        tokenizer: Any Hugging Face tokenizer with a chat template.
    """

    tokenizer: PreTrainedTokenizerBase
    name: str = "chat"
    system: str = ""
    media_first: bool = False
    stop: tuple[str, ...] = field(default=(), init=False)

    def __post_init__(self) -> None:
        if not self.tokenizer.chat_template:
            raise NotPossibleError(
                "The tokenizer has no chat template.", fix="name a template, for example --template vicuna_v1"
            )
        closing = self._closing_token()
        object.__setattr__(self, "stop", (closing,) if closing else ())

    def lay_out(self, talk: Conversation, generate: bool, markers: Markers | None) -> list[Segment]:
        messages = [{"role": "system", "content": talk.system}] if talk.system else []
        messages += [{"role": turn.role, "content": turn_text(turn, markers)} for turn in talk.turns]
        if generate:
            return [Segment(self._render(messages, open_turn=True))]
        if _GENERATION.search(self._source):
            return self._marked_by_author(messages)
        return self._located(messages)

    @property
    def _source(self) -> str:
        return self.tokenizer.get_chat_template()

    def _render(self, messages: Sequence[Message], *, open_turn: bool = False) -> str:
        return self._call(messages, add_generation_prompt=open_turn)[0][0]

    def _call(self, messages: Sequence[Message], **options: Any) -> tuple[list[str], list[list[tuple[int, int]]]]:
        try:
            return render_jinja_template(  # type: ignore[return-value]
                [list(messages)], chat_template=self._source, **options, **self.tokenizer.special_tokens_map
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise DataError(
                f"The tokenizer's chat template refuses the conversation: {error}",
                fix="change the roles (many templates know no system turn) or name another template",
            ) from error

    def _marked_by_author(self, messages: Sequence[Message]) -> list[Segment]:
        rendered, spans = self._call(messages, return_assistant_tokens_mask=True)
        return _cut(rendered[0], spans[0])

    def _located(self, messages: Sequence[Message]) -> list[Segment]:
        whole = self._render(messages)
        spoken = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        fitted = self._places(messages, spoken, whole)
        spans = []
        for index, (start, end) in zip(spoken, fitted, strict=True):
            open_prompt = self._render(messages[:index], open_turn=True)
            if len(open_prompt) <= start and whole.startswith(open_prompt):
                start = len(open_prompt)
            spans.append((start, end + _length_of_closing(whole[end:], self._specials())))
        return _cut(whole, spans)

    def _places(
        self, messages: Sequence[Message], wanted: Sequence[int], whole: str, *, open_turn: bool = False
    ) -> list[tuple[int, int]]:
        """Where the contents of some messages stand in the rendering of all of them, in the order of that.

        Raises:
            DataError: The template changes them in a way that leaves their place unclear.
        """
        words = {index: _SENTINEL.format(index=index) for index in wanted}
        rendered = self._render(_replaced(messages, words), open_turn=open_turn)
        order = sorted(wanted, key=lambda index: rendered.find(words[index]))  # some put the system text further down
        turns = [index for index in order if messages[index]["role"] != "system"]
        pieces = _split_at(rendered, [words[index] for index in order]) if turns == sorted(turns) else None
        fitted = _fit(whole, pieces, [messages[index]["content"] for index in order]) if pieces is not None else None
        if fitted is None:
            raise DataError(
                "The chat template changes the conversation in a way that leaves places in the prompt unclear.",
                fix="give the template {% generation %} blocks, or name another template such as vicuna_v1",
            )
        return fitted

    def _specials(self) -> list[str]:
        added = [str(token) for token in self.tokenizer.added_tokens_decoder.values() if token.special]
        return sorted({*added, *self.tokenizer.all_special_tokens}, key=len, reverse=True)

    def probe(self) -> str:
        """The rendering of a question and a unique word as its answer.

        Raises:
            DataError: The template refuses even that.
        """
        return self._render([{"role": "user", "content": "a"}, {"role": "assistant", "content": _SENTINEL}])

    def _closing_token(self) -> str | None:
        """The special token that closes an answer, when it is one other than EOS."""
        try:
            tail = self.probe().rpartition(_SENTINEL)[2]
        except DataError:
            return None
        length = _length_of_closing(tail, self._specials())
        closing = tail[:length].strip()
        return closing if closing and closing != self.tokenizer.eos_token else None


def _replaced(messages: Sequence[Message], words: dict[int, str]) -> list[Message]:
    return [{**message, "content": words.get(index, message["content"])} for index, message in enumerate(messages)]


def _split_at(text: str, words: Sequence[str]) -> list[str] | None:
    """The pieces between words that each occur exactly once and in order, else None."""
    pieces = []
    for word in words:
        if text.count(word) != 1:
            return None
        before, _, text = text.partition(word)
        pieces.append(before)
    return [*pieces, text]


def _fit(whole: str, pieces: Sequence[str], contents: Sequence[str]) -> list[tuple[int, int]] | None:
    """Where each content stands in ``whole``, given the pieces around them; None unless all of it is accounted for."""
    if not whole.startswith(pieces[0]):
        return None
    spans, position = [], len(pieces[0])
    for piece, content in zip(pieces[1:], contents, strict=True):
        forms = (content, content.strip(), content.lstrip(), content.rstrip())
        found = next((form for form in forms if whole.startswith(form + piece, position)), None)
        if found is None:
            return None
        spans.append((position, position + len(found)))
        position += len(found) + len(piece)
    return spans if position == len(whole) else None


def _length_of_closing(text: str, specials: Sequence[str]) -> int:
    """How many characters after an answer close its turn: blanks and the special token behind them, or nothing."""
    blanks = len(text) - len(text.lstrip())
    for token in specials:
        if token and text.startswith(token, blanks):
            return blanks + len(token)
    return 0


def _cut(text: str, spans: Sequence[tuple[int, int]]) -> list[Segment]:
    found, done = [], 0
    for start, end in spans:
        if start > done:
            found.append(Segment(text[done:start]))
        found.append(Segment(text[start:end], trained=True))
        done = end
    return [*found, Segment(text[done:])] if done < len(text) else found
