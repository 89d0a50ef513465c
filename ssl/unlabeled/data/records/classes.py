"""Whether two sides mean the same classes: the network that was taught, the store of what it said, the data card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unlabeled.config.sources import public
from unlabeled.data.sources.base import Source
from unlabeled.errors import UserError

# the cure where rows and a card must have the same classes
WITH_THE_CARD = ("take a teacher that was trained on the card's classes, or bring the card's classes into the "
                 "teacher's order")


@dataclass(frozen=True)
class Classes:
    """Number and names, in order, of the classes that one side knows; None where they are not known.

    whose: what it is called in messages. public: the names are those of a library's network.
    """

    whose: str
    count: int | None
    names: Sequence[str] | None
    public: bool = False

    def about(self) -> dict[str, Any]:
        """Return what the header of a store says of them."""
        return {"classes": None if self.names is None else list(self.names), "num_classes": self.count,
                "public_names": self.public}


def classes_of_header(whose: str, about: Mapping[str, Any]) -> Classes:
    """Return the classes of a store, of which its header says `about`."""
    return Classes(whose, about.get("num_classes"), about.get("classes"), bool(about.get("public_names")))


def classes_of_card(source: Source) -> Classes:
    """Return the classes of a data card."""
    names = source.classes
    return Classes(f"data card '{source.name}'", None if names is None else len(names), names)


def classes_of_teacher(teacher: str, count: int, names: Sequence[str] | None, whose: str | None = None) -> Classes:
    """Return the classes of the network that `teacher` names, as `load_teacher` takes it."""
    return Classes(whose or f"'{teacher}'", count, names, public(teacher) is not None)


def refuse_other_classes(one: Classes, other: Classes, cure: str) -> None:
    """Raise UserError, which ends with the cure, if two sides have other classes, or the same ones in another order.

    A library may call the same classes by other words than a card: then none of its names is in both.
    """
    if one.count is not None and other.count is not None and one.count != other.count:
        raise UserError(f"{one.whose} knows {one.count} classes, but {other.whose} has {other.count}; {cure}")
    if one.names is None or other.names is None:
        return
    if (one.public or other.public) and set(one.names).isdisjoint(other.names):
        return
    pairs = zip(one.names, other.names, strict=False)
    differs = next(((place, *pair) for place, pair in enumerate(pairs) if pair[0] != pair[1]), None)
    if differs is not None:
        place, ours, theirs = differs
        raise UserError(f"{one.whose} calls class {place} '{ours}', but {other.whose} '{theirs}'; {cure}")
