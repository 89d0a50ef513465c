"""unlabeled evaluate."""

from __future__ import annotations

import argparse
from pathlib import Path

from unlabeled.cli.arguments import existing
from unlabeled.errors import UserError

SUMMARY = "Measure a run or checkpoint by a protocol of eval/."
EXAMPLES = [
    "unlabeled evaluate knn runs/demo-simclrv2-s0",
    "accelerate launch evaluate.py eval/linear.yaml runs/cifar10-simclrv2-s0 epochs=30",
    "unlabeled evaluate finetune-1pct runs/cifar10-simclrv2-s0 --seeds 3",
]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("protocol", metavar="PROTOCOL", help="name or path of an evaluation protocol")
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a run, or a checkpoint")
    parser.add_argument("settings", metavar="key=value", nargs="*", help="overrides of the protocol")
    parser.add_argument(
        "--seeds", type=int, default=1, metavar="N",
        help="repeat with seeds 0 to N-1 of labels and training, and print mean and interval (default 1)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Check the protocol, then evaluate: the report is printed and written into the run's folder."""
    from unlabeled.config.read import read_protocol

    read_protocol(arguments.protocol, arguments.settings)
    existing(arguments.run)
    if arguments.seeds < 1:
        raise UserError(f"--seeds needs at least 1, given {arguments.seeds}")
    if arguments.seeds > 1:
        from unlabeled.evaluation.seeds import evaluate_seeds

        evaluate_seeds(arguments.protocol, arguments.run, arguments.settings, range(arguments.seeds))
        return 0

    from unlabeled.evaluation.evaluate import evaluate

    evaluate(arguments.protocol, arguments.run, arguments.settings)
    return 0
