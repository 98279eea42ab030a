"""CCBench: Chinese culture.

Source:
    The MMBench team; scored as VLMEvalKit's circular evaluation does without a judge.
"""

from __future__ import annotations

from typing import ClassVar

from mmtune.evaluation.benchmarks.circular import Circular


class CCBench(Circular):
    """CCBench from VLMEvalKit's table."""

    name: ClassVar[str] = "ccbench"
    file_names: ClassVar[tuple[str, ...]] = ("CCBench*.tsv", "*ccbench*.tsv", "*.parquet")
