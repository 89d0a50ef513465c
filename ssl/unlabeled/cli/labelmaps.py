"""unlabeled labelmaps."""

from __future__ import annotations

import argparse

from unlabeled.cli.passes import settings_help, tell_kept

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
        help=settings_help("k=5 (classes per cell), size=PIXELS (side of the square that images are resized to; "
                           "default: the teacher's own)"),
    )


def run(arguments: argparse.Namespace) -> int:
    """Check the settings, then write the maps that are missing."""
    from unlabeled.config.passes.labelmaps import LabelmapSettings
    from unlabeled.config.read import read_settings

    settings = read_settings("unlabeled labelmaps", LabelmapSettings, arguments.settings)

    from unlabeled.engine.launch import pick_device
    from unlabeled.engine.passes.source import open_cards
    from unlabeled.passes.labelmaps import write_labelmaps

    tell_kept(write_labelmaps(open_cards(settings), arguments.teacher, settings, pick_device()), settings)
    return 0
