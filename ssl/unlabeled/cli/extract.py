"""unlabeled extract."""

from __future__ import annotations

import argparse
from pathlib import Path

from unlabeled.cli.arguments import existing
from unlabeled.errors import UserError

SUMMARY = "Take plain networks of chosen sizes out of an elastic run, with a table of what each costs and reaches."
EXAMPLES = [
    "unlabeled extract runs/poa-s0 width=384 depth=12",
    "unlabeled extract runs/poa-s0 params=22M,86M out=networks",
    "unlabeled extract runs/poa-s0 width=384,512 depth=12,24 knn=true k=[10]",
    "unlabeled extract runs/poa-s0 student all=true knn=true card=imagenet root=FOLDER",
]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.usage = f"{parser.prog} RUN [EXPORT] key=value ..."
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a finished run with an elastic backbone")
    parser.add_argument(
        "words", metavar="EXPORT | key=value", nargs="*",
        help="which of the method's elastic networks (default: the first). Sizes, one of: width=384 depth=12 (lists: "
        "every width with every depth; depth=4-6 where two stages are elastic), params=22M or flops=4.6G (the trained "
        "size that is nearest; flops are multiply-adds per image of the training size, as the literature counts them), "
        "all=true. out=FOLDER (default RUN/extract); knn=true scores every size, and the same at random "
        "initialisation, by eval/knn.yaml, whose settings may follow, such as card=CARD, root=FOLDER, k=[10]",
    )


def run(arguments: argparse.Namespace) -> int:
    """Check what was given, then write the networks and the table."""
    from unlabeled.config.passes.extract import ExtractSettings
    from unlabeled.config.protocols.vectors import Knn
    from unlabeled.config.read import read_settings
    from unlabeled.config.sources import split_source

    path, export = arguments.run, None
    if not path.exists() and ":" in str(path):
        path, export = split_source(str(path))
    names = [word for word in arguments.words if "=" not in word]
    if len(names) + (export is not None) > 1:
        raise UserError(f"unlabeled extract: one export at a time, given {', '.join(filter(None, [export, *names]))}")
    given = [word for word in arguments.words if "=" in word]
    scoring = [text for text in given if text.partition("=")[0] in Knn.model_fields.keys() - {"export", "protocol"}]
    settings = read_settings("unlabeled extract", ExtractSettings, [text for text in given if text not in scoring])
    if scoring and not settings.knn:
        raise UserError(f"'{scoring[0]}' has no effect without knn=true")
    existing(path)
    if not path.is_dir():
        raise UserError(f"{path} is no folder of a run: networks are taken out of a finished one")

    from unlabeled.evaluation.extract import extract

    extract(path, names[0] if names else export, settings, scoring)
    return 0
