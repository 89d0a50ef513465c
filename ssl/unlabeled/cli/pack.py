"""unlabeled pack."""

from __future__ import annotations

import argparse
from pathlib import Path

SUMMARY = "Pack images into tar shards with index, checksums and card, or into arrays; the same command goes on."
EXAMPLES = [
    "unlabeled pack photos packed",
    "unlabeled pack imagenet /fast/imagenet-256 root=/data/imagenet short_side=256 workers=16",
    "unlabeled pack cifar10-torchvision cifar10-arrays root=/data store=array",
]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("source", metavar="SOURCE", help="folder of images, flat, nested or of classes; or a data card")
    parser.add_argument("out", metavar="OUT", type=Path, help="new folder, or that of a pack that was cut short")
    parser.add_argument(
        "settings", metavar="key=value", nargs="*",
        help="store=shards|array, splits=[train,val], root=FOLDER (of a card), classes=true|false (sub-folders of a "
        "folder), short_side=PIXELS, jpeg_quality=95, shard_mb=256, shard_samples=N, seed=0, max_corrupt=0.001, "
        "workers=4, part=3/16 (the third of sixteen jobs that share the shards)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Check the settings, then pack."""
    from unlabeled.config.pack import PackSettings
    from unlabeled.config.read import read_settings

    settings = read_settings("unlabeled pack", PackSettings, arguments.settings)

    from unlabeled.data.packing.split import pack

    pack(arguments.source, arguments.out, settings)
    return 0
