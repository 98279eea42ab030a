"""`python -m mmtune`."""

from __future__ import annotations

import sys

from mmtune.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
