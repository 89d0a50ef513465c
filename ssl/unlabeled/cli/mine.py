"""unlabeled mine."""

from __future__ import annotations

import argparse

from unlabeled.cli.passes import settings_help

SUMMARY = "Choose the images of a pool that a teacher is surest of, class by class, without copies of a test set."
EXAMPLES = [
    "unlabeled mine runs/teacher pool=photos against=imagenet:val known=imagenet out=mined per_class=4000",
    "unlabeled mine timm:resnet50d@FILE pool=CARD:train against=cifar10:val out=mined part=3/16",
]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("teacher", metavar="TEACHER", help="a classifier: RUN[:EXPORT], timm:NAME[@FILE] or "
                        "torchvision:NAME[@FILE]")
    parser.add_argument(
        "settings", metavar="key=value", nargs="*",
        help=settings_help(
            "pool=, against= (evaluation set, whose copies are left out) and known= (training set, left out too): "
            "CARD, CARD:SPLIT or a folder of images, with pool_root=, against_root=, known_root= for a card's data; "
            "out=FOLDER, where the same command goes on; per_class=4000; multi_class_top_p=1 (classes that an image "
            "may serve); copies: hash_bits=32 (of 256), cosine=0.8, candidates=20, inliers=25, inlier_share=0.3",
            split=False),
    )


def run(arguments: argparse.Namespace) -> int:
    """Check what was given, then mine."""
    from unlabeled.config.passes.mining import MineSettings
    from unlabeled.config.read import read_settings

    settings = read_settings("unlabeled mine", MineSettings, arguments.settings)

    from unlabeled.passes.mining.mine import mine

    mine(arguments.teacher, settings)
    return 0
