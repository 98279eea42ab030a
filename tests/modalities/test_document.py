"""Documents: nothing of a text is lost between chunks, and a chunk's vector is the mean of its tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from mmtune.core.errors import CheckpointError, MediaError, RecipeError, UsageError
from mmtune.modalities import MODALITIES
from mmtune.modalities.document import DocumentModality
from mmtune.modalities.sentences import split_document, split_sentences
from mmtune.testing.encoders import save_tiny_bert, save_tiny_whisper

STORY = 'Mr. Fox ran. Did he? Yes! He said "Stop." Then (e.g. at 3.5 m) he slept.\n\nNext day: 犬が走る。猫は寝る。 End'


def test_sentences_end_where_readers_think_they_end() -> None:
    assert [sentence.strip() for sentence in split_sentences(STORY)] == [
        "Mr. Fox ran.",
        "Did he?",
        "Yes!",
        'He said "Stop."',
        "Then (e.g. at 3.5 m) he slept.",
        "Next day: 犬が走る。",
        "猫は寝る。",
        "End",
    ]


def test_a_break_of_lines_ends_a_sentence_of_its_own_too() -> None:
    assert split_sentences("Title\n\nText goes on\nhere.") == ["Title\n\n", "Text goes on\nhere."]


@pytest.mark.parametrize("text", [STORY, "", " \n", "x" * 100, "word " * 50, "A. " * 40, "a\n\n\n\nb", STORY * 5])
@pytest.mark.parametrize("limit", [1, 3, 7, 1000])
def test_chunks_are_the_text_again_and_fit(text: str, limit: int) -> None:
    chunks = split_document(text, lambda piece: len(piece.split()) or len(piece), limit)
    assert "".join(chunks) == text
    assert all(chunk.strip() for chunk in chunks) or not text.strip()
    assert all(len(chunk.split()) <= limit for chunk in chunks)


def chunked(folder: str, **settings: object) -> DocumentModality:
    return DocumentModality.from_source(folder, settings=settings)


def test_chunks_leave_room_for_special_tokens_and_keep_capitals(tmp_path: Path) -> None:
    modality = chunked(save_tiny_bert(tmp_path, max_tokens=24))
    text = "The Cat sat down. It was a warm day in June. Averyveryverylongwordwithoutend came by! Ok."
    chunks = modality.chunks(text)
    assert "".join(chunks) == text
    raw = modality.load({"text": text})
    assert raw["input_ids"].shape[0] == len(chunks) == modality.positions(raw)
    assert raw["input_ids"].shape[1] <= 24
    whole = modality.tokenizer(text.replace(" ", ""), add_special_tokens=False)["input_ids"]
    kept = int(raw["attention_mask"].sum()) - 2 * len(chunks)
    assert kept == len(whole)


def test_a_vector_is_the_mean_over_real_tokens(tmp_path: Path) -> None:
    folder = save_tiny_bert(tmp_path)
    modality = chunked(folder)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    texts = ["A cat.", "A dog sat there."]
    with torch.no_grad():
        alone = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state.mean(1)[0] for text in texts]
        inputs = modality.collate([modality.load({"text": text}) for text in texts])
        values, mask, _ = modality.encode(modality.load_encoder(torch.float32), inputs)
    torch.testing.assert_close(values[:, 0], torch.stack(alone), atol=1e-5, rtol=0)
    assert mask is not None
    assert mask.all()


def test_long_documents_are_truncated_as_published_or_refused(tmp_path: Path) -> None:
    folder = save_tiny_bert(tmp_path)
    published = MODALITIES.load("document_gte").from_source(folder)
    assert (published.marker, published.data_key, published.num_positions) == ("<document>", "documents", 1)
    assert published.load({"text": STORY})["input_ids"].shape == (1, 24)
    with pytest.raises(MediaError, match="tokens, the encoder reads 24"):
        chunked(folder, overlong="error").load({"text": STORY})


def test_files_bytes_and_text_are_the_same(tmp_path: Path) -> None:
    modality = chunked(save_tiny_bert(tmp_path / "bert"))
    path = tmp_path / "a.txt"
    path.write_text("\ufeffA cat.", encoding="utf-8")
    expected = modality.load({"text": "A cat."})["input_ids"]
    for item in (path, str(path), {"path": str(path)}, b"A cat."):
        torch.testing.assert_close(modality.load(item)["input_ids"], expected)


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ({"text": " \n"}, "empty"),
        (b"", "empty"),
        (b"\xff\xfe\x00caf\xe9", "UTF-8"),
        (b"PK\x03\x04\0\0", "NUL"),
        ({"text": "ab" * 60}, "more than 100 characters"),
        ("no.txt", "No such document"),
        (".", "A folder"),
        (5, "int is no document"),
        ({"body": "x"}, "NoneType"),
    ],
)
def test_what_is_no_document_is_named(tmp_path: Path, item: object, words: str) -> None:
    with pytest.raises(MediaError, match=words) as error:
        chunked(save_tiny_bert(tmp_path), max_characters=100).load(item)
    assert error.value.fix


def test_a_missing_pooling_head_does_not_matter_but_other_weights_do(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    modality = chunked(save_tiny_bert(tmp_path))
    path = tmp_path / "model.safetensors"
    weights = {name: tensor for name, tensor in load_file(path).items() if not name.startswith("pooler.")}
    save_file(weights, path, metadata={"format": "pt"})
    modality.load_encoder(torch.float32)
    weights.pop("embeddings.LayerNorm.weight")
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="lacks 1 weights"):
        modality.load_encoder(torch.float32)


def test_wrong_sources_and_settings(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no text encoder"):
        chunked(save_tiny_whisper(tmp_path / "whisper"))
    with pytest.raises(CheckpointError, match="No text encoder"):
        chunked(str(tmp_path / "none"))
    with pytest.raises(RecipeError, match="Did you mean 'overlong'"):
        chunked(save_tiny_bert(tmp_path / "bert"), overlng="chunk")
