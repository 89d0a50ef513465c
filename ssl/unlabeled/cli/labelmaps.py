"""unlabeled labelmaps."""

from __future__ import annotations

import argparse

SUMMARY = "Keep what a classifier sees in every cell of every image, for ReLabel; the same command goes on."
EXAMPLES = [
    "unlabeled labelmaps runs/finetuned-s0 card=cifar10 out=maps/cifar10",
    "unlabeled labelmaps timm:tf_efficientnet_l2.ns_jft_in1k_475 card=imagenet out=maps/l2 batch=16",
    "unlabeled labelmaps timm:resnet50@resnet50.safetensors card=classfolder root=photos out=maps/photos part=1/4",
]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "teacher", metavar="TEACHER",
        help="a classifier of map, mean and linear layer: RUN[:EXPORT], timm:NAME[@FILE] or torchvision:NAME[@FILE]",
    )
    parser.add_argument(
        "settings", metavar="key=value", nargs="*",
        help="card=CARD, split=train, root=FOLDER (of the card), out=FOLDER (of the maps), k=5 (classes per cell), "
        "size=PIXELS (of the squares that images are resized to; default: the teacher's own), batch=256, workers=4, "
        "precision=auto, part=1/1 (3/16: the third of sixteen jobs), max_corrupt=0.001",
    )


def run(arguments: argparse.Namespace) -> int:
    """Check the settings, then write the maps that are missing."""
    from unlabeled.config.passes.labelmaps import LabelmapSettings
    from unlabeled.config.read import read_settings

    settings = read_settings("unlabeled labelmaps", LabelmapSettings, arguments.settings)

    from unlabeled.engine.launch import join
    from unlabeled.passes.labelmaps import write_labelmaps
    from unlabeled.passes.sources import open_sources

    write_labelmaps(open_sources(settings), arguments.teacher, settings, join().device)
    return 0
