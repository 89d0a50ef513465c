"""Rendered images of one to five objects on a background, with exact classes, masks and boxes.

A kind of object has its own outline and its own family of texture, as things have; colour, place, size, tilt,
background and lighting are free. Image i is a function of (seed, split, i); lengths are shares of the image's side, so
the same scene can be rendered at any size.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from unlabeled.config.card import Card, Shapes
from unlabeled.data.sources.base import Source
from unlabeled.data.sources.shape_kinds import KINDS
from unlabeled.data.sources.truth import Objects
from unlabeled.ops.boxes import Edges
from unlabeled.ops.random import uniforms

_CHUNK_PIXELS = 1 << 17  # rendered together: arrays of this many floats stay in a core's cache
_PER_OBJECT = 13
_PER_IMAGE = 14


class Ground(IntEnum):
    """Columns of `Scenes.ground`: two colours, waves between them, lighting."""

    HUE = 0
    SATURATION = 1
    VALUE = 2
    OTHER_HUE = 3
    OTHER_SATURATION = 4
    OTHER_VALUE = 5
    ANGLE = 6
    WAVES_ACROSS = 7
    WAVES_ALONG = 8
    LIGHT = 9
    SUN = 10


class Look(IntEnum):
    """Columns of `Scenes.looks`: a and b of the texture, its two colours, and whether light and dark change places."""

    TEXTURE_A = 0
    TEXTURE_B = 1
    HUE = 2
    SATURATION = 3
    BRIGHTNESS = 4
    OTHER_HUE = 5
    OTHER_SATURATION = 6
    DARKNESS = 7
    SWAP = 8


@dataclass
class Scenes:
    """What n images show. k objects at most, the largest first; objects beyond `counts` [n] are not there.

    kinds: int [n, k]. centres: [n, k, 2] (x, y) and radii: [n, k], shares of the side. angles: [n, k], radians.
    looks: uniforms [n, k, 10], columns as in Look. ground: uniforms [n, 13], columns as in Ground.
    """

    counts: np.ndarray
    kinds: np.ndarray
    centres: np.ndarray
    radii: np.ndarray
    angles: np.ndarray
    looks: np.ndarray
    ground: np.ndarray

    def rows(self, rows: slice) -> Scenes:
        """Return some of the images' scenes."""
        return Scenes(**{name: value[rows] for name, value in vars(self).items()})


@dataclass
class Labelled:
    """One image with its truth.

    image: uint8 [H, W, 3]. kinds: int64 [k]. masks: bool [k, H, W], what is visible of each object. boxes: int64
    [k, 4]: top, left, height, width of the mask in pixels (0 for an object that is wholly hidden).
    """

    image: np.ndarray
    kinds: np.ndarray
    masks: np.ndarray
    boxes: np.ndarray


def draw_scenes(indices: np.ndarray, objects: tuple[int, int], seed: int, split: str) -> Scenes:
    """Draw what the images at `indices` [n] show."""
    fewest, most = objects
    n = len(indices)
    ground = uniforms(indices, _PER_IMAGE, seed, split, "shapes, image")
    per = uniforms(indices, most * _PER_OBJECT, seed, split, "shapes, objects").reshape(n, most, _PER_OBJECT)
    radius, kind, angle = np.moveaxis(per[..., :3], 2, 0)
    counts = fewest + (ground[:, -1] * (most - fewest + 1)).astype(np.int64)
    one = counts[:, None] == 1
    radii = np.where(one, 0.26 + 0.18 * radius, 0.10 + 0.09 * radius)
    radii[:, 0] = np.where(one[:, 0], radii[:, 0], 0.19 + 0.07 * radius[:, 0])
    present = np.arange(most)[None] < counts[:, None]
    return Scenes(counts, (kind * len(KINDS)).astype(np.int64), _place(indices, radii, present, seed, split),
                  radii, (angle - 0.5) * 1.4, per[..., 3:13], ground[:, :13])


def _place(indices: np.ndarray, radii: np.ndarray, present: np.ndarray, seed: int, split: str) -> np.ndarray:
    """Put each object where, of ten random places, it is farthest from the edges of those before it."""
    n, most = radii.shape
    tries = uniforms(indices, most * 20, seed, split, "shapes, places").reshape(n, most, 10, 2)
    centres = np.zeros((n, most, 2))
    for j in range(most):
        margin = np.minimum(radii[:, j] * 0.9, 0.5)[:, None, None]
        options = margin + tries[:, j] * (1 - 2 * margin)
        best = np.zeros(n, np.int64)
        if j:
            gap = np.linalg.norm(options[:, :, None] - centres[:, None, :j], axis=3) - radii[:, None, :j]
            best = np.where(present[:, None, :j], gap, np.inf).min(axis=2).argmax(axis=1)
        centres[:, j] = options[np.arange(n), best]
    return centres


