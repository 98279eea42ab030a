"""An mmtune model as lmms-eval wants one. Imported by lmms-eval alone.

Source:
    The interface ``lmms_eval.api.model.lmms`` of lmms-eval 0.7.3, simple models.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from lmms_eval.api.model import lmms

from mmtune.core.errors import MMTuneError, UsageError
from mmtune.data.markers import MARKERS
from mmtune.data.sample import Sample
from mmtune.evaluation.prompts import question
from mmtune.model.build import load
from mmtune.model.decoding import Decoding
from mmtune.model.generation import answers

_NEW_TOKENS = 128  # for tasks that do not say
_BATCHES_READ = 16  # batches whose pictures are opened at once
_LOG = logging.getLogger(__name__)


class MMTuneForLMMs(lmms):  # type: ignore[misc]
    """Answers the requests of lmms-eval with an mmtune checkpoint.

    Args:
        pretrained: Model folder, hub id, or ``nano``.
        batch_size: Requests at once.
        device, dtype: As for :func:`mmtune.load`.
        template: Conversation template in place of the model's own.
        ignored: Further arguments that lmms-eval passes to every model.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str = "nano",
        batch_size: int | str = 8,
        device: str = "auto",
        dtype: str = "auto",
        template: str | None = None,
        **ignored: Any,
    ) -> None:
        super().__init__()
        from accelerate import PartialState

        state = PartialState()
        self._rank, self._world_size = state.process_index, state.num_processes
        place = str(state.device) if state.num_processes > 1 else device
        self._model, self._processor = load(pretrained, device=place, dtype=dtype)
        self.device = self._model.device
        self._batch_size = int(batch_size) if str(batch_size).isdecimal() else 8
        self._template = template

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """One answer a request, in their order; requests of equal settings share batches."""
        found: list[str] = [""] * len(requests)
        groups: dict[Decoding, list[int]] = {}
        for at, request in enumerate(requests):
            groups.setdefault(self._decoding(request.args[1]), []).append(at)
        size = self._batch_size * _BATCHES_READ
        parts = [(key, rows[at : at + size]) for key, rows in groups.items() for at in range(0, len(rows), size)]
        for decoding, places in parts:
            samples = [self._sample(requests[at], str(at)) for at in places]
            stream = answers(
                self._model, self._processor, samples, decoding, batch_size=self._batch_size, on_error="record"
            )
            for index, given in stream:
                if given.error is not None:
                    _LOG.warning("request %d failed and counts as empty: %s", places[index], given.error["message"])
                found[places[index]] = given.text
        return found

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Not offered: tasks that rank options by likelihood are refused."""
        raise NotImplementedError("mmtune answers generate_until tasks; choose a task that generates its answer")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Not offered: tasks of several rounds are refused."""
        raise NotImplementedError("mmtune answers tasks of one round; choose another task")

    def _sample(self, request: Any, name: str) -> Sample:
        """The request as a row: its pictures, then its text without markers, which stand before it."""
        context, _, doc_to_visual, doc_id, task, split = request.args
        visuals = doc_to_visual(self.task_dict[task][split][doc_id]) or []
        pictures = list(visuals) if isinstance(visuals, list | tuple) else [visuals]
        text = str(context)
        for marker in MARKERS.values():
            text = text.replace(marker, "")
        return question(name, text.strip("\n"), pictures)

    def _decoding(self, settings: Mapping[str, Any]) -> Decoding:
        """Decoding settings from those of a task.

        Raises:
            UsageError: Settings that cannot be.
        """
        until = settings.get("until") or ()
        stop = (until,) if isinstance(until, str) else tuple(until)
        sampled = bool(settings.get("do_sample")) or float(settings.get("temperature") or 0) > 0
        try:
            return Decoding(
                max_new_tokens=int(settings.get("max_new_tokens") or _NEW_TOKENS),
                temperature=float(settings.get("temperature") or 1.0) if sampled else 0.0,
                top_p=float(settings.get("top_p") or 1.0),
                num_beams=int(settings.get("num_beams") or 1),
                stop=tuple(text for text in stop if text),
                template=self._template,
            )
        except (TypeError, ValueError) as error:
            if isinstance(error, MMTuneError):
                raise
            raise UsageError(f"Settings of the task cannot be read: {error}", fix="give numbers") from error
