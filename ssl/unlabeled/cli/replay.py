"""unlabeled replay."""

from __future__ import annotations

import argparse
from pathlib import Path

from unlabeled.cli.arguments import existing, take
from unlabeled.errors import UserError

SUMMARY = "Repeat an update that gave a NaN or an infinity, and say which module gave it first."
EXAMPLES = ["unlabeled replay runs/simclrv2-s0", "unlabeled replay runs/simclrv2-s0 update=8123"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a run that has kept such an update "
                        "(RUN/nonfinite); neither its data nor its machine is needed, nor as many processes")
    parser.add_argument("settings", metavar="key=value", nargs="*", help="update=N: which one, if several are kept "
                        "(default the last)")


def run(arguments: argparse.Namespace) -> int:
    """Repeat the update; print what was found and write it beside the update, as replay.json."""
    others, own = take(arguments.settings, {"update": None})
    if others:
        raise UserError(f"unlabeled replay: unknown setting '{others[0]}'. Known: update=N")
    text = own["update"]
    if text is not None and not (text.isascii() and text.isdigit()):
        raise UserError(f"update={text}: the number of an update, from 0, such as update=8123")
    existing(arguments.run)

    from unlabeled.engine.replay.redo import replay

    replay(arguments.run, None if text is None else int(text))
    return 0
