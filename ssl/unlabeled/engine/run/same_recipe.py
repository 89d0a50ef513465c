"""Whether two recipes train the same: what may differ, and which names of runs and files mean the same place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel

from unlabeled.config.marks import Mark, covers, marked
from unlabeled.config.read import read_run_recipe, recipe_from
from unlabeled.config.recipe import Recipe
from unlabeled.config.sources import copy_of, public, split_source
from unlabeled.config.yaml.lines import parse_file
from unlabeled.engine.run.sources import digests, kept_public, public_digest, replaced_since
from unlabeled.errors import UserError


def stored_recipe(file: Path) -> dict[str, Any] | None:
    """Return the recipe of a run's file, None if it is missing or damaged; options that came later have defaults."""
    try:
        return read_run_recipe(file.parent).model_dump(mode="json")
    except (UserError, OSError, UnicodeDecodeError):
        pass
    try:  # written by another version, or by hand: what differs is shown as it stands there
        value = parse_file(file).value
    except (UserError, OSError, UnicodeDecodeError):
        return None
    return value if isinstance(value, dict) and "method" in value else None


def kept_recipe(about: dict[str, Any], where: Path) -> dict[str, Any] | None:
    """Return the recipe that a checkpoint keeps, None if it was written before checkpoints kept it."""
    value = about.get("recipe")
    if not isinstance(value, dict):
        return None
    try:
        return recipe_from(value, str(where)).model_dump(mode="json")
    except UserError:
        return value


def differences(before: dict[str, Any], now: dict[str, Any], run: Path, *, places: bool = True) -> list[str]:
    """Return a line per key in which two recipes of `run` train differently, sorted by key.

    places: False leaves out names of runs and files, which may have moved.
    """
    old, new, free = flat(before), flat(now), marked(Recipe, Mark.FREE)
    return [
        f"  {key}: {old.get(key, 'absent')} there, {new.get(key, 'absent')} now"
        for key in sorted(old.keys() | new.keys())
        if not covers(free, key)
        and not same(old.get(key), new.get(key), run)
        and (places or not _places(old.get(key), new.get(key)))
    ]


def same(old: Any, new: Any, run: Path) -> bool:
    """Return whether two values mean the same: they are equal, or name the same file, finished run or public weights.

    A run is the same if its path leads to the same folder, or if it holds the same exported networks, for it may have
    been moved: those of `old` are looked for in the copies that `run` keeps.
    """
    if old == new:
        return True
    if not isinstance(old, str) or not isinstance(new, str) or not old or not new:
        return False
    if public(old) is not None or public(new) is not None:
        return _same_weights(old, new, run)
    (before, export), (now, other) = split_source(old), split_source(new)
    if export != other:
        return False
    try:
        if before.resolve() == now.resolve():
            return True
    except (OSError, ValueError, RuntimeError):  # too long, a null byte, a circle of links: no path
        return False
    theirs = digests(now)
    return bool(theirs) and theirs == (digests(copy_of(old, run)) or digests(before))


def _same_weights(old: str, new: str, run: Path) -> bool:
    """Return whether two names of public networks mean the same bytes; those of `old` may be left in a copy alone."""
    before, now = public(old), public(new)
    if before is None or now is None or (before.library, before.name) != (now.library, now.name):
        return False
    kept = kept_public(before, copy_of(old, run)) or before
    digest = public_digest(now)
    return digest is not None and digest == public_digest(kept)


def _places(old: Any, new: Any) -> bool:
    return isinstance(old, str) and isinstance(new, str) and "/" in old + new


def as_begun(recipe: Recipe, stored: dict[str, Any], run: Path) -> Recipe:
    """Return `recipe`, which trains the same as `stored`, with the names there of earlier runs that `run` has copied.

    The copies are found by these names.
    """
    texts = {key: text for key, text in flat(stored).items() if isinstance(text, str) and copy_of(text, run).is_dir()}
    model: BaseModel = recipe
    for key, now in flat(recipe.model_dump(mode="json")).items():
        if isinstance(now, str) and texts.get(key, now) != now:
            model = _replaced(model, key.split("."), texts[key])
    assert isinstance(model, Recipe)
    return model


def replaced_sources(recipe: Recipe, run: Path) -> list[str]:
    """Return the names of networks in a recipe under which other weights stand than those that `run` has copied."""
    texts = {text for text in flat(recipe.model_dump(mode="json")).values() if isinstance(text, str)}
    return sorted(text for text in texts if copy_of(text, run).is_dir() and replaced_since(text, run))


def _replaced(model: BaseModel, path: list[str], value: str) -> BaseModel:
    below = getattr(model, path[0], None)
    if len(path) == 1:
        return model.model_copy(update={path[0]: value}) if isinstance(below, str) else model
    if not isinstance(below, BaseModel):
        return model
    return model.model_copy(update={path[0]: _replaced(below, path[1:], value)})


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Return nested blocks as one, with dotted keys."""
    if not isinstance(tree, dict):
        return {prefix[:-1]: tree}
    return {key: value for name, sub in tree.items() for key, value in flat(sub, f"{prefix}{name}.").items()}
