"""The benchmarks by name; each is imported when it is asked for."""

from __future__ import annotations

from mmtune.core.registry import Registry

_HERE = "mmtune.evaluation.benchmarks"
BENCHMARKS = Registry(
    "benchmark",
    "mmtune.benchmarks",
    {
        "qa": f"{_HERE}.qa:QuestionAnswering",
        "nll": f"{_HERE}.nll:NegativeLogLikelihood",
        "mmbench": f"{_HERE}.mmbench:MMBench",
        "mmbench_cn": f"{_HERE}.mmbench:MMBenchChinese",
        "ccbench": f"{_HERE}.ccbench:CCBench",
        "mme": f"{_HERE}.mme:MME",
        "scienceqa": f"{_HERE}.scienceqa:ScienceQA",
        "hallusionbench": f"{_HERE}.hallusionbench:HallusionBench",
        "mmmu": f"{_HERE}.mmmu:MMMU",
        "seedbench": f"{_HERE}.seedbench:SEEDBench",
        "pope": f"{_HERE}.pope:POPE",
        "textvqa": f"{_HERE}.textvqa:TextVQA",
        "vqav2": f"{_HERE}.vqav2:VQAv2",
        "gqa": f"{_HERE}.gqa:GQA",
        "vizwiz": f"{_HERE}.vizwiz:VizWiz",
        "coco_caption": f"{_HERE}.coco_caption:COCOCaption",
    },
)
