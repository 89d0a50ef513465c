"""unlabeled convert."""

from __future__ import annotations

import argparse
from pathlib import Path

from unlabeled.cli.arguments import existing, take
from unlabeled.cli.passes import settings_help, tell_kept
from unlabeled.errors import UserError, did_you_mean, nearest

SUMMARY = "Read what others published per image into a store that streams read; the same command goes on."
EXAMPLES = [
    "unlabeled convert imagenet_efficientnet_l2_sz475_top5 format=relabel-pt card=imagenet out=maps/l2 "
    "teacher=timm:resnet50",
    "unlabeled convert relabel_maps format=relabel-pt card=imagenet root=/data/imagenet out=maps/l2 orientation=hw",
    "unlabeled convert ImageNetPlus format=ml-dr card=imagenet out=reinforced",
]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument("source", metavar="SOURCE", type=Path, help="folder or file of what was published")
    parser.add_argument(
        "settings", metavar="key=value", nargs="*",
        help=settings_help("format=relabel-pt (ReLabel's label maps, CLASS/IMAGE.pt): teacher=TEACHER (tells by test "
                           "which axis is which) or orientation=hw (rows first) or wh; format=ml-dr (reinforced sets, "
                           "<index>.pth.tar): size=PIXELS (of the views, where its config does not say it); of both: "
                           "classes=N (if the card names none)"),
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

    from unlabeled.engine.launch import pick_device
    from unlabeled.engine.passes.source import open_cards

    tell_kept(converter(arguments.source, open_cards(chosen), chosen, pick_device()), chosen)
    return 0
