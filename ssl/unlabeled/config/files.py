"""Where recipes, data cards and protocols stand: as given, at the root of the checkout, or inside the wheel."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from unlabeled.errors import UserError, did_you_mean, nearest

Kind = Literal["recipes", "data", "eval", "slurm"]

_PACKAGE = Path(__file__).resolve().parents[1]
_WORDS = {"recipes": "recipe", "data": "data card", "eval": "evaluation protocol"}
_SUFFIXES = (".yaml", ".yml")


def find(kind: Kind, name: str | Path) -> Path:
    """Return the file of a recipe, data card or protocol; `.yaml` and the leading `recipes/` and so on are optional.

    Raises UserError with the nearest names.
    """
    given = Path(name).expanduser()
    short = given.relative_to(kind) if not given.is_absolute() and given.parts[:1] == (kind,) else given
    candidates = (given, *(folder / short for folder in _folders(kind))) if given.name else ()
    for candidate in candidates:
        for path in (candidate, candidate.with_name(candidate.name + ".yaml")):
            if path.suffix in _SUFFIXES and os.path.isfile(path):  # which is False for a name that is too long
                return path
    raise UserError(f"no {_WORDS[kind]} '{name}'. {_nearest(kind, given, short)}")


def shipped(kind: Kind, file: Path) -> bool:
    """Return whether a file came with the project."""
    return any(file.resolve().is_relative_to(folder.resolve()) for folder in _folders(kind))


def independent(kind: Kind, name: str) -> str:
    """Return a name that means the same file from every working directory: the path of one of the user's own."""
    path = find(kind, name).resolve()
    return name if shipped(kind, path) else str(path)


def job_script(name: str) -> str:
    """Return the text of a script of slurm/."""
    return next(folder / f"{name}.sbatch" for folder in _folders("slurm")).read_text("utf-8")


def listing(kind: Kind) -> list[str]:
    """Return the names that come with the project, without `.yaml`, sorted."""
    for folder in _folders(kind):
        return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))
    return []


def shown(path: Path) -> str:
    """Write a path for messages: relative where it lies below the working directory."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except (ValueError, OSError):
        return str(path)


def run_name(recipe: Path) -> str:
    """Return the recipe's part of its default run folder: cifar10-simclrv2 for recipes/cifar10/simclrv2.yaml."""
    for folder in _folders("recipes"):
        if recipe.resolve().is_relative_to(folder):
            return "-".join(recipe.resolve().relative_to(folder).with_suffix("").parts)
    return recipe.stem


def default_run(recipe: Path, seed: int) -> Path:
    """Return the folder of a run for which none is given."""
    return Path("runs") / f"{run_name(recipe)}-s{seed}"


def _folders(kind: Kind) -> list[Path]:
    """The folders that hold this kind, the checkout's first; an installed package knows of no checkout."""
    folders = [_PACKAGE / "_files" / kind]
    if _PACKAGE.parent.name == "ssl" and (_PACKAGE.parents[1] / "pyproject.toml").is_file():
        folders.insert(0, _PACKAGE.parents[1] / kind)
    return [folder for folder in folders if folder.is_dir()]


def _nearest(kind: Kind, given: Path, short: Path) -> str:
    if os.path.isdir(given):
        return f"'{given}' is a folder; name a .yaml file"
    if os.path.isfile(given):
        return f"'{given}' does not end in .yaml"
    names = listing(kind)
    wanted = short.with_suffix("").as_posix() if short.suffix in _SUFFIXES else short.as_posix()
    near = nearest(wanted, names, 3) or [n for n in names if n.split("/")[-1] == short.stem]
    return did_you_mean(near, f"Known: {', '.join(names) or 'none'}; or give the path of a .yaml file").lstrip()
