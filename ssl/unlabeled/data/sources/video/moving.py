"""Rendered videos of one bright object on a darker ground, kept as H.264 files in the user's cache folder.

The class is how the object moves. What it looks like is drawn anew every 12 frames: with a constant look two clips of
a video agree in it, which is easier to learn than the motion.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np

from unlabeled.config.card import Card, MovingShapes
from unlabeled.data.sources.base import Source
from unlabeled.data.sources.files.kept import cache_folder
from unlabeled.data.sources.shape_kinds import KINDS
from unlabeled.data.sources.shapes import Ground, Look, Scenes, render
from unlabeled.data.sources.video.frames import refuse_no_decoder, write
from unlabeled.data.sources.video.source import VideoSource
from unlabeled.errors import UserError
from unlabeled.ops.distributed import rank
from unlabeled.ops.machine.files import disk_error, sweep, temporary
from unlabeled.ops.random import uniforms

MOTIONS = ("sideways", "up-and-down", "diagonal", "circle", "pulse", "spin", "jump", "rest")  # mirrored the same
_VERSION = 1
_LOOK = 12  # frames of one appearance
_STAY = 4  # frames between two jumps
_RATE = 25  # frames per second


def scenes(rule: MovingShapes, split: str, index: int) -> Scenes:
    """Return what the frames of video `index` show; its motion is number index modulo the number of motions."""
    n = rule.frames
    draw = uniforms(np.array([index]), 8, rule.seed, split, "moving shapes, motion")[0]
    look = np.arange(n) // _LOOK if rule.appearance == "changing" else np.zeros(n, np.int64)
    per = uniforms(index * (n // _LOOK + 1) + look, 1 + len(Look) + len(Ground), rule.seed, split,
                   "moving shapes, look")
    looks, ground = per[:, None, 1 : 1 + len(Look)].copy(), per[:, 1 + len(Look) :].copy()
    looks[..., Look.SATURATION] = 0.6 + 0.4 * looks[..., Look.SATURATION]
    looks[..., Look.BRIGHTNESS] = 0.6 + 0.4 * looks[..., Look.BRIGHTNESS]
    looks[..., Look.SWAP] = 0  # the brighter of its colours is the main one
    for value in (Ground.VALUE, Ground.OTHER_VALUE):
        ground[:, value] = 0.3 * ground[:, value] - 0.35  # far darker than those of `shapes`
    centres, radii, angles = _motion(MOTIONS[index % len(MOTIONS)], n, draw, _places(rule, split, index))
    kinds = (per[:, :1] * len(KINDS)).astype(np.int64)
    return Scenes(np.ones(n, np.int64), kinds, centres[:, None], radii[:, None], angles[:, None], looks, ground)


def _places(rule: MovingShapes, split: str, index: int) -> np.ndarray:
    """Return where the object of a video would be after each jump, uniforms [jumps, 2]."""
    jumps = rule.frames // _STAY + 1
    return uniforms(index * jumps + np.arange(jumps), 2, rule.seed, split, "moving shapes, jumps")


def _motion(name: str, n: int, draw: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return centres [n, 2], radii [n] and angles [n] of a motion whose period, phase and so on are drawn, [8]."""
    turn = 2 * np.pi * (np.arange(n) / (14 + 8 * draw[0]) + draw[1])
    reach, radius = 0.18 + 0.1 * draw[2], 0.16 + 0.06 * draw[3]
    middle = 0.42 + 0.16 * draw[4:6]
    sign = 1 if draw[6] < 0.5 else -1
    swing = reach * np.sin(turn)
    still, angle = np.zeros(n), np.full(n, 1.4 * (draw[7] - 0.5))
    steps = {
        "sideways": (swing, still), "up-and-down": (still, swing), "diagonal": (swing, sign * swing),
        "circle": (swing, sign * reach * np.cos(turn)),
    }
    centres = middle + np.stack(steps.get(name, (still, still)), 1)
    if name == "jump":
        centres = 0.2 + 0.6 * places[np.arange(n) // _STAY]
    radii = radius * (1 + 0.5 * np.sin(turn) if name == "pulse" else np.ones(n))
    return centres, radii, angle + (sign * turn if name == "spin" else 0)


class MovingShapesSource(VideoSource):
    """The rendered videos of a split."""

    def __init__(self, card: Card, split: str, folder: Path, samples: int) -> None:
        super().__init__(card.name, split, folder, [_file(i) for i in range(samples)])
        self.labels, self.classes = np.arange(samples, dtype=np.int64) % len(MOTIONS), list(MOTIONS)

    def traces(self) -> None:  # type: ignore[override]
        """Return None: another version of the encoder makes files of other sizes, which show the same."""


def _file(index: int) -> str:
    return f"{index:06d}.mp4"


def open_moving_shapes(card: Card, split: str, root: str | None) -> Source:
    """Open a split of the card, rendered if it is not there. Raises UserError if it cannot be kept."""
    rule, samples = card.source, card.splits[split].samples
    assert isinstance(rule, MovingShapes) and samples is not None
    refuse_no_decoder()
    cache = cache_folder("moving-shapes")
    if cache is None:
        raise UserError("rendered videos are kept in the user's cache folder, and there is none: set XDG_CACHE_HOME")
    about = json.dumps([_VERSION, rule.model_dump(mode="json"), split, samples])
    folder = cache / hashlib.blake2b(about.encode(), digest_size=12).hexdigest()
    if not folder.is_dir():
        _render(rule, split, samples, folder)
    return MovingShapesSource(card, split, folder, samples)


def _render(rule: MovingShapes, split: str, samples: int, folder: Path) -> None:
    """Write all videos of a split; the folder is there when they are."""
    beside = temporary(folder)
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        if rank() == 0:
            print(f"rendering {samples} videos into {folder}, once", file=sys.stderr)
        for index in range(samples):
            write(beside / _file(index), render(scenes(rule, split, index), rule.size)[0], _RATE)
        sweep(folder.parent)
        try:
            os.replace(beside, folder)
        except OSError:
            if not folder.is_dir():  # another process was faster
                raise
            shutil.rmtree(beside, ignore_errors=True)
    except OSError as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise disk_error(folder, error) from error
