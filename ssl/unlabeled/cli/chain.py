"""unlabeled chain."""

from __future__ import annotations

import argparse

from unlabeled.cli.arguments import run_folder, take
from unlabeled.errors import UserError

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
        help="overrides of a step's recipe or protocol; run=FOLDER (default runs/chain-CHAIN) holds the steps' runs",
    )
    parser.add_argument(
        "--seeds", type=int, default=1, metavar="N",
        help="repeat the steps that depend on the seed N times, and print intervals (default 1)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Read the chain, check all of it, then run it."""
    overrides, own = take(arguments.settings, {"run": None})
    if arguments.seeds < 1:
        raise UserError(f"--seeds needs at least 1, given {arguments.seeds}")

    from unlabeled.config.chain import Chain
    from unlabeled.config.files import find
    from unlabeled.config.read import read_file

    short = "/" not in arguments.chain and not arguments.chain.endswith((".yaml", ".yml"))
    path = find("recipes", f"chains/{arguments.chain}" if short else arguments.chain)
    chain = read_file(path, Chain)
    steps = {step.name: step for step in chain.steps}
    for text in overrides:
        name, _, setting = text.partition(".")
        if name not in steps or "=" not in setting:
            raise UserError(f"'{text}' is not of the form STEP.key=value; steps: {', '.join(steps)}")
        steps[name].settings.append(setting)
    folder = run_folder(own["run"] or f"runs/chain-{path.stem}")

    from unlabeled.evaluation.chain import run_chain

    return run_chain(chain, folder, range(arguments.seeds))
