"""Each rule alone equals the reference function, on the tables that come with the golden files."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

from mmtune.evaluation.scorers import mmmu, scienceqa, vqa_text, yes_no
from mmtune.evaluation.scorers.letters import infer_letter, infer_option

UNIT = Path(__file__).parents[2] / "golden" / "eval" / "unit"


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in gzip.decompress((UNIT / f"{name}.jsonl.gz").read_bytes()).splitlines()]


def test_options() -> None:
    for row in rows("can_infer"):
        text, choices = row["prediction"], row["choices"]
        found = infer_option(text, choices).letter, infer_letter(text, choices).letter
        assert found == (row["opt"], row["opt_letter_only"]), row
        assert infer_option(text, choices, "2024").letter == row["opt_2024"], row


def test_yes_and_no() -> None:
    for row in rows("yes_no"):
        text = row["prediction"]
        found = yes_no.vlmevalkit_yes_no(text), yes_no.pope_yes_no(text), yes_no.mme_yes_no(text)
        assert found == (row["vlmevalkit"], row["pope_official"], row["mme_official"]), row


def test_normal_forms() -> None:
    for row in rows("vqa_normalise"):
        text = row["text"]
        found = vqa_text.vlmevalkit(text), vqa_text.official(text), vqa_text.m4c(text), vqa_text.official(text)
        names = ("vlmevalkit", "official_vqaEval", "evalai_m4c_textvqa", "lmms_vqav2")
        assert found == tuple(row[name] for name in names), row


def test_mmmu() -> None:
    for row in rows("mmmu_mcq"):
        options = {chr(ord("A") + at): text for at, text in enumerate(row["options"])}
        assert (mmmu.parse_choice(row["response"], options) or "<RANDOM>") == row["parsed"], row
    for row in rows("mmmu_open"):
        values = mmmu.parse_open(row["response"])
        assert sorted(map(str, values)) == sorted(row["parsed_set"]), row
        assert mmmu.open_is_right(values, [row["answer"]]) == row["correct"], row
        assert mmmu.normalize(row["answer"]) == row["gold_normalised"], row


def test_scienceqa() -> None:
    for row in rows("scienceqa_llava"):
        letter = scienceqa.parse_letter(row["prediction"])
        assert letter == row["parsed"], row
        assert scienceqa.choice_index(letter, row["n_choices"]) == row["pred_idx"], row
