"""unlabeled sweep."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unlabeled.cli.arguments import run_folder, take
from unlabeled.errors import UserError

if TYPE_CHECKING:
    from unlabeled.config.jobs.sweep import Sweep
    from unlabeled.config.passes.shared import Part

SUMMARY = "Run a recipe with every combination of settings that are lists, and print one table; it goes on."
EXAMPLES = [
    "unlabeled sweep demo/simclrv2 'optim.lr.base=[2,4]' 'train.seed=[0,1,2]'",
    "unlabeled slurm sweep simclrv2 'optim.lr.base=[0.1,0.3,1.0]' 'train.seed=[0,1,2]' gpus=8 submit=true",
    "unlabeled sweep demo/simclrv2 'eval.at_end={sweep: [[knn], [linear]]}'",
]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("recipe", metavar="RECIPE", help="name or path of a recipe (unlabeled recipes lists them)")
    parser.add_argument(
        "settings", metavar="key=value", nargs="*",
        help="overrides of the recipe. A list, key=[A,B], is a run for each, except where the key itself takes that "
        "list, as eval.at_end=[knn,linear]; key={sweep: [A,B]} is a run for each in any case. run=FOLDER (default "
        "runs/sweep-RECIPE) holds the runs, part=3/9: the third of nine jobs that share them",
    )


def run(arguments: argparse.Namespace) -> int:
    """Read the recipe of every run, then train and measure those that are not finished."""
    sweep, folder, part = read(arguments.recipe, arguments.settings)

    from unlabeled.evaluation.sweep import run_sweep

    return run_sweep(sweep, folder, part)


def read(recipe: str, settings: Sequence[str]) -> tuple[Sweep, Path, Part]:
    """Return the sweep, the folder of its runs, and which part of them is asked for.

    Raises UserError with the errors of the first run whose recipe has some.
    """
    overrides, own = take(settings, {"run": None, "part": "1/1"})

    from unlabeled.config.files import find, run_name
    from unlabeled.config.jobs.sweep import read_sweep
    from unlabeled.config.passes.shared import part_of

    try:
        part = part_of(own["part"])
    except ValueError as error:
        raise UserError(f"part={own['part']}: {error}") from error
    folder = run_folder(own["run"] or f"runs/sweep-{run_name(find('recipes', recipe))}")
    return read_sweep(recipe, overrides), folder, part
