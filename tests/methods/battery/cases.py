"""The cases of a file that `--methods` names: methods outside the table, such as those of a package of one's own."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from tiny import Case

from unlabeled.config.read import read_file


class FileCase(BaseModel):
    """One entry of the file."""

    model_config = ConfigDict(extra="forbid", strict=True)

    recipe: str
    overrides: tuple[str, ...] = ()
    dtype: Literal["float32", "float64"] = "float64"


def read_cases(file: Path) -> list[Case]:
    """Read a file of cases; its folder holds the recipes and modules that it names, if they stand nowhere else.

    Raises UserError for a file that is none, and for recipes that do not hold.
    """
    folder = str(file.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)  # child processes get it too
    found = []
    for name, entry in read_file(file, dict[str, FileCase]).items():
        beside = file.resolve().parent / entry.recipe
        recipe = str(beside) if beside.is_file() else entry.recipe
        case = Case(name, recipe, entry.overrides, dtype=getattr(torch, entry.dtype))
        case.read()
        found.append(case)
    return found
