"""Documents through a BERT-like encoder: the mean of its last layer, one vector for each chunk of sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, PreTrainedConfig

from mmtune.core import config
from mmtune.core.errors import CheckpointError, MediaError, UsageError
from mmtune.modalities.base import Modality
from mmtune.modalities.opening import place_of
from mmtune.modalities.pretrained import empty, load_weights, read_config, read_part
from mmtune.modalities.sentences import split_document
from mmtune.modalities.texts import MAX_CHARACTERS, open_text
from mmtune.modalities.windows import lay_out_windows, put_together

_SPARE = 1 << 30  # tokenizers without a limit say a number beyond this


class DocumentSettings(config.Settings):
    """How a document becomes features."""

    max_tokens: int = Field(default=512, ge=8)  # of a chunk, special tokens included; the encoder may allow fewer
    overlong: Literal["chunk", "truncate", "error"] = "chunk"  # documents that are longer
    max_characters: int = Field(default=MAX_CHARACTERS, ge=1)  # longest document that is read at all


class DocumentModality(Modality):
    """Documents: cut into chunks of whole sentences, each encoded to the mean of its tokens.

    A document is text itself, ``{"text": …}``, or a text file in UTF-8. Unlike the published code, chunks keep the
    letters of the text, leave room for the special tokens, and are never empty, and the encoder is the one named.

    Source:
        GTE (arXiv 2308.03281); multi_token's ``document_gte``.
    """

    name = "document"
    marker = "<document>"
    data_key = "documents"
    takes = ("document",)
    Settings: ClassVar[type[DocumentSettings]] = DocumentSettings
    settings: DocumentSettings

    def __init__(
        self, source: str, revision: str | None, settings: DocumentSettings, encoder: PreTrainedConfig, tokenizer: Any
    ) -> None:
        self.source, self.revision, self.settings = source, revision, settings
        self.encoder_config, self.tokenizer = encoder, tokenizer
        self.width = int(encoder.hidden_size)
        self.num_positions = 1
        limits = [settings.max_tokens, getattr(encoder, "max_position_embeddings", _SPARE), tokenizer.model_max_length]
        self.max_tokens = int(min(limit for limit in limits if 0 < limit <= _SPARE))
        if tokenizer.pad_token_id is None:
            raise CheckpointError(
                f"The tokenizer of '{source}' has no padding token.", where=source, fix="use an encoder of BERT's kind"
            )

    @classmethod
    def from_source(
        cls, source: str, *, revision: str | None = None, settings: Mapping[str, Any] | None = None
    ) -> DocumentModality:
        """Read the encoder's configuration and tokenizer.

        Raises:
            CheckpointError: Nothing readable at ``source``.
            RecipeError: Unknown or invalid settings.
            UsageError: An encoder that reads text in two halves, or whose width is not told.
        """
        parsed = config.parse_settings(cls.Settings, settings or {}, where=f"encoders.{cls.name}.settings")
        found = read_config(source, revision, "text encoder")
        if found.is_encoder_decoder or getattr(found, "hidden_size", None) is None:
            raise UsageError(
                f"'{source}' is a '{found.model_type}', no text encoder of BERT's kind.",
                where=source,
                fix="use for example thenlper/gte-large",
            )
        tokenizer = read_part(AutoTokenizer.from_pretrained, source, revision, "tokenizer of documents")
        return cls(source, revision, parsed, found, tokenizer)

    def load(self, item: Any) -> dict[str, Tensor]:
        """Open one document and cut it into chunks.

        Returns:
            ``input_ids`` and ``attention_mask`` [C, T].
        """
        chunks = self.chunks(open_text(item, max_characters=self.settings.max_characters), place_of(item, "document"))
        made = self.tokenizer(chunks, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt")
        return {key: made[key] for key in ("input_ids", "attention_mask")}

    def chunks(self, text: str, where: str = "document in memory") -> list[str]:
        """The pieces of a text that become one vector each.

        Raises:
            MediaError: A text of several chunks where the settings refuse those.
        """
        if self.settings.overlong == "truncate" or self._count(text) <= self.max_tokens:
            return [text]
        if self.settings.overlong == "error":
            raise MediaError(
                f"The document has {self._count(text)} tokens, the encoder reads {self.max_tokens}.",
                where=where,
                fix="shorten it, or set settings.overlong of the encoder to chunk",
            )
        return split_document(text, self._count, self.max_tokens)

    def _count(self, text: str) -> int:
        return len(self.tokenizer(text, verbose=False)["input_ids"])

    def blank(self) -> dict[str, Tensor]:
        """A text of one letter."""
        return self.load({"text": "a"})

    def positions(self, raw: Mapping[str, Tensor]) -> int:
        """One position a chunk."""
        return len(raw["input_ids"])

    def collate(self, raws: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """The chunks of all documents follow one another, padded to the longest."""
        ids = [row for raw in raws for row in raw["input_ids"]]
        masks = [row for raw in raws for row in raw["attention_mask"]]
        counts = [torch.ones(len(raw["input_ids"]), dtype=torch.int64) for raw in raws]
        pad = nn.utils.rnn.pad_sequence
        return {
            "input_ids": pad(ids, batch_first=True, padding_value=float(self.tokenizer.pad_token_id)),
            "attention_mask": pad(masks, batch_first=True),
            "layout": lay_out_windows(counts, 1),
        }

    def load_encoder(self, dtype: torch.dtype) -> nn.Module:
        """Load the encoder; a pooling head is not needed and may be missing."""
        return load_weights(AutoModel, self.source, self.revision, "text encoder", dtype=dtype, unused=("pooler.",))

    def empty_encoder(self, dtype: torch.dtype) -> nn.Module:
        """The encoder by its configuration alone."""
        return empty(AutoModel.from_config, self.encoder_config, dtype)

    def encode(self, encoder: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The mean over the real tokens of each chunk, ``[N, P, D]``, with the mask of chunks."""
        attention = inputs["attention_mask"]
        hidden: Tensor = encoder(input_ids=inputs["input_ids"], attention_mask=attention).last_hidden_state  # [C, T, D]
        real = attention.unsqueeze(-1).to(hidden.dtype)
        means = (hidden * real).sum(1, keepdim=True) / real.sum(1, keepdim=True)  # [C, 1, D]
        values, mask = put_together(means, inputs["layout"])
        return values, mask, None

    def save_source(self, encoder: nn.Module, folder: str) -> None:
        """Write weights, configuration and tokenizer."""
        encoder.save_pretrained(folder)  # type: ignore[operator]
        self.tokenizer.save_pretrained(folder)


class PublishedGTESettings(DocumentSettings):
    """multi_token's: one vector a document."""

    overlong: Literal["chunk", "truncate", "error"] = "truncate"


class PublishedGTE(DocumentModality):
    """``document_gte`` of published multi_token checkpoints: one vector a document, cut after 512 tokens."""

    name = "document_gte"
    Settings = PublishedGTESettings
