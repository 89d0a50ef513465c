"""unlabeled reinforce."""

from __future__ import annotations

import argparse

from unlabeled.cli.passes import settings_help, tell_kept
from unlabeled.errors import UserError

SUMMARY = "Keep what classifiers say of many views of every image, to train on replays; the same command goes on."
EXAMPLES = [
    "unlabeled reinforce runs/finetuned-s0 card=cifar10 out=entries/cifar10 entries=50 'crop={kind: padded, size: 32}'",
    "unlabeled reinforce timm:resnext101_32x8d.fb_wsl_ig1b_ft_in1k,timm:resnext101_32x16d.fb_wsl_ig1b_ft_in1k "
    "card=imagenet out=/data/imagenet-entries part=3/16",
    "unlabeled reinforce timm:resnet50@resnet50.safetensors card=photos.yaml out=entries/photos entries=100 topk=5",
]
_OWN = (
    "entries=400 (views of every image), topk=10 (classes kept of each), mix=false (mixup and CutMix with other "
    "images), crop={kind: resized, size: 224, area: [0.08, 1], flip: 0.5, ...} or {kind: padded, size: 32, ...} "
    "(its size: if not given, the first teacher's), randaugment=9 (bin of 31; null: none), erasing=0.25, seed=0; "
    "batch: views through the teachers at once"
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.add_argument(
        "teachers", metavar="TEACHER[,TEACHER...]",
        help="classifiers, whose probabilities are averaged: RUN[:EXPORT], timm:NAME[@FILE] or torchvision:NAME[@FILE]",
    )
    parser.add_argument("settings", metavar="key=value", nargs="*", help=settings_help(_OWN))


def run(arguments: argparse.Namespace) -> int:
    """Check the settings, then compute the entries that are missing."""
    from unlabeled.config.passes.reinforce import ReinforceSettings
    from unlabeled.config.read import read_settings

    settings = read_settings("unlabeled reinforce", ReinforceSettings, arguments.settings)
    teachers = [name for name in arguments.teachers.split(",") if name]
    if not teachers:
        raise UserError("unlabeled reinforce: no teacher is named; give RUN, timm:NAME@FILE or several with commas")

    from unlabeled.engine.launch import pick_device
    from unlabeled.engine.passes.source import open_cards
    from unlabeled.passes.reinforce import reinforce

    device = pick_device()
    tell_kept(reinforce(open_cards(settings), teachers, settings, device), settings)
    return 0
