"""Help answers at once, says every option of the contract, and imports nothing heavy."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

from mmtune.cli.app import VERBS
from tests.cli.conftest import ROOT, Run

COMMON = "--json --quiet --verbose"
CONTRACT = {
    "quickstart": "--method --output --seed",
    "convert": "--output --from --to --llm --vision --encoder --dtype --max-shard-size --no-verify --overwrite "
    "--push --set",
    "prepare-data": "--output --format --media-root --max-samples --seed --shard --check-media --embed-media "
    "--max-bad-fraction --split --model --workers",
    "pretrain": "--method --preset --base --vision --model --data --media-root --output --tune --epochs --max-steps "
    "--batch-size --learning-rate --num-processes --device --seed --dry-run --overwrite --set --replay --step",
    "generate": "--model --image --audio --video --document --prompt --system --messages --batch --output --batch-size "
    "--max-new-tokens --temperature --top-p --num-beams --stop --seed --logprobs --no-stream --template --positions "
    "--device --dtype",
    "eval": "--model --benchmark --data --media-root --predictions --output --limit --batch-size --rule --pandas-na "
    "--allow-partial --min-score --max-failures --device --dtype",
    "chat": "--model --image",
    "inspect": "--samples --html",
    "compare": "--html",
    "presets": "",
    "doctor": "",
}
CONTRACT["finetune"] = CONTRACT["pretrain"]
CONTRACT["plan"] = f"{CONTRACT['pretrain'].replace('--replay --step', '')} --target --probe"
HEAVY = ("torch", "transformers", "pydantic", "datasets", "PIL", "numpy", "rich", "huggingface_hub")


def test_the_overview_names_every_verb(mmtune: Run) -> None:
    for arguments in ([], ["--help"], ["-h"], ["help"]):
        found = mmtune(*arguments)
        assert found.code == 0
        assert all(f"  {verb} " in found.out for verb in VERBS)
    assert set(mmtune("--help", "--json").json["verbs"]) == set(VERBS)
    assert mmtune("prepare_data", "--help").out == mmtune("prepare-data", "--help").out
    assert mmtune("help", "presets").out == mmtune("presets", "--help").out


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_of_the_contract_is_in_the_help(mmtune: Run, verb: str) -> None:
    found = mmtune(verb, "--help")
    words = found.out.replace(",", " ").split()
    missing = [option for option in f"{CONTRACT[verb]} {COMMON}".split() if option not in words]
    assert (found.code, missing) == (0, [])
    assert mmtune(verb, "--help", "--json").json == {"verb": verb, "help": found.out.rstrip("\n")}


def test_version(mmtune: Run) -> None:
    from mmtune import __version__

    assert mmtune("--version").out == f"mmtune {__version__}\n"
    assert mmtune("--json", "--version").json == {"version": __version__}


@pytest.mark.parametrize("arguments", [["--help"], ["finetune", "--help"], ["generate", "--help"], ["--version"]])
def test_help_is_quick_and_light(arguments: list[str]) -> None:
    """Processor time, since a wall clock also measures what else the machine does."""
    command = [sys.executable, "-m", "mmtune", *arguments]
    times = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(times) <= 0.3
    code = f"import sys; from mmtune.cli.app import main; main({arguments!r}); print(*sys.modules, file=sys.stderr)"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert not {name.partition(".")[0] for name in found.stderr.split()} & set(HEAVY)
