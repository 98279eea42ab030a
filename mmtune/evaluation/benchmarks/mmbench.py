"""MMBench, English and Chinese.

Source:
    Liu et al. 2023 (arXiv 2307.06281); scored as VLMEvalKit's circular evaluation does without a judge.
"""

from __future__ import annotations

from typing import ClassVar

from mmtune.evaluation.benchmarks.circular import Circular


class MMBench(Circular):
    """MMBench from VLMEvalKit's tables or those of Hugging Face with the same columns."""

    name: ClassVar[str] = "mmbench"
    file_names: ClassVar[tuple[str, ...]] = (
        "MMBench_DEV_EN*.tsv",
        "MMBench_DEV_*.tsv",
        "MMBench*.tsv",
        "*mmbench*.tsv",
        "*.parquet",
    )


class MMBenchChinese(MMBench):
    """MMBench-CN: the same questions in Chinese."""

    name: ClassVar[str] = "mmbench_cn"
    file_names: ClassVar[tuple[str, ...]] = ("MMBench_DEV_CN*.tsv", "MMBench*CN*.tsv", "*mmbench*cn*.tsv", "*.parquet")
