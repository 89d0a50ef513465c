"""What the reading of data tells people beside its errors."""

from __future__ import annotations

import functools
import sys

from unlabeled.ops.distributed import rank


@functools.cache
def say_once(text: str) -> None:
    """Print a line to standard error, on the first process only, and only the first time."""
    if rank() == 0:
        print(text, file=sys.stderr)
