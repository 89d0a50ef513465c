"""unlabeled evaluate."""

from __future__ import annotations

import argparse
from pathlib import Path

from unlabeled.cli.arguments import existing_network, named_export, take
from unlabeled.errors import UserError

SUMMARY = "Measure a run or checkpoint by a protocol of eval/."
EXAMPLES = [
    "unlabeled evaluate knn runs/demo-simclrv2-s0",
    "accelerate launch evaluate.py eval/linear.yaml runs/cifar10-simclrv2-s0 epochs=30",
    "unlabeled evaluate knn timm:resnet50@weights.safetensors card=imagenet root=FOLDER",
    "unlabeled evaluate knn runs/poa-s0:384x12",
    "unlabeled evaluate finetune-1pct runs/cifar10-simclrv2-s0 --seeds 3",
    "unlabeled evaluate finetune-video runs/cvrl-s0 card=ucf101 root=FOLDER --folds",
]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("protocol", metavar="PROTOCOL", help="name or path of an evaluation protocol")
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a run, RUN:EXPORT, RUN:SIZE (of an "
                        "elastic network, such as RUN:384x12), a checkpoint, or a public network: timm:NAME, "
                        "timm:NAME@FILE, torchvision:NAME or torchvision:NAME@FILE")
    parser.add_argument("settings", metavar="key=value", nargs="*",
                        help="overrides of the protocol. A public network needs card=CARD; its results go to "
                        "out=FOLDER (default evaluations/NAME-HASH)")
    parser.add_argument(
        "--seeds", type=int, default=1, metavar="N",
        help="repeat with seeds 0 to N-1 of labels and training, and print mean and interval (default 1)",
    )
    parser.add_argument(
        "--folds", action="store_true",
        help="evaluate on every pair of splits that the data card lists as folds, such as the three of UCF101 and "
        "HMDB51, and print their mean",
    )


def run(arguments: argparse.Namespace) -> int:
    """Check the protocol, then evaluate: the report is printed and kept as a file."""
    from unlabeled.config.read import read_protocol
    from unlabeled.config.sources import public

    run, given = named_export(arguments.run, arguments.settings)
    settings, own = take(given, {"out": None})
    cfg = read_protocol(arguments.protocol, settings)
    existing_network(run)
    named = public(str(run))
    if named is None and own["out"]:
        raise UserError(f"out={own['out']} has no effect: what is measured of a run stands in its folder")
    if named is not None and cfg.card is None:
        raise UserError(f"{named} belongs to no data that is known here; name a set to evaluate on, such as "
                        "card=imagenet or card=folder root=FOLDER")
    out = Path(own["out"]).expanduser() if own["out"] else None
    if arguments.seeds < 1:
        raise UserError(f"--seeds needs at least 1, given {arguments.seeds}")
    if arguments.folds and arguments.seeds > 1:
        raise UserError("give either --folds or --seeds")
    if arguments.folds:
        from unlabeled.evaluation.seeds import evaluate_folds

        evaluate_folds(arguments.protocol, run, settings, out)
        return 0
    if arguments.seeds > 1:
        from unlabeled.evaluation.seeds import evaluate_seeds

        evaluate_seeds(arguments.protocol, run, settings, range(arguments.seeds), out)
        return 0

    from unlabeled.evaluation.evaluate import evaluate

    evaluate(arguments.protocol, run, settings, out=out)
    return 0
