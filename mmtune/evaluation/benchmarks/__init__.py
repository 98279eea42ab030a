"""The benchmarks by name; each is imported when it is asked for."""

from __future__ import annotations

from mmtune.core.registry import Registry

BENCHMARKS = Registry(
    "benchmark",
    "mmtune.benchmarks",
    {
        "qa": "mmtune.evaluation.benchmarks.qa:QuestionAnswering",
        "nll": "mmtune.evaluation.benchmarks.nll:NegativeLogLikelihood",
    },
)
