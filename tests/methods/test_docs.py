"""docs/methods.md: the signatures that it lists for authors of methods are those of the code."""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "methods.md"
ROWS = re.findall(r"^\| `([\w.]+)(\(.*?\))` \| \S", PAGE.read_text(), re.MULTILINE)


def signature(name: str) -> str:
    """Return the signature of a function below the package, without types."""
    module, _, function = name.rpartition(".")
    known = inspect.signature(getattr(import_module(f"unlabeled.{module}"), function))
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in known.parameters.values()]
    return str(known.replace(parameters=bare, return_annotation=inspect.Signature.empty))


def test_the_page_states_signatures_as_they_are() -> None:
    assert len(ROWS) > 20
    assert {name: stated for name, stated in ROWS if stated != signature(name)} == {}
