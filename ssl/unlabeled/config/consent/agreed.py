"""Code that a recipe, card or protocol runs: announced, and run only if the user has named the file.

What a command names, itself or through the recipe that it names, is the user's own; what is reached through the folder
of a run may be anybody's. Consent is to the content of a file, and is remembered in the user's cache folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from unlabeled.config.base.cache import cache_folder
from unlabeled.config.base.objects import is_dotted
from unlabeled.errors import UserError

TRUST = "UNLABELED_TRUST"  # true: what files of others name is run too, and remembered
_NAMING = ("method", "name", "kind", "protocol")  # keys under which module:object may stand
# a command of webdataset's, wherever it stands: it opens URLs by commands, but for these
_COMMAND = re.compile(r"pipe:|(?<![a-zA-Z0-9+.-])(?!(?:https?|file)://)[a-zA-Z][a-zA-Z0-9+.-]*://")

_allowed: set[str] = set()  # names and commands, and hashes of the files that name them
_announced: set[tuple[str, ...]] = set()


def code_of(value: Any, key: str = "") -> list[str]:
    """Return the objects (module:object) and commands that a recipe, card or protocol names, as plain values."""
    if isinstance(value, dict):
        return [name for inner, part in value.items() for name in code_of(part, str(inner))]
    if isinstance(value, list):
        return [name for part in value for name in code_of(part, key)]
    if not isinstance(value, str):
        return []
    return [value] if _COMMAND.search(value) or (key in _NAMING and is_dotted(value)) else []


def adopt(where: str, value: Any, code: Sequence[str]) -> None:
    """Let run what the user's own file names, say so once, and remember it."""
    if not code:
        return
    _allow(where, code)
    remember(value)


def refuse_others(where: str, value: Any, code: Sequence[str]) -> None:
    """Raise UserError if a file that was reached through a run names code, and the user has not agreed to it before."""
    if not code or _digest(value) in _allowed:
        return
    marker = _marker(value)
    if os.environ.get(TRUST, "").lower() in ("1", "true"):
        remember(value)
    elif marker is None or not marker.is_file():
        raise UserError(f"{where} would run {', '.join(dict.fromkeys(code))}, and no command of yours has named this "
                        f"file: it may be somebody else's. If you trust it, add trust=true to the command, once (or "
                        f"set {TRUST}=true)")
    _allow(where, code)
    _allowed.add(_digest(value))


def refuse_unnamed(where: str, code: Sequence[str]) -> None:
    """Raise UserError unless everything in `code` was let run in this process already."""
    unknown = [name for name in code if name not in _allowed]
    if unknown:
        raise UserError(f"{where} would run {unknown[0]}, which the run's own recipe.yaml does not name")


def remember(value: Any) -> None:
    """Remember the consent to what a file of these values names, for later commands of this user."""
    _allowed.add(_digest(value))
    marker = _marker(value)
    if marker is None:
        return
    with contextlib.suppress(OSError):  # then it is asked for again
        marker.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        marker.touch(mode=0o600)


@contextlib.contextmanager
def trusting(trust: bool) -> Iterator[None]:
    """Trust the files of others for one command."""
    before = os.environ.get(TRUST)
    if trust:
        os.environ[TRUST] = "true"
    try:
        yield
    finally:
        if trust:
            os.environ.pop(TRUST) if before is None else os.environ.update({TRUST: before})


def _allow(where: str, code: Sequence[str]) -> None:
    _allowed.update(code)
    names = tuple(dict.fromkeys(code))
    if names not in _announced and os.environ.get("RANK", "0") == "0":
        _announced.add(names)
        print(f"# {where} runs code that is not of this package: {', '.join(names)}", flush=True)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _marker(value: Any) -> Path | None:
    folder = cache_folder("consent")
    return None if folder is None else folder / _digest(value)
