"""Rotations of a question whose table names the question itself."""

from __future__ import annotations

import json
from pathlib import Path

from mmtune.evaluation.run import evaluate


def test_the_named_row_is_the_base(tmp_path: Path) -> None:
    # Row 12 is rotated by 11; row 20 stands alone. The category is that of the base row.
    lines = ["index\tg_index\tquestion\tA\tB\tanswer\tcategory", "11\t12\tWhich?\tblue\tred\tB\trotated"]
    lines += ["12\t12\tWhich?\tred\tblue\tA\tbase", "20\t20\tWhich?\tred\tblue\tA\tbase"]
    table = tmp_path / "MMBench_x.tsv"
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    given = tmp_path / "p.jsonl"
    answers = {11: "B", 12: "A", 20: "B"}
    given.write_text("".join(json.dumps({"index": at, "prediction": text}) + "\n" for at, text in answers.items()))
    scores = evaluate(benchmark="mmbench", data=table, predictions=given)["scores"]
    assert scores["none"] == {"Overall": 0.5, "base": 0.5}
    assert scores["vanilla_0_none"]["Overall"] == 0.5
    assert scores["vanilla_all_none"]["Overall"] == 2 / 3
