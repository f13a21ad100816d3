"""`python -m asrkit`: the same as the command `asrkit`."""

from __future__ import annotations

import sys

from asrkit.cli import main

if __name__ == "__main__":  # worker processes import this file again
    sys.exit(main())
