"""unlabeled export."""

from __future__ import annotations

import argparse
from pathlib import Path

from unlabeled.cli.arguments import existing

SUMMARY = "Write a run's backbone under the names that torchvision, timm or detectron2 read."
EXAMPLES = [
    "unlabeled export runs/pixpro-s0 --format torchvision --out resnet50.pth",
    "unlabeled export runs/finetune-s0 --format timm --export classifier --out teacher.safetensors",
    "unlabeled export runs/pixpro-s0 --format detectron2 --out pixpro.pkl",
]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a run, or a checkpoint")
    parser.add_argument("--format", required=True, choices=("torchvision", "timm", "detectron2"))
    parser.add_argument("--out", metavar="FILE", type=Path, required=True,
                        help=".pth for torchvision, .safetensors for timm, .pkl for detectron2")
    parser.add_argument("--export", metavar="NAME", help="another of the method's networks; default: its "
                        "backbone. For timm a classifier too")


def run(arguments: argparse.Namespace) -> int:
    """Write the file and print how it is loaded."""
    existing(arguments.run)

    from unlabeled.engine.exports.classes import export_classes
    from unlabeled.engine.exports.names import write_named
    from unlabeled.engine.restore import load_run
    from unlabeled.evaluation.setup import pick_export

    restored = load_run(arguments.run)
    default = "backbone" if "backbone" in restored.method.exports() else None
    name, export = pick_export(restored.method, arguments.export or default)
    classes = export_classes(restored.run, name)
    lines = write_named(export, restored.recipe.backbone, arguments.format, arguments.out, classes)
    print(f"{arguments.out}: export {name}, update {restored.update}. To load it:\n\n{lines}\n")
    return 0
