"""`python -m safesteer_edge`."""

from __future__ import annotations

import sys

from safesteer_edge.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
