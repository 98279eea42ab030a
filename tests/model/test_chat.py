"""Chat templates: the trained characters are exact for every kind of template, or the row is refused."""

from __future__ import annotations

import pytest
from tokenizers import AddedToken

from mmtune.core.errors import DataError, NotPossibleError
from mmtune.data.sample import Media, Sample, Text, Turn, conversation
from mmtune.model.chat import ChatTemplate
from mmtune.model.tokenization import load_tokenizer
from tests.model import golden

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA_2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content.strip() + ' [/INST]' }}"
    "{% elif m.role == 'assistant' %}{{ ' ' + m.content.strip() + ' ' + eos_token }}"
    "{% else %}{{ raise_exception('no system turn') }}{% endif %}{% endfor %}"
)
VICUNA = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ m.content + ' ' }}{% elif m.role == 'user' %}"
    "{{ 'USER: ' + m.content + ' ' }}{% else %}{{ 'ASSISTANT: ' + m.content + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ '<a>' }}{% generation %}{{ m.content + eos_token }}"
    "{% endgeneration %}{% else %}{{ '<u>' + m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<a>' }}{% endif %}"
)
THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TALK = conversation("Hi", "Hello.", "And you?", " Fine. ")


def _template(source: str) -> ChatTemplate:
    tokenizer = load_tokenizer(golden.LLAVA / "checkpoint")
    added = [AddedToken(text, special=True, normalized=False) for text in ("<|im_start|>", "<|im_end|>")]
    tokenizer.add_special_tokens({"additional_special_tokens": added})
    tokenizer.chat_template = source
    return ChatTemplate(tokenizer)


@pytest.mark.parametrize(
    ("source", "trained", "stop"),
    [
        (CHATML, ["Hello.<|im_end|>", " Fine. <|im_end|>"], ("<|im_end|>",)),
        (LLAMA_2, [" Hello. </s>", " Fine. </s>"], ()),
        (VICUNA, [" Hello.</s>", "  Fine. </s>"], ()),
        (MARKED, ["Hello.</s>", " Fine. </s>"], ()),
        (THINKING, ["Hello.<|im_end|>", "<think>\n\n</think>\n\n Fine. <|im_end|>"], ("<|im_end|>",)),
    ],
)
def test_trained_characters(source: str, trained: list[str], stop: tuple[str, ...]) -> None:
    template = _template(source)
    segments = template.render(TALK.turns)
    messages = [{"role": turn.role, "content": turn.text} for turn in TALK.turns]
    assert "".join(part.text for part in segments) == template.tokenizer.apply_chat_template(messages, tokenize=False)
    assert [part.text for part in segments if part.trained] == trained
    assert template.stop == stop


@pytest.mark.parametrize("source", [CHATML, LLAMA_2, VICUNA, MARKED, THINKING])
def test_what_is_trained_follows_the_open_prompt(source: str) -> None:
    template = _template(source)
    (open_prompt,) = template.render(TALK.turns[:3], generate=True)
    whole = "".join(part.text for part in template.render(TALK.turns))
    before = whole[: whole.rindex([part.text for part in template.render(TALK.turns) if part.trained][-1])]
    if source is not THINKING:
        assert before == open_prompt.text


def test_media_stay_where_they_are() -> None:
    turn = Turn("user", (Text("Is "), Media("image", "x"), Text(" a cat?")))
    (prompt,) = _template(CHATML).render([turn], generate=True)
    assert prompt.text == "<|im_start|>user\nIs <image> a cat?<|im_end|>\n<|im_start|>assistant\n"


def test_system_text() -> None:
    template = _template(VICUNA)
    own = Sample("a", (Turn("system", (Text("Be kind."),)), *TALK.turns))
    assert template.render(own.turns)[0].text == "Be kind. USER: Hi ASSISTANT:"
    assert template.render(own.turns, system="Be brief.")[0].text.startswith("Be brief. ")
    with pytest.raises(DataError, match="no system turn"):
        _template(LLAMA_2).render(own.turns)


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{{ m.content | upper }}{% endfor %}",
        "{% for m in messages %}{{ m.content[:3] }}{% endfor %}",
        "{% for m in messages %}{{ m.content + m.content }}{% endfor %}",
        "{% for m in messages | reverse %}{{ m.content }}{% endfor %}",
        "{{ messages[0].content }}",
    ],
)
def test_templates_that_hide_the_answer_are_refused(source: str) -> None:
    with pytest.raises(DataError, match="chat template"):
        _template(source).render(TALK.turns)


def test_no_chat_template() -> None:
    with pytest.raises(NotPossibleError, match="no chat template"):
        ChatTemplate(load_tokenizer(golden.LLAVA / "checkpoint"))
