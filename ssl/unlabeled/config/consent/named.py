"""The code that files name: whose files they are decides whether it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unlabeled.config.consent.agreed import adopt, code_of, refuse_others, refuse_unnamed, remember
from unlabeled.config.files import find, shipped, shown
from unlabeled.config.sources import public
from unlabeled.config.yaml.lines import parse, parse_file
from unlabeled.errors import UserError


def adopt_file(where: str, value: dict[str, Any]) -> None:
    """Agree to what a recipe, protocol or settings of the user's own run, and the cards that they name."""
    adopt(where, value, _code(value))
    for card in _cards(value):
        adopt_card(card)


def adopt_card(name: str | Path) -> None:
    """Agree to what a card of the user's own runs, and the one whose samples it lists; a wrong one is told of later."""
    try:
        file = find("data", name)
        value = None if shipped("data", file) else parse_file(file, shown(file)).value
    except UserError:
        return
    adopt(shown(file), value, _code(value))
    source = value.get("source") if isinstance(value, dict) else None
    if isinstance(source, dict) and isinstance(source.get("card"), str) and source["card"] != str(name):
        adopt_card(source["card"])


def refuse_card(file: Path) -> None:
    """Raise UserError if a card that did not come with the project runs code to which this user has not agreed."""
    if not shipped("data", file):
        refuse_recipe(shown(file), parse_file(file, shown(file)).value)


def refuse_recipe(where: str, value: Any) -> None:
    """Raise UserError if the recipe of a run names code to which this user has not agreed."""
    refuse_others(where, value, _code(value))


def refuse_backbone(file: Path, value: dict[str, Any]) -> None:
    """Raise UserError if the backbone of an earlier run's recipe is code to which this user has not agreed."""
    refuse_others(str(file), value, _code({"backbone": value["backbone"]}))


def refuse_kept(where: str, value: dict[str, Any]) -> None:
    """Raise UserError if a recipe that a checkpoint keeps names code that the run's own recipe does not."""
    refuse_unnamed(where, _code(value))


def remember_recipe(text: str) -> None:
    """Remember that what the recipe of a run names is run with this user's consent; text: of the file."""
    value = parse(text, "recipe.yaml").value
    if _code(value):
        remember(value)


def _cards(block: Any) -> list[str]:
    """Return the cards that are named anywhere below a block."""
    if isinstance(block, dict):
        return [name for key, part in block.items()
                for name in ([part] if key == "card" and isinstance(part, str) else _cards(part))]
    return [name for part in block for name in _cards(part)] if isinstance(block, list) else []


def _code(value: Any) -> list[str]:
    """Return what plain values of a recipe, card or protocol run, but for networks of other libraries."""
    return [name for name in code_of(value) if public(name) is None]
