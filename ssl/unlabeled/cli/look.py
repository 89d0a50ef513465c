"""unlabeled look."""

from __future__ import annotations

import argparse
from pathlib import Path

from unlabeled.cli.arguments import existing, existing_network, named_export
from unlabeled.errors import UserError

SUMMARY = "Draw what a run's network sees in images: its map in colours and, for PixPro, the pairs of two crops."
EXAMPLES = [
    "unlabeled look runs/pixpro-s0 cat.jpg dog.jpg",
    "unlabeled look runs/demo-pixpro-s0 card=shapes96 split=val count=8 pixel=2,5",
    "unlabeled look runs/cifar10-simclrv2-s0 --pca export=backbone.layer3 size=64",
]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.usage = f"{parser.prog} [METHOD] RUN [IMAGE ...] [--pca] [key=value ...]"
    parser.add_argument("run", metavar="RUN", help="folder of a run, RUN:EXPORT, RUN:SIZE, a checkpoint, "
                        "timm:NAME[@FILE] or torchvision:NAME[@FILE]; a method's name before it, as in "
                        "'look pixpro RUN', is compared with the run's")
    parser.add_argument(
        "words", metavar="IMAGE | key=value", nargs="*",
        help="image files; without any, images of a set: card=CARD (default: the run's), root=FOLDER, split=SPLIT, "
        "count=4. Further: export=EXPORT or EXPORT.BLOCK, size=PIXELS, pixel=ROW,COL (PixPro: the cell of view 1 that "
        "others are compared with; default the central one), seed=0 (PixPro: of the crops), out=FOLDER, "
        "precision=fp32, bf16 or fp16, in which the network runs (default auto: bf16 on GPUs and CPUs with AMX, else "
        "fp32)",
    )
    parser.add_argument("--pca", action="store_true", help="draw the colour map alone, for PixPro too")


def run(arguments: argparse.Namespace) -> int:
    """Check what was given, then write one PNG per image."""
    from unlabeled.config.look import OF_THE_PAIR, OF_THE_SET, LookSettings
    from unlabeled.config.read import read_settings
    from unlabeled.config.tables import METHODS

    words, method = [arguments.run, *arguments.words], None
    if words[0] in METHODS and len(words) > 1 and not Path(words[0]).exists():
        method = words.pop(0)
    run = Path(words.pop(0))
    written = [word for word in words if "=" in word and not Path(word).exists()]
    images = [Path(word) for word in words if word not in written]
    run, written = named_export(run, written)
    settings = read_settings("unlabeled look", LookSettings, written)
    existing_network(run)
    for path in images:
        existing(path)
    for path in images:
        if path.is_dir():
            raise UserError(f"'{path}' is a folder; name image files, or take some of it: card=folder root={path}")
    without = (OF_THE_SET if images else ()) + (OF_THE_PAIR if arguments.pca else ())
    for key in without:
        if key in settings.model_fields_set:
            raise UserError(f"'{key}' has no effect with {'image files' if key in OF_THE_SET else '--pca'}")

    from unlabeled.evaluation.dense.look import look

    look(run, images, settings, method=method, pca=arguments.pca)
    return 0
