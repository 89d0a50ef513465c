"""What the classes of a network are called: a classifier is worth nothing to whoever does not know their order."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from unlabeled.config.recipe import Recipe
from unlabeled.config.sources import public, split_source
from unlabeled.engine.public.networks import open_public
from unlabeled.engine.run.sources import adopt


def export_classes(source: str) -> list[str] | None:
    """Return the names of a network's classes in the order of its logits; None if they are not known.

    source: as `load_export` takes it; a run alone stands for its first classifier, as for a teacher. Of public weights
    they are those in timm's configuration of the file, or those of the library's own. Raises UserError as `load_export`
    does for public networks.
    """
    named = public(source)
    if named is not None:
        return open_public(named).classes
    run, name = split_source(source)
    if name is not None:
        return _stated(run / "export" / f"{name}.json")
    files = sorted((run / "export").glob("*.json"))
    return next((names for file in files if (names := _stated(file)) is not None), None)


def class_names(recipe: Recipe, own: Sequence[str] | None, run: Path) -> list[str] | None:
    """Return the names of the classes that a run's classifiers tell apart: its data's, or else its teacher's."""
    teacher = getattr(recipe.method, "teacher", None)
    if own is None and isinstance(teacher, str):
        return export_classes(adopt(teacher, run))
    return None if own is None else list(own)


def _stated(file: Path) -> list[str] | None:
    try:
        about = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return None
    names = about.get("classes") if isinstance(about, dict) else None
    return [str(name) for name in names] if isinstance(names, list) else None
