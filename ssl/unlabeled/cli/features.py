"""unlabeled features."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import cast, get_args

from unlabeled.cli.arguments import existing, existing_network, home, take
from unlabeled.errors import UserError, did_you_mean, nearest

SUMMARY = "Write the features of every image in a folder, with their keys."
EXAMPLES = [
    "unlabeled features runs/cifar10-simclrv2-s0 photos out=photos.npy",
    "unlabeled features runs/cifar10-simclrv2-s0 photos export=backbone.layer3",
    "unlabeled features timm:resnet50@weights.safetensors photos out=photos.npy",
]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("run", metavar="RUN", type=Path,
                        help="folder of a run, a checkpoint, timm:NAME[@FILE] or torchvision:NAME[@FILE]")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="folder of images, flat or nested")
    parser.add_argument(
        "settings", metavar="key=value", nargs="*",
        help="out=FILE, .npy or .safetensors (default features/FOLDER.npy in the run's folder; with another export "
        "FOLDER-EXPORT.npy); the paths of the images go into a .txt beside it, one per line, in which a backslash and "
        "characters that would break a line are written as in Python. export=EXPORT or EXPORT.BLOCK, such as "
        "backbone.layer3 (default: the method's first export of features). precision=fp32, bf16 or fp16, in which the "
        "network runs (default auto: bf16 on GPUs and on CPUs with AMX, else fp32)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Embed the folder with the run's default export, or the one that is named."""
    unknown, own = take(arguments.settings, {"out": None, "export": None, "precision": "auto"})
    if unknown:
        known = ("out", "export", "precision")
        question = did_you_mean(nearest(unknown[0], known), "Known: out=FILE, export=EXPORT, precision=PRECISION")
        raise UserError(f"unlabeled features: unknown setting '{unknown[0]}'.{question}")
    from unlabeled.config.recipe import Precision

    precision, allowed = own["precision"], get_args(Precision)
    if precision not in allowed:
        raise UserError(f"unlabeled features: precision={precision}: allowed are {', '.join(allowed)}")
    run, folder, export = arguments.run, arguments.folder, own["export"]
    existing_network(run)
    existing(folder)
    name = folder.resolve().name + (f"-{export}" if export else "")
    out = Path(own["out"]).expanduser() if own["out"] else home(run) / "features" / f"{name}.npy"

    from unlabeled.evaluation.export_features import export_features

    export_features(run, folder, out, export=export, precision=cast(Precision, precision))
    return 0
