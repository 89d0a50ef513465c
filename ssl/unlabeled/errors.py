"""The one exception that users see, and what they are told of a misspelt name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input from the user; the message says where, what and how to cure it, and is printed without a traceback."""


class NodeError(UserError):
    """What concerns one process or machine of several: that process says it, where other errors are the first one's."""


def nearest(name: str, known: Iterable[str], count: int = 1, likeness: float = 0.6) -> list[str]:
    """Return up to `count` of the known names that are most like `name`, the nearest first; likeness: 0 to 1.

    A name that differs in capitals alone is the nearest.
    """
    known = list(known)
    same = [candidate for candidate in known if candidate.casefold() == name.casefold()]
    rest = [candidate for candidate in known if candidate not in same]
    return [*same, *difflib.get_close_matches(name, rest, count, likeness)][:count]


def did_you_mean(names: Iterable[str], otherwise: str = "") -> str:
    """Return the question that ends a message, with a space before it, or `otherwise` where no name is near."""
    question = " or ".join(f"'{name}'" for name in names)
    text = f"Did you mean {question}?" if question else otherwise
    return f" {text}" if text else ""
