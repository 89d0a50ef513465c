"""Where things are kept for the user between commands."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(kind: str) -> Path | None:
    """Return the user's cache folder for one kind of files; None for a user without a home."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unlabeled" / kind
    except RuntimeError:
        return None