def render(scenes: Scenes, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Paint scenes: images uint8 [n, size, size, 3], and which object is seen at a pixel, uint8 [n, size, size].

    0 is background, 1 + j object j. Borders are antialiased by their distance to the pixel's centre.
    """
    n = len(scenes.counts)
    images = np.empty((n, size, size, 3), np.uint8)
    objects = np.zeros((n, size, size), np.uint8)
    step = max(1, _CHUNK_PIXELS // size**2)
    for first in range(0, n, step):
        rows = slice(first, min(first + step, n))
        images[rows] = _paint(scenes.rows(rows), size, objects[rows])
    return images, objects


def _paint(scenes: Scenes, size: int, objects: np.ndarray) -> np.ndarray:
    line = ((np.arange(size) + 0.5) / size).astype(np.float32)
    y, x = line[None, :, None], line[None, None, :]
    canvas = _background(scenes.ground, x, y)
    for j in range(scenes.kinds.shape[1]):
        present = scenes.counts > j
        for kind, name in enumerate(KINDS):
            rows = np.flatnonzero(present & (scenes.kinds[:, j] == kind))
            if len(rows):
                _paint_kind(canvas, objects, scenes, rows, j, name, x, y)
    light = _column(0.75 + 0.5 * scenes.ground[:, Ground.LIGHT])
    canvas *= light[:, None]
    return (np.clip(canvas, 0, 1) * 255 + np.float32(0.5)).astype(np.uint8).transpose(0, 2, 3, 1)


def _paint_kind(canvas: np.ndarray, objects: np.ndarray, scenes: Scenes, rows: np.ndarray, j: int, name: str,
                x: np.ndarray, y: np.ndarray) -> None:
    """Paint object j, of one kind, onto some of the images."""
    outline, texture = KINDS[name]
    radius, angle = scenes.radii[rows, j], scenes.angles[rows, j]
    looks = scenes.looks[rows, j]
    cos, sin = _column(np.cos(angle) / radius), _column(np.sin(angle) / radius)
    dx = x - _column(scenes.centres[rows, j, 0])
    dy = y - _column(scenes.centres[rows, j, 1])
    u, v = dx * cos + dy * sin, dy * cos - dx * sin
    distance = outline(u, v) * _column(radius * objects.shape[-1])  # in pixels
    cover = np.clip(np.float32(0.5) - distance, 0, 1)
    share = texture(u, v, _column(looks[:, Look.TEXTURE_A]), _column(looks[:, Look.TEXTURE_B]))
    main, second = _object_colours(looks)
    sun = scenes.ground[rows, Ground.SUN] * 2 * np.pi
    shade = 1 + np.float32(0.22) * (u * _column(np.cos(sun - angle)) + v * _column(np.sin(sun - angle)))
    for channel in range(3):
        paint = (main[channel] + share * (second[channel] - main[channel])) * shade
        below = canvas[rows, channel]
        canvas[rows, channel] = below + cover * (paint - below)
    objects[rows] = np.where(cover >= np.float32(0.5), np.uint8(j + 1), objects[rows])


def _background(ground: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Paint a fade between two colours with soft waves, float32 [n, 3, H, W]."""
    one = _rgb(ground[:, Ground.HUE], ground[:, Ground.SATURATION] * 0.7, 0.25 + 0.6 * ground[:, Ground.VALUE])
    two = _rgb(ground[:, Ground.OTHER_HUE], ground[:, Ground.OTHER_SATURATION] * 0.7,
               0.25 + 0.6 * ground[:, Ground.OTHER_VALUE])
    angle = ground[:, Ground.ANGLE] * 2 * np.pi
    along = (x - np.float32(0.5)) * _column(np.cos(angle)) + (y - np.float32(0.5)) * _column(np.sin(angle))
    across = (y - np.float32(0.5)) * _column(np.cos(angle)) - (x - np.float32(0.5)) * _column(np.sin(angle))
    bend = np.sin(along * _column(3 + 8 * ground[:, Ground.WAVES_ALONG])) * 2
    wave = np.sin(across * _column(4 + 10 * ground[:, Ground.WAVES_ACROSS]) + bend)
    share = np.clip(np.float32(0.5) + along * np.float32(0.8) + np.float32(0.15) * wave, 0, 1)
    return np.stack([a + share * (b - a) for a, b in zip(one, two, strict=True)], axis=1)


def _object_colours(looks: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return main and second colour; their brightness differs so that the texture shows in gray too."""
    bright, dark = 0.75 + 0.25 * looks[:, Look.BRIGHTNESS], 0.15 + 0.35 * looks[:, Look.DARKNESS]
    flip = looks[:, Look.SWAP] < 0.5
    main = _rgb(looks[:, Look.HUE], 0.3 + 0.7 * looks[:, Look.SATURATION], np.where(flip, bright, dark))
    second = _rgb(looks[:, Look.OTHER_HUE], 0.3 + 0.7 * looks[:, Look.OTHER_SATURATION], np.where(flip, dark, bright))
    return main, second


def _rgb(hue: np.ndarray, saturation: np.ndarray, value: np.ndarray) -> list[np.ndarray]:
    """Turn hue, saturation and value [n] in [0, 1] into three float32 [n, 1, 1]."""
    return [_column(value * (1 - saturation * np.clip(2 - np.abs(np.mod(hue * 6 + shift, 6) - 3), 0, 1)))
            for shift in (0.0, 4.0, 2.0)]


def _column(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32)[:, None, None]


class ShapesSource(Source):
    """Rendered images; the label is the kind of the largest object.

    Masks hold 0 for background and 1 + k for an object of kind k.
    """

    def __init__(self, name: str, split: str, samples: int, rule: Shapes, in_memory: bool) -> None:
        super().__init__(name, split)
        self.rule, self.samples = rule, samples
        self.classes = list(KINDS)
        self.mask_classes = ["background", *KINDS]
        self.object_classes, self.has_shapes = list(KINDS), True
        scenes = self._scenes(np.arange(samples))
        self.labels = scenes.kinds[:, 0].copy()
        self._masks: np.ndarray | None = None
        if in_memory:
            self.images, objects = render(scenes, rule.size)
            self._masks = _kinds_seen(scenes, objects)  # painted anyway, and a third of the images' size

    def __len__(self) -> int:
        return self.samples

    def key(self, index: int) -> str:
        """Return split and number."""
        return f"{self.split}-{index:06d}"

    def names(self) -> None:
        """Return None: images have numbers."""

    def image(self, index: int) -> np.ndarray:
        """Return one image, uint8 [H, W, 3]."""
        if self.images is not None:
            return self.images[index]
        return render(self._scenes(np.array([index])), self.rule.size)[0][0]

    def mask(self, index: int) -> np.ndarray:
        """Return the kind of object seen at every pixel, from 1 on, or 0; uint8 [H, W]."""
        if self._masks is not None:
            return self._masks[index]
        scenes = self._scenes(np.array([index]))
        return _kinds_seen(scenes, render(scenes, self.rule.size)[1])[0]

    def objects(self, index: int, *, masks: bool = False) -> Objects:
        """Return the objects of which something is seen."""
        truth = self.labelled(index)
        visible = truth.masks.any(axis=(1, 2))
        top, left, height, width = truth.boxes[visible].T
        none = np.zeros(int(visible.sum()), bool)
        shapes = truth.masks[visible]
        return Objects(
            np.stack(Edges(left, top, left + width, top + height), 1).astype(np.float32), truth.kinds[visible],
            shapes.sum(axis=(1, 2)).astype(np.float32), none, none, shapes if masks else None,
        )

    def labelled(self, index: int) -> Labelled:
        """Return one image with the class, mask and box of every object in it."""
        scenes = self._scenes(np.array([index]))
        images, objects = render(scenes, self.rule.size)
        count = int(scenes.counts[0])
        masks = objects[0][None] == np.arange(1, count + 1, dtype=np.uint8)[:, None, None]
        return Labelled(images[0], scenes.kinds[0, :count].copy(), masks, np.array([_box(mask) for mask in masks]))

    def _scenes(self, indices: np.ndarray) -> Scenes:
        return draw_scenes(indices, self.rule.objects, self.rule.seed, self.split)


def _kinds_seen(scenes: Scenes, objects: np.ndarray) -> np.ndarray:
    """Turn the numbers of objects at pixels [n, H, W] into their kinds from 1 on, 0 for background."""
    kinds = np.pad(scenes.kinds + 1, ((0, 0), (1, 0))).astype(np.uint8)
    return kinds[np.arange(len(objects))[:, None, None], objects]


def _box(mask: np.ndarray) -> list[int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return [0, 0, 0, 0]
    return [int(rows[0]), int(columns[0]), int(rows[-1] - rows[0] + 1), int(columns[-1] - columns[0] + 1)]


def open_shapes(card: Card, split: str, root: str | None) -> Source:
    """Render a split of the card."""
    rule, samples = card.source, card.splits[split].samples
    assert isinstance(rule, Shapes) and samples is not None
    return ShapesSource(card.name, split, samples, rule, card.in_memory)
