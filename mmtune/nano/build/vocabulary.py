"""The nano tokenizer: a byte-level BPE in which every word of the world is one token, and tables of those tokens."""

import itertools
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from mmtune.nano.build.phrases import CONTEXT_FORMS, FILLERS
from mmtune.nano.world.scene import COLORS, COLUMNS, NUMBERS, ROWS, SHAPES, SIZES, TEMPLATES

SPECIAL = ("<unk>", "<s>", "</s>")
BOS, EOS, PAD = 1, 2, 0
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + ' ' }}"
    "{% elif message['role'] == 'user' %}{{ 'USER: ' + message['content'] + ' ' }}"
    "{% elif message['role'] == 'assistant' %}{{ 'ASSISTANT: ' + message['content'] + eos_token }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
COMMON_WORDS = """
a an the is are was of in on at to and or not no yes it this that there here what which where who how why many do
does can you I we he she they see show shows picture image photo thing things object objects shape color colour size
place position with has have for from by one two three four zero nothing small big left right above below next near
between please answer describe count name tell me only short word question
"""


def build_tokenizer(directory: Path) -> PreTrainedTokenizerFast:
    """Train the tokenizer on the words of the world, write it to ``directory`` and return it."""
    core = Tokenizer(models.BPE(unk_token=SPECIAL[0]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2048,
        min_frequency=1,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(_corpus(), trainer)
    core.post_processor = processors.TemplateProcessing(
        single=f"{SPECIAL[1]} $A", pair=f"{SPECIAL[1]} $A $B", special_tokens=[(SPECIAL[1], BOS)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token=SPECIAL[0],
        bos_token=SPECIAL[1],
        eos_token=SPECIAL[2],
        pad_token=SPECIAL[0],
        model_max_length=2048,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(directory)
    return tokenizer


def _corpus() -> list[str]:
    """Every word with a space before it; first words of a text also bare and capitalised. Each several times."""
    texts = [text for group in TEMPLATES.values() for text in group]
    texts += [text for form in CONTEXT_FORMS for text in form] + list(FILLERS)
    words = {word.strip(".,;:?") for text in texts for word in text.split() if "{" not in word}
    words.update(itertools.chain(COLORS, SHAPES, SIZES, ROWS, COLUMNS, NUMBERS, COMMON_WORDS.split()))
    first = {text.split()[0].strip(".,;:?") for text in texts if "{" not in text.split()[0]}
    lines = ["USER: ", " ASSISTANT:"] * 50
    for word in sorted(words):
        lines += [" " + word] * 4
    for word in sorted(first):
        for form in (word, word.capitalize(), " " + word.capitalize()):
            lines += [form] * 4
    return lines


class Words:
    """Token ids of the world's words, each with a space before it."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self.color, self.shape, self.size, self.row, self.column, self.number = (
            [self.one(word) for word in words] for words in (COLORS, SHAPES, SIZES, ROWS, COLUMNS, NUMBERS)
        )
        self.article = [self.one("a"), self.one("an")]
        self.answer = [self.one("no"), self.one("yes")]
        self.nothing = self.one("nothing")

    def encode(self, text: str) -> list[int]:
        """Ids of a piece of text, without the leading ``<s>``."""
        return self.tokenizer.encode(text, add_special_tokens=False)

    def one(self, word: str) -> int:
        """The id of a word that must be a single token after a space."""
        ids = self.encode(" " + word)
        if len(ids) != 1:
            raise ValueError(f"{word!r} is {len(ids)} tokens; every word of the world must be one.")
        return ids[0]
