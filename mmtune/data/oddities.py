"""What is odd about a row but does not keep it from being used: warnings, counted by code and listed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from mmtune.core.errors import UsageError, unknown_name
from mmtune.data.sample import Sample

CONTROL_TOKENS = (
    "<s>", "</s>", "<unk>", "<pad>", "[INST]", "[/INST]", "<<SYS>>", "<|im_start|>", "<|im_end|>", "<|endoftext|>",
    "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|user|>", "<|assistant|>",
    "<|system|>", "<start_of_turn>", "<end_of_turn>", "<|vision_start|>", "<|image_pad|>", "<im_patch>", "<im_start>",
)  # fmt: skip
_CONTROL = re.compile("|".join(map(re.escape, CONTROL_TOKENS)))
_BEGINS = tuple(sorted({token[0] for token in CONTROL_TOKENS}))
WARNINGS: dict[str, str] = {
    "control_token": "the text holds what some tokenisers take for a control token; it is tokenised as plain text",
    "leading_answer": "the talk begins with an answer, which is left out",
    "duplicate": "an earlier row says the same about the same media",
    "near_duplicate": "an earlier row is nearly the same; looked for with --near-duplicates",
    "too_long": "the row has more positions than the model takes",
    "other_ending": "a picture was found under another ending",
    "cmyk": "a CMYK picture, converted to RGB",
    "palette": "a picture with a palette, converted to RGB",
    "transparency": "a picture with transparency, which is dropped",
    "animated": "an animation, of which the first frame is used",
    "rotated": "a picture that EXIF turns",
    "extreme_aspect": "a picture more than twenty times as long as wide",
}
"""Every warning by its code; ``--reject CODE`` turns one into a reason to leave rows out."""


def check_codes(codes: Sequence[str], *, near: bool = True) -> frozenset[str]:
    """The codes of warnings that rows shall be rejected for.

    Args:
        near: Whether near-duplicates are looked for.

    Raises:
        UsageError: No such warning, or one that nobody looks for.
    """
    for code in codes:
        if code not in WARNINGS:
            raise unknown_name("warning", code, WARNINGS, where="--reject")
    if "near_duplicate" in codes and not near:
        raise UsageError(
            "Near-duplicates are not looked for.", where="--reject near_duplicate", fix="add --near-duplicates rows"
        )
    return frozenset(codes)


def warnings_of(sample: Sample) -> Iterator[tuple[str, str]]:
    """(code, text) of what is odd about the turns of a row."""
    for turn in sample.turns:
        text = turn.text
        found = _CONTROL.search(text) if any(begin in text for begin in _BEGINS) else None
        if found:
            yield "control_token", f"The text holds {found.group()}."
            break
    first = next((turn.role for turn in sample.turns if turn.role != "system"), None)
    if first == "assistant":
        yield "leading_answer", "The talk begins with an answer, which is left out."
