"""unlabeled chain."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unlabeled.cli.arguments import run_folder, take
from unlabeled.errors import UserError, did_you_mean, nearest

if TYPE_CHECKING:
    from unlabeled.config.chain import Chain

SUMMARY = "Run recipes that build on one another: pretrain, fine-tune, distil; the same command goes on."
EXAMPLES = [
    "unlabeled chain demo",
    "unlabeled chain simclrv2-1pct run=runs/one-percent pretrain.data.train.root=/data/imagenet",
]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("chain", metavar="CHAIN", help="name or path of a chain of recipes/chains")
    parser.add_argument(
        "settings", metavar="STEP.key=value", nargs="*",
        help="overrides of a step's recipe or protocol; run=FOLDER (default runs/chain-CHAIN) holds the steps' "
        "runs; steps=[STEP,STEP] runs these alone, on those before that are finished",
    )
    parser.add_argument(
        "--seeds", type=int, default=1, metavar="N",
        help="repeat the steps that depend on the seed N times, and print intervals (default 1)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Read the chain, check all of it, then run it."""
    chain, folder, steps = read(arguments.chain, arguments.settings)
    if arguments.seeds < 1:
        raise UserError(f"--seeds needs at least 1, given {arguments.seeds}")

    from unlabeled.evaluation.chain import run_chain

    return run_chain(chain, folder, range(arguments.seeds), steps)


def read(name: str, settings: Sequence[str]) -> tuple[Chain, Path, list[str] | None]:
    """Return the chain with its steps' overrides, the folder of its runs, and the steps to run, None for all.

    Raises UserError for an unknown chain or step.
    """
    overrides, own = take(settings, {"run": None, "steps": None})

    from unlabeled.config.chain import Chain
    from unlabeled.config.files import find
    from unlabeled.config.read import read_file

    short = "/" not in name and not name.endswith((".yaml", ".yml"))
    path = find("recipes", f"chains/{name}" if short else name)
    chain = read_file(path, Chain)
    steps = {step.name: step for step in chain.steps}
    for text in overrides:
        step, _, setting = text.partition(".")
        if step not in steps or "=" not in setting:
            raise UserError(f"'{text}' is not of the form STEP.key=value; steps: {', '.join(steps)}")
        steps[step].settings.append(setting)
    chosen = own["steps"].strip("[]").replace(" ", "").split(",") if own["steps"] else None
    for step in chosen or ():
        if step not in steps:
            question = did_you_mean(nearest(step, steps), f"Steps: {', '.join(steps)}")
            raise UserError(f"steps={own['steps']}: no step '{step}'.{question}")
    return chain, run_folder(own["run"] or f"runs/chain-{path.stem}"), chosen
