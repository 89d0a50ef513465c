"""Which runs a sweep is made of: every combination of the settings that are given as lists. Imports no torch."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from unlabeled.config.read import read_recipe
from unlabeled.config.recipe import Recipe
from unlabeled.config.yaml.lines import parse
from unlabeled.errors import UserError

SEED = "train.seed"
_LONGEST = 80  # name of a run's folder


@dataclass(frozen=True)
class Cell:
    """One run of a sweep: the name of its folder, and its value, as written, of every key that differs."""

    name: str
    values: dict[str, str]

    @property
    def overrides(self) -> list[str]:
        """Return the settings in the form key=value."""
        return [f"{key}={value}" for key, value in self.values.items()]


@dataclass(frozen=True)
class Sweep:
    """The settings that all runs share, and the runs."""

    recipe: str
    shared: list[str]
    cells: list[Cell]

    def read(self, cell: Cell) -> Recipe:
        """Read the recipe of a run. Raises UserError with all errors."""
        return read_recipe(self.recipe, [*self.shared, *cell.overrides], check_files=True)


def read_sweep(recipe: str, settings: Sequence[str]) -> Sweep:
    """Part the settings into those of all runs and those that differ, and check the recipe of every run.

    A list is a sweep over its elements, except where the key itself takes that list: `eval.at_end=[knn,linear]` is one
    setting. `key={sweep: [...]}` is always a sweep. Raises UserError for a key that is swept twice, an empty list or
    one with a value twice, nothing to sweep over, and with the errors of the first run whose recipe has some.
    """
    shared, lists = [], {}
    single = [text for text in settings if _elements(text) is None]
    for text in settings:
        elements = _elements(text)
        key = text.partition("=")[0].strip()
        if elements is None or (not _explicit(text) and _takes(recipe, single, text)):
            shared.append(text)
            continue
        if key in lists:
            raise UserError(f"'{key}' is swept twice; give one list")
        written = [_written(element) for element in elements]
        if not written or len(set(written)) < len(written):
            raise UserError(f"'{text}': give two or more different values to sweep over" if not written else
                            f"'{text}' names a value twice; every run needs settings of its own")
        lists[key] = written
    if not lists:
        raise UserError("nothing to sweep over: give a list for a key that takes one value, such as "
                        "optim.lr.base=[0.1,0.3]; for one that takes lists itself: key={sweep: [[...], [...]]}")
    names = _short(list(lists))
    cells = [_cell(names, dict(zip(lists, values, strict=True))) for values in itertools.product(*lists.values())]
    sweep = Sweep(recipe, shared, cells)
    for cell in cells:
        sweep.read(cell)
    return sweep


def _value(text: str) -> Any:
    return parse(text.partition("=")[2], f"override '{text}'", numbered=False).value


def _elements(text: str) -> list[Any] | None:
    """Return the values that a setting names, if it is a list or {sweep: list}."""
    value = _value(text)
    if isinstance(value, dict) and set(value) == {"sweep"}:
        if not isinstance(value["sweep"], list):
            raise UserError(f"'{text}': sweep needs a list of values")
        return value["sweep"]
    return value if isinstance(value, list) else None


def _explicit(text: str) -> bool:
    return isinstance(_value(text), dict)


def _takes(recipe: str, others: Sequence[str], text: str) -> bool:
    """Return whether the list is a value of the key itself: the recipe's reader has nothing to say against it."""
    try:
        read_recipe(recipe, [*others, text])
    except UserError as error:
        return f"override '{text}'" not in str(error)
    return True


def _written(value: Any) -> str:
    """Write a value as the text that is read as it."""
    plain = isinstance(value, str) and parse(value, "", numbered=False).value == value
    return value if plain else json.dumps(value)


def _short(keys: list[str]) -> dict[str, str]:
    """Return for every key the shortest end of it that no other has: base for optim.lr.base."""
    names = {}
    for key in keys:
        parts = key.split(".")
        ends = [".".join(parts[-count:]) for count in range(1, len(parts) + 1)]
        names[key] = next(end for end in ends if sum(f".{other}".endswith(f".{end}") for other in keys) == 1)
    return names


def _cell(names: dict[str, str], values: dict[str, str]) -> Cell:
    name = "_".join(f"{names[key]}-{re.sub(r'[^A-Za-z0-9.+-]+', '-', value)}" for key, value in values.items())
    cut = len(name) > _LONGEST or any(re.search(r"[^A-Za-z0-9.+-]", value) for value in values.values())
    if cut:  # told apart by a hash
        digest = hashlib.sha256(json.dumps(values).encode()).hexdigest()[:8]
        name = f"{name[:_LONGEST]}-{digest}"
    return Cell(name, values)
