"""unlabeled convert."""

from __future__ import annotations

import argparse
from pathlib import Path

from unlabeled.cli.arguments import existing, take
from unlabeled.errors import UserError, did_you_mean, nearest

SUMMARY = "Read what others published per image into a store that streams read; the same command goes on."
EXAMPLES = [
    "unlabeled convert imagenet_efficientnet_l2_sz475_top5 format=relabel-pt card=imagenet out=maps/l2 "
    "teacher=timm:resnet50",
    "unlabeled convert relabel_maps format=relabel-pt card=imagenet root=/data/imagenet out=maps/l2 orientation=hw",
]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("source", metavar="SOURCE", type=Path, help="folder or file of what was published")
    parser.add_argument(
        "settings", metavar="key=value", nargs="*",
        help="format=relabel-pt (CLASS/IMAGE.pt, label maps of ReLabel): teacher=TEACHER (tells by test which axis is "
        "which) or orientation=hw|wh, classes=N (if the card names none); of all formats: card=CARD, split=train, "
        "root=FOLDER (of the card), out=FOLDER, batch=256, workers=4, part=1/1, max_corrupt=0.001",
    )


def run(arguments: argparse.Namespace) -> int:
    """Check the settings of the format, then convert what is missing."""
    settings, own = take(arguments.settings, {"format": None})

    from unlabeled.config.passes.convert import FORMATS

    name, known = own["format"], ", ".join(FORMATS)
    if name not in FORMATS:
        given = f"format={name}: allowed: {known}." if name else f"say which format it is, format=FORMAT: {known}."
        raise UserError(f"unlabeled convert: {given}{did_you_mean(nearest(name or '', FORMATS))}")
    existing(arguments.source)

    from unlabeled.config.base.objects import load_object
    from unlabeled.config.read import read_settings

    kind, converter = (load_object(place) for place in FORMATS[name])
    chosen = read_settings("unlabeled convert", kind, settings)

    from unlabeled.engine.launch import join
    from unlabeled.passes.sources import open_sources

    converter(arguments.source, open_sources(chosen), chosen, join().device)
    return 0
