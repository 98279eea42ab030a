"""The processor: conversations with media in, ids, labels and prepared media out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from transformers import AutoProcessor, PreTrainedTokenizerBase

from mmtune.core.errors import DataError, UsageError
from mmtune.core.registry import canonical
from mmtune.data.sample import Sample, Turn
from mmtune.methods.base import Frame, Lead
from mmtune.modalities.base import Modality
from mmtune.model import encoding
from mmtune.model.chat import ChatTemplate
from mmtune.model.configuration import MMTuneConfig
from mmtune.model.encoding import IGNORED, Batch, Encoded, OverlongError, UntrainedError, encode_segments
from mmtune.model.instruction import InstructionPieces
from mmtune.model.kinds import with_own_names
from mmtune.model.opening import Opener, leave_closed, open_one, open_together
from mmtune.model.placement import framed, opened, place
from mmtune.model.processor_files import Slots, num_slots, read_modalities, read_settings, write_settings
from mmtune.model.rendering import Segment, Template
from mmtune.model.rows import (
    Overlong,
    after_leading_assistant,
    fitted,
    guarded,
    naming,
    refuse_empty_answers,
    refuse_loose_markers,
    refuse_media_in_answers,
    samples_of_call,
)
from mmtune.model.templates import CHAT, INSTRUCTION, named_template
from mmtune.model.tokenization import PieceTokenizer, load_tokenizer

__all__ = ["Batch", "Encoded", "MMTuneProcessor", "OverlongError", "load_tokenizer"]

_OF_TOKENIZER = {CHAT: ChatTemplate, INSTRUCTION: InstructionPieces}  # formats that render with the tokenizer's own


class MMTuneProcessor:
    """Everything between a row of data and a batch for the model. Light and picklable, for data-loader workers.

    Args:
        tokenizer: The language model's tokenizer.
        modalities: Name to modality, in the order of the model's encoders.
        template: Name of the prompt format.
        placeholder_ids: Modality to the id at its placeholder positions, beyond the vocabulary.
        slots: Modality to how many placeholder ids one item gets. With 0 an item leaves no trace in the ids, while the
            rendered prompt keeps its marker.
        lead: The one place for media of a method that has one, whatever the template.
        frame: The texts around each item of a method that has some.

    Raises:
        UsageError: No such template.
        NotPossibleError: A tokenizer without character offsets, or without the chat template that is asked for.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        modalities: Mapping[str, Modality],
        template: str,
        placeholder_ids: Mapping[str, int],
        slots: Mapping[str, Slots],
        lead: Lead | None = None,
        frame: Frame | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.modalities = dict(modalities)
        self.template = template
        self.placeholder_ids = dict(placeholder_ids)
        self.slots: dict[str, Slots] = dict(slots)
        self.lead, self.frame = lead, frame
        self._pieces = PieceTokenizer(tokenizer)
        self._templates: dict[str, Template] = {}
        self.template_of(template)
        missing = [name for name in self.modalities if name not in self.slots or name not in self.placeholder_ids]
        if missing:
            raise UsageError(
                f"No slots or placeholder id for: {', '.join(missing)}.", fix="give them for every modality"
            )

    @property
    def markers(self) -> dict[str, str]:
        """Modality to the marker that stands for one item in a text."""
        return {name: modality.marker for name, modality in self.modalities.items()}

    @property
    def pad_id(self) -> int:
        """The id that fills short rows; masked, so that any would do."""
        known = (self.tokenizer.pad_token_id, self.tokenizer.unk_token_id, self.tokenizer.eos_token_id)
        return next((found for found in known if found is not None), 0)

    def template_of(self, name: str | None = None) -> Template:
        """The prompt format of a name, this processor's own by default."""
        key = canonical(name or self.template)
        if key not in self._templates:
            kind = _OF_TOKENIZER.get(key)
            found = named_template(key) if kind is None else kind(self.tokenizer)
            self._templates[key] = found.ended_by(self.tokenizer.eos_token)
        return self._templates[key]

    def encode(
        self,
        sample: Sample,
        *,
        max_length: int | None = None,
        overlong: Overlong = "error",
        train: bool = True,
        template: str | None = None,
        opener: Opener = open_one,
    ) -> Encoded:
        """Encode a conversation whose answers are trained.

        Args:
            max_length: Most positions, placeholders included; no limit by default.
            overlong: ``truncate-text`` cuts the end, but never a medium; ``error`` and ``drop`` raise, and it is for
                the caller to leave a dropped row out and count it.
            train: ``False`` is :meth:`encode_prompt`.
            opener: How media are opened.

        Raises:
            DataError: A row that the template cannot hold, markers that do not match media, or nothing to train.
            OverlongError: More than ``max_length`` positions.
            MediaError: A medium that cannot be opened.
        """
        if not train:
            return self.encode_prompt(sample, template=template)
        with naming(sample):
            return fitted(self._encode_conversation(sample, template, opener), max_length, overlong)

    def encode_all(self, samples: Sequence[Sample], **options: Any) -> list[Encoded | DataError]:
        """Encode rows as :meth:`encode` does each, or give the error of one; a modality's media are opened together."""
        opener = open_together(samples, self.modalities)
        return [self._encode_or_error(sample, opener, options) for sample in samples]

    def _encode_or_error(self, sample: Sample, opener: Opener, options: Mapping[str, Any]) -> Encoded | DataError:
        try:
            return self.encode(sample, opener=opener, **options)
        except DataError as error:
            return error

    def encode_prompt(self, sample: Sample, *, template: str | None = None, system: str | None = None) -> Encoded:
        """Encode a conversation up to the open turn of the assistant; a last answer is taken off.

        Raises:
            DataError: As :meth:`encode`.
        """
        with naming(sample):
            prompt, dropped = after_leading_assistant(self._own(sample).without_answer())
            found = self._encode(prompt, template, system, generate=True, opener=open_one)
            return replace(found, labels=[], num_targets=0, dropped_turns=dropped)

    def render_prompt(self, sample: Sample, *, template: str | None = None, system: str | None = None) -> str:
        """The text that :meth:`encode_prompt` encodes: one marker an item, without the BOS."""
        with naming(sample):
            prompt, _ = after_leading_assistant(self._own(sample).without_answer())
            segments = self._render(self.template_of(template), prompt.turns, system, generate=True)
            text = "".join(segment.text for segment in segments)
            return text.removeprefix(self.tokenizer.bos_token or "")

    def measure(self, sample: Sample, *, template: str | None = None) -> Encoded:
        """Encode for training without opening media: each item counts as an ordinary one of its modality."""
        with naming(sample):
            return self._encode_conversation(sample, template, leave_closed)

    def collate(self, encoded: Sequence[Encoded], *, side: Literal["right", "left"] = "right") -> Batch:
        """Pad samples to one length and stack their media; see :func:`mmtune.model.encoding.collate`."""
        return encoding.collate(encoded, self.modalities, self.pad_id, side)

    def decode(self, ids: Sequence[int]) -> str:
        """Token ids as text, special tokens skipped, stripped; ids beyond the vocabulary are left out."""
        known = [token_id for token_id in map(int, ids) if 0 <= token_id < len(self.tokenizer)]
        return str(self.tokenizer.decode(known, skip_special_tokens=True)).strip()

    def __call__(
        self,
        text: str | Sequence[str] | None = None,
        images: Any = None,
        messages: Any = None,
        *,
        template: str | None = None,
        return_tensors: str = "pt",
        **media: Any,
    ) -> Batch:
        """Prepare prompts for ``generate``, as Hugging Face processors do.

        Args:
            text: One prompt or several, exactly as the model shall see them, with a marker for each item; a method that
                has one place for media needs none where each prompt has its list.
            images: The items of all prompts in reading order, flat or one list a prompt.
            messages: One conversation (or several) in the OpenAI form instead of ``text``; the template renders it.
            media: Items of further modalities by their data key, for example ``audios=[…]``.

        Returns:
            A batch padded on the left, without labels.

        Raises:
            DataError: Markers that do not match items, or messages that cannot be read.
            UsageError: Neither or both of ``text`` and ``messages``, or another tensor type than ``pt``.
        """
        placed = self.lead is not None
        samples = samples_of_call(text, {"images": images, **media}, messages, self.modalities, placed=placed)
        if return_tensors != "pt":
            raise UsageError(f"No tensors of type '{return_tensors}'.", fix='use return_tensors="pt"')
        chosen = template if messages is not None else "raw"
        batch = self.collate([self.encode_prompt(sample, template=chosen) for sample in samples], side="left")
        del batch["ids"]
        return batch

    def save_pretrained(self, folder: str | Path, **_: Any) -> None:
        """Write the tokenizer and ``mmtune_processor.json``; encoders inside ``folder`` become relative paths."""
        self.tokenizer.save_pretrained(str(folder))
        write_settings(self, Path(folder))

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        modalities: Mapping[str, Modality] | None = None,
        revision: str | None = None,
        **_: Any,
    ) -> MMTuneProcessor:
        """Read what :meth:`save_pretrained` wrote.

        Args:
            source: A folder or a hub id.
            modalities: Used instead of reading the encoders' configurations again.

        Raises:
            CheckpointError: No processor there, or a damaged one.
        """
        settings, folder = read_settings(str(source), revision)
        known = modalities if modalities is not None else read_modalities(settings, folder)
        tokenizer = load_tokenizer(source, revision)
        lead = Lead(**settings["lead"]) if settings.get("lead") else None
        frame = Frame(**settings["frame"]) if settings.get("frame") else None
        return cls(tokenizer, known, settings["template"], settings["placeholder_ids"], settings["slots"], lead, frame)

    def _own(self, sample: Sample) -> Sample:
        return with_own_names(sample, self.modalities)

    def _encode_conversation(self, sample: Sample, template: str | None, opener: Opener) -> Encoded:
        kept, dropped = after_leading_assistant(self._own(sample))
        refuse_empty_answers(kept)
        found = self._encode(kept, template, None, generate=False, opener=opener)
        found.dropped_turns = dropped
        if not found.num_targets:
            raise UntrainedError("The row has no token to train.", fix="give it an answer of the assistant")
        return found

    def _encode(
        self, sample: Sample, template: str | None, system: str | None, *, generate: bool, opener: Opener
    ) -> Encoded:
        form = self.template_of(template)
        turns = sample.turns
        refuse_loose_markers(turns, self.markers)
        refuse_media_in_answers(turns)
        if form.name != "raw":  # the text of a raw prompt is the template itself
            turns = tuple(guarded(turn, self._pieces) for turn in turns)
            system = None if system is None else self._pieces.guard(system)
        segments = self._render(form, turns, system, generate=generate)
        media, placeholders = self._take_media(sample, opener)
        made = encode_segments(segments, self._pieces, self.markers, placeholders, separate=form.separate)
        targets = sum(label != IGNORED for label in made.labels)
        return Encoded(sample.id, made.input_ids, made.labels, media, targets, media_end=made.media_end)

    def _render(self, form: Template, turns: tuple[Turn, ...], system: str | None, *, generate: bool) -> list[Segment]:
        if self.lead is None:
            markers = framed(self.markers, self.frame, form, generate=generate)
            return form.render(turns, generate=generate, system=system, markers=markers)
        ahead, turns = place(turns, self.lead, form, self.markers)
        segments = form.render(turns, generate=generate, system=system, markers=self.markers, led=True)
        return opened(segments, ahead, self.tokenizer.bos_token)

    def _take_media(
        self, sample: Sample, opener: Opener
    ) -> tuple[dict[str, list[dict[str, Any]]], dict[str, list[tuple[int, int]]]]:
        """Items by modality, and for each the id and number of its placeholders."""
        media: dict[str, list[dict[str, Any]]] = {}
        placeholders: dict[str, list[tuple[int, int]]] = {}
        for item in sample.media:
            modality = self.modalities[item.modality]
            raw = opener(modality, item.uri)
            if raw is not None:
                media.setdefault(item.modality, []).append(raw)
            positions = modality.num_positions if raw is None else modality.positions(raw)
            count = num_slots(self.slots[item.modality], positions)
            placeholders.setdefault(item.modality, []).append((self.placeholder_ids[item.modality], count))
        return media, placeholders


AutoProcessor.register(MMTuneConfig, MMTuneProcessor)
