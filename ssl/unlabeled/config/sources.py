"""Names of earlier runs, RUN or RUN:EXPORT, and where a run keeps its copies of them."""

from __future__ import annotations

import hashlib
from pathlib import Path


def split_source(source: str) -> tuple[Path, str | None]:
    """Split RUN or RUN:EXPORT."""
    run, colon, export = source.partition(":")
    return Path(run), export if colon else None


def copy_of(source: str, run: Path) -> Path:
    """Return where `run` keeps its copy of a source."""
    origin, _ = split_source(source)
    digest = hashlib.sha256(source.encode("utf-8", "surrogateescape")).hexdigest()
    return run / "sources" / f"{origin.name[:100]}-{digest[:8]}"
