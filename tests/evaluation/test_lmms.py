"""mmtune inside lmms-eval, on a stand-in of the part of its interface that is used."""

from __future__ import annotations

import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from mmtune.core.errors import MissingExtraError

ROOT = Path(__file__).parents[2]


class StandIn(ABC):
    """What ``lmms_eval.api.model.lmms`` demands of a model."""

    is_simple = True

    def __init__(self) -> None:
        self._rank, self._world_size = 0, 1
        self.task_dict: dict[str, Any] = {}

    @classmethod
    def create_from_arg_string(cls, text: str, more: dict[str, Any]) -> Any:
        pairs = dict(pair.split("=", 1) for pair in text.split(",") if pair)
        return cls(**pairs, **{name: value for name, value in more.items() if value is not None})

    @abstractmethod
    def loglikelihood(self, requests: Any) -> Any: ...

    @abstractmethod
    def generate_until(self, requests: Any) -> Any: ...

    @abstractmethod
    def generate_until_multi_round(self, requests: Any) -> Any: ...


@dataclass(frozen=True)
class Manifest:
    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None
    aliases: tuple[str, ...] = ()


@dataclass
class Instance:
    arguments: tuple[Any, ...]
    resps: list[Any] = field(default_factory=list)

    @property
    def args(self) -> tuple[Any, ...]:
        return self.arguments


@pytest.fixture
def lmms_eval(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    names = ("lmms_eval", "lmms_eval.api", "lmms_eval.api.model", "lmms_eval.models", "lmms_eval.models.registry_v2")
    for name in names:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["lmms_eval.api.model"].lmms = StandIn  # type: ignore[attr-defined]
    sys.modules["lmms_eval.models.registry_v2"].ModelManifest = Manifest  # type: ignore[attr-defined]
    yield
    sys.modules.pop("mmtune.evaluation.lmms_model", None)


def entry_point() -> Any:
    """What pyproject.toml tells lmms-eval to load."""
    text = (ROOT / "pyproject.toml").read_text()
    assert 'lmms-eval = ["lmms-eval>=0.7.3,<0.8"]' in text
    found = re.search(r'\[project\.entry-points\."lmms_eval\.models"\]\nmmtune = "([\w.]+):(\w+)"', text)
    assert found
    return getattr(import_module(found[1]), found[2])


def test_without_the_extra_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lmms_eval", None)
    with pytest.raises(MissingExtraError) as caught:
        entry_point()()
    assert caught.value.fix == 'pip install "mmtune[lmms-eval]"'


def test_requests_are_answered_in_order(lmms_eval: None, monkeypatch: pytest.MonkeyPatch) -> None:
    module, _, name = entry_point()().simple_class_path.rpartition(".")
    kind = getattr(import_module(module), name)
    assert issubclass(kind, StandIn)
    assert kind.is_simple
    model = kind.create_from_arg_string("pretrained=nano,batch_size=2", {"device": "cpu", "max_batch_size": 64})
    docs = [{"image": Image.new("RGB", (24, 24), color)} for color in ("red", "green", "blue")] + [{"image": None}]
    model.task_dict = {"task": {"test": docs}}

    def visuals(doc: dict[str, Any]) -> list[Any]:
        return [doc["image"]] if doc["image"] else []

    short, long = {"max_new_tokens": 1, "temperature": 0}, {"max_new_tokens": 8, "until": ["."], "do_sample": False}
    requests = [
        Instance(("<image>\nWhat color is it?", settings, visuals, at, "task", "test"))
        for at, settings in enumerate([short, long, short, long])
    ]
    found = model.generate_until(requests)
    assert len(found) == 4
    assert all(isinstance(text, str) for text in found)
    assert "." not in found[1] + found[3]
    assert model.generate_until(requests[1:2]) == found[1:2]
    monkeypatch.setattr(import_module(module), "_BATCHES_READ", 1)
    model._batch_size = 1
    assert model.generate_until(requests) == found, "the same when pictures are opened one request after another"
    for refused in (model.loglikelihood, model.generate_until_multi_round):
        with pytest.raises(NotImplementedError):
            refused(requests)
