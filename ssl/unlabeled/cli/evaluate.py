"""unlabeled evaluate."""

from __future__ import annotations

import argparse
from pathlib import Path

from unlabeled.cli.arguments import existing

SUMMARY = "Measure a run or checkpoint by a protocol of eval/."
EXAMPLES = [
    "unlabeled evaluate knn runs/demo-simclrv2-s0",
    "accelerate launch evaluate.py eval/linear.yaml runs/cifar10-simclrv2-s0 epochs=30",
]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("protocol", metavar="PROTOCOL", help="name or path of an evaluation protocol")
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a run, or a checkpoint")
    parser.add_argument("settings", metavar="key=value", nargs="*", help="overrides of the protocol")


def run(arguments: argparse.Namespace) -> int:
    """Check the protocol, then evaluate: the report is printed and written into the run's folder."""
    from unlabeled.config.read import read_protocol

    read_protocol(arguments.protocol, arguments.settings)
    existing(arguments.run)

    from unlabeled.evaluation.evaluate import evaluate

    evaluate(arguments.protocol, arguments.run, arguments.settings)
    return 0
