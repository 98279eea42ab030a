"""YAML with the line of every key, numbers as people write them, and no key twice."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from mmtune.core.errors import RecipeError

_SHOWN = 80  # characters of a value in a message


class _Loader(yaml.SafeLoader):
    """PyYAML reads ``1e-3`` as text, people mean a number; it reads ``2026-01-31`` as a date, and no setting is one."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """A value, whole: PyYAML notices only so that one holds itself.

        It raises whatever comes up for a tag that its text does not fit, such as ``!!int abc``.
        """
        if isinstance(node, yaml.ScalarNode) and "\0" in node.value:
            raise ConstructorError(None, None, "a text with the character 0", node.start_mark)
        try:
            return super().construct_object(node, deep=True)
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            kind = node.tag.rpartition(":")[2]
            raise ConstructorError(None, None, f"{_short(node.value)!r} is no {kind}", node.start_mark) from error


_Loader.yaml_implicit_resolvers = {
    key: [(tag, pattern) for tag, pattern in found if tag != "tag:yaml.org,2002:timestamp"]
    for key, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


@dataclass(frozen=True)
class Marked:
    """A mapping with the 1-based line that each dotted key stands on."""

    values: dict[str, Any]
    lines: dict[str, int] = field(default_factory=dict)


def parse_value(text: str, *, where: str) -> Any:
    """One value as YAML writes it: a number, a word, ``[a, b]``, ``{a: 1}``, ``null``.

    Raises:
        RecipeError: The text is no YAML.
    """
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, RecursionError) as error:
        raise RecipeError(
            f"Not a YAML value: {_short(text)!r} ({_reason(error)}).", where=where, fix="quote the text"
        ) from error


def parse_mapping(text: str, *, where: str) -> Marked:
    """A YAML document whose top level is a mapping.

    Raises:
        RecipeError: Broken YAML, a key given twice, or a top level that is no mapping; with ``file:line``.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        lines: dict[str, int] = {}
        if node is None:
            return Marked({})
        if not isinstance(node, yaml.MappingNode):
            raise RecipeError("A recipe is a mapping of keys to values.", where=f"{where}:1", fix="see: mmtune presets")
        _collect(node, "", lines, where)
        return Marked(loader.construct_document(node), lines)
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where}:{mark.line + 1}" if mark is not None else where
        raise RecipeError(f"Broken YAML: {_reason(error)}.", where=place, fix="correct this line") from error


def _collect(node: yaml.MappingNode, prefix: str, lines: dict[str, int], where: str) -> None:
    for key_node, value_node in node.value:
        key = f"{prefix}{key_node.value}"
        line = key_node.start_mark.line + 1
        if key in lines:
            raise RecipeError(
                f"Key '{key}' stands twice, first on line {lines[key]}.", where=f"{where}:{line}", fix="remove one"
            )
        lines[key] = line
        if isinstance(value_node, yaml.MappingNode):
            _collect(value_node, f"{key}.", lines, where)
        if isinstance(value_node, yaml.SequenceNode):
            for index, item in enumerate(value_node.value):
                lines[f"{key}.{index}"] = item.start_mark.line + 1
                if isinstance(item, yaml.MappingNode):
                    _collect(item, f"{key}.{index}.", lines, where)


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _reason(error: yaml.YAMLError | RecursionError) -> str:
    if isinstance(error, RecursionError):
        return "brackets in brackets without end"
    return str(getattr(error, "problem", None) or error).splitlines()[0]
