"""ShareGPT's format: ``{"id"?, "conversations" | "items": [{"from", "value"}], "system"?, "image(s)"?}``.

It is LLaVA's form with more names of speakers and a system text of its own. A talk may begin with an answer, since long
talks were cut into pieces; that answer is left out and counted.

Source:
    ShareGPT as Vicuna's and LLaVA's training data hold it; the names of speakers are those found in its files.
"""

from __future__ import annotations

from typing import Any

from mmtune.data.messages import RowError
from mmtune.data.sample import Sample, Text, Turn
from mmtune.data.sources import SourceFormat, llava

_SPEAKERS = {"user": "human", "chatgpt": "gpt", "bing": "gpt", "bard": "gpt", "claude": "gpt", "assistant": "gpt"}
_TOOLS = {"function_call", "observation", "tool"}


def parse(row: dict[str, Any], default_id: str) -> Sample:
    """One row as a sample.

    Raises:
        RowError: ``tool_turn``, ``bad_system``, or a reason of :func:`mmtune.data.sources.llava.parse`.
    """
    talk = row.get("conversations", row.get("items"))
    if isinstance(talk, list):
        talk = [_renamed(turn, index) for index, turn in enumerate(talk)]
    rest = {key: value for key, value in row.items() if key not in ("items", "system")}
    sample = llava.parse({**rest, "conversations": talk}, default_id)
    system = row.get("system")
    if system in (None, ""):
        return sample
    if not isinstance(system, str):
        raise RowError("bad_system", f"'system' is {system!r}, which is no text.", fix="give a text")
    return Sample(sample.id, (Turn("system", (Text(system),)), *sample.turns), sample.source, sample.extra)


def _renamed(turn: Any, index: int) -> Any:
    if not isinstance(turn, dict):
        return turn
    speaker = turn.get("from")
    if speaker in _TOOLS:
        raise RowError("tool_turn", f"Turn {index + 1} is of a tool ({speaker}).", fix="leave rows with tools out")
    return {**turn, "from": _SPEAKERS.get(speaker, speaker) if isinstance(speaker, str) else speaker}


def _recognises(row: Any) -> bool:
    talk = row.get("conversations", row.get("items"))
    if not isinstance(talk, list) or not talk:
        return False
    speakers = {str(turn.get("from")) for turn in talk if isinstance(turn, dict)}
    return "items" in row or "system" in row or bool(speakers & (set(_SPEAKERS) | _TOOLS))


FORMAT = SourceFormat(parse, recognises=_recognises, describe="ShareGPT: LLaVA's form with more speakers and a system")
