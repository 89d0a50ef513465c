"""unlabeled features."""

from __future__ import annotations

import argparse
from pathlib import Path

from unlabeled.cli.arguments import existing_network, home, named_export
from unlabeled.cli.passes import settings_help

SUMMARY = "Write the features of every image in a folder or a data card, with their keys; the same command goes on."
EXAMPLES = [
    "unlabeled features runs/cifar10-simclrv2-s0 photos out=photos.npy",
    "unlabeled features runs/cifar10-simclrv2-s0 photos export=backbone.layer3",
    "unlabeled features runs/imagenet-simclrv2-s0 imagenet split=train root=/data/imagenet part=3/16",
    "unlabeled features runs/cvrl-s0 videos clip.count=10",
    "unlabeled features timm:resnet50@weights.safetensors photos out=photos.npy",
]
_OWN = (
    "out=FILE, .npy or .safetensors (default features/FOLDER.npy or CARD-SPLIT.npy in the run's folder; with another "
    "export FOLDER-EXPORT.npy); the keys of the images, paths below the folder, go into a .txt beside it, one per "
    "line, in which a backslash and characters that would break a line are written as in Python; export=EXPORT or "
    "EXPORT.BLOCK, such as backbone.layer3 (default: the method's first export of features); split=SPLIT, root=FOLDER "
    "(of a card); of networks for clips, whose folder is one of videos: clip.count=1 clips of each, evenly spread, "
    "clip.crops=1 or 3 squares of each clip, whose features are averaged, clip.frames and clip.stride (default: as in "
    "training; clip.frames=1: the middle frame, or images)"
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("run", metavar="RUN", type=Path,
                        help="folder of a run, RUN:EXPORT, RUN:SIZE, a checkpoint, timm:NAME[@FILE] or "
                        "torchvision:NAME[@FILE]")
    parser.add_argument("images", metavar="FOLDER|CARD",
                        help="folder of images or videos, flat or nested; or a data card")
    parser.add_argument("settings", metavar="key=value", nargs="*",
                        help=settings_help(_OWN, max_corrupt=1.0, split=False))


def run(arguments: argparse.Namespace) -> int:
    """Embed the images with the run's default export, or the one that is named."""
    from unlabeled.config.passes.features import FeatureSettings, folder_or_card
    from unlabeled.config.read import read_settings

    images = arguments.images
    run, given = named_export(arguments.run, arguments.settings)
    existing_network(run)
    settings = read_settings("unlabeled features", FeatureSettings, given)
    of_card = folder_or_card(images, settings.split, settings.root)
    name = Path(images).expanduser().resolve().name if of_card is None else of_card[0]
    file = f"{name}-{settings.export}.npy" if settings.export else f"{name}.npy"
    out = Path(settings.out).expanduser() if settings.out else home(run) / "features" / file

    from unlabeled.evaluation.export_features import export_features

    export_features(run, images, out, export=settings.export, precision=settings.precision, batch=settings.batch,
                    workers=settings.workers, max_corrupt=settings.max_corrupt, part=settings.share,
                    split=settings.split, root=settings.root, clip=settings.clip)
    return 0
