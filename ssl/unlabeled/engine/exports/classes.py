"""What the classes of a run's networks are called: a classifier is worth nothing to whoever lacks their order."""

from __future__ import annotations

from pathlib import Path

from unlabeled.ops.machine.files import read_json


def export_classes(run: Path, name: str) -> list[str] | None:
    """Return the names of the classes that an export of a run tells apart, in the order of its logits, if it says so.
    """
    try:
        about = read_json(run / "export" / f"{name}.json")
    except (OSError, ValueError):
        return None
    names = about.get("classes") if isinstance(about, dict) else None
    return [str(name) for name in names] if isinstance(names, list) else None
