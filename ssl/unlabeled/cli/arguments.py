"""What the commands share in reading their arguments."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from unlabeled.errors import UserError, did_you_mean, nearest


class Parser(argparse.ArgumentParser):
    """argparse with examples below the help, and errors in the form of all others."""

    def __init__(self, prog: str, summary: str, examples: Sequence[str]) -> None:
        word = "example" if len(examples) == 1 else "examples"
        super().__init__(
            prog, description=summary, epilog="\n".join([f"{word}:", *(f"  {line}" for line in examples)]),
            formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Raise UserError."""
        raise UserError(f"{self.prog}: {message}. Settings have the form key=value; '{self.prog} --help' says more")


def take(settings: Sequence[str], own: Mapping[str, str | None]) -> tuple[list[str], dict[str, str | None]]:
    """Part `key=value` settings into overrides of the file and the command's own, with the defaults `own`."""
    values, overrides = dict(own), []
    for text in settings:
        key, equals, value = text.partition("=")
        if equals and key in own:
            if not value:
                raise UserError(f"'{text}' has no value")
            values[key] = value
        else:
            overrides.append(text)
    return overrides, values


def truth(key: str, value: str | None) -> bool:
    """Read true or false. Raises UserError for anything else."""
    if value not in ("true", "false"):
        raise UserError(f"'{key}' needs true or false, given '{value}'")
    return value == "true"


def run_folder(text: str) -> Path:
    """Return the folder that run=FOLDER names. Raises UserError for one that no run can have, or nobody could name."""
    if ":" in text:
        raise UserError(f"run={text}: the name of a run holds no colon, since RUN:EXPORT names one of its exports; "
                        "choose another with run=FOLDER")
    path = Path(os.path.expanduser(text))
    try:
        path.lstat()
        if not path.is_dir():
            raise UserError(f"run={text} is a file, or a link that leads nowhere; name a folder")
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:  # too long, below a file, a zero byte
        shown = text if len(text) <= 200 else f"{text[:200]}..."
        raise UserError(f"run={shown} cannot be a folder: {getattr(error, 'strerror', None) or error}") from error
    return path


def existing(path: Path) -> None:
    """Raise UserError if there is no such run or file, naming the nearest beside it."""
    if os.path.exists(path):  # which is False for a path that is too long
        return
    beside = sorted(other.name for other in path.parent.iterdir()) if os.path.isdir(path.parent) else []
    question = did_you_mean(str(path.parent / name) for name in nearest(path.name, beside))
    raise UserError(f"'{path}' does not exist.{question}")


def existing_network(source: Path) -> None:
    """Raise UserError if a network is named by a run, a checkpoint or a file that does not exist."""
    from unlabeled.config.sources import public

    named = public(str(source))
    if named is None:
        existing(source)
    elif named.file is not None:
        existing(named.file)


def named_export(source: Path, settings: Sequence[str]) -> tuple[Path, list[str]]:
    """Part RUN:EXPORT, or RUN:SIZE, into the run and the setting `export=EXPORT`; other names of networks stay as they
    are.

    Raises UserError if the settings name an export too.
    """
    from unlabeled.config.sources import public, split_source

    if public(str(source)) is not None or os.path.exists(source):
        return source, list(settings)
    run, export = split_source(str(source))
    if export is None:
        return source, list(settings)
    if (other := next((text for text in settings if text.startswith("export=")), None)) is not None:
        raise UserError(f"'{source}' names an export, and so does {other}; leave one of them out")
    return run, [*settings, f"export={export}"]


def home(source: Path) -> Path:
    """Return the folder for what is made of a network: a run's own, or that of a public network's results."""
    from unlabeled.config.sources import public

    named = public(str(source))
    if named is None:
        return source if source.is_dir() else source.parent.parent  # of a checkpoint

    from unlabeled.engine.restore import results_of

    return results_of(named)


def first_process() -> bool:
    """Return whether this is the one process of a launch that talks."""
    return os.environ.get("RANK", "0") == "0"
