"""Make or judge a part of the nano base: ``python -m mmtune.nano.build llm|vision|gate|gate-vision [options]``."""

import importlib
import sys

PARTS = {
    "llm": "mmtune.nano.build.llm",
    "vision": "mmtune.nano.build.vision",
    "gate": "mmtune.nano.build.gate",
    "gate-vision": "mmtune.nano.build.gate_vision",
    "hashes": "mmtune.nano.build.hashes",
}


def main(arguments: list[str]) -> int:
    """Hand the options on to the part that is named first."""
    if not arguments or arguments[0] not in PARTS:
        sys.stderr.write(f"usage: python -m mmtune.nano.build {{{','.join(PARTS)}}} [options]\n")
        return 2
    return int(importlib.import_module(PARTS[arguments[0]]).main(arguments[1:]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
