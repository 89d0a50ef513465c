"""Images with their masks: random crops to train on, whole images to be scored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from unlabeled.data.loader import batches, own_units, split_evenly
from unlabeled.data.order import Order
from unlabeled.data.sources.base import CorruptSample, Source
from unlabeled.data.sources.dense.masks import IGNORED, read_mask
from unlabeled.ops.random import seed_of


@dataclass
class Masked:
    """Images, uint8 [b, 3, H, W], their masks, uint8 [b, H, W], and the keys of unreadable ones."""

    images: Tensor
    masks: Tensor
    corrupt: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class JointCrop:
    """Random scale, place and flip, the same for image and mask. What lies outside has the colour `fill`, uncounted.

    scale: range of the factor on the image's own size. size: side of the crop, pixels.
    """

    size: int
    scale: tuple[float, float]
    fill: tuple[int, ...]

    def __call__(self, image: np.ndarray, mask: np.ndarray, seed: int) -> tuple[Tensor, Tensor]:
        """Cut uint8 [H, W, 3] and its mask [H, W] into uint8 [3, size, size] and [size, size]."""
        pair = tv_tensors.Image(torch.from_numpy(image).permute(2, 0, 1)), tv_tensors.Mask(torch.from_numpy(mask))
        with torch.random.fork_rng(devices=[]):  # torchvision's transforms draw from the global generator
            torch.manual_seed(seed)
            factor = float(torch.empty(()).uniform_(*self.scale))
            sides = [max(1, round(factor * side)) for side in mask.shape]
            fill = {tv_tensors.Image: list(self.fill), tv_tensors.Mask: IGNORED}
            cut = v2.Compose([
                v2.Resize(sides, antialias=True),
                v2.RandomCrop(self.size, pad_if_needed=True, fill=fill),
                v2.RandomHorizontalFlip(),
            ])  # fmt: skip
            crop, mask_crop = cut(*pair)
        return crop.as_subclass(Tensor), mask_crop.as_subclass(Tensor)


def training_crops(source: Source, crop: JointCrop, seed: int, updates: int, batch: int, rank: int, world: int,
                   workers: int) -> Iterator[Masked]:
    """Yield this process's part of `batch` crops for every update.

    The images come in the order of one seeded permutation after the other; how one is cut depends on its position in
    that order alone. An unreadable image gives a crop whose mask counts nowhere.
    """
    bounds = split_evenly(batch, world)
    share = np.arange(bounds[rank], bounds[rank + 1])
    units = [update * batch + share for update in range(updates)]
    return batches(_Crops(source, crop, seed), units, workers if source.images is None else 0)


def whole_images(source: Source, batch: int, rank: int, world: int, workers: int) -> Iterator[Masked]:
    """Yield this process's contiguous part of the split, each image once, together where neighbours are equally large.

    Batches may be empty. Raises UserError for a bad mask.
    """
    units = own_units(len(source), rank, world, batch)
    for parts in batches(_Whole(source), units, workers if source.images is None else 0):
        yield from parts


class _Crops:
    def __init__(self, source: Source, crop: JointCrop, seed: int) -> None:
        self.source, self.crop, self.seed = source, crop, seed
        self.order = Order(len(source), seed, "segmentation")

    def make(self, positions: np.ndarray) -> Masked:
        """Return the crops at positions in the endless order of the images."""
        size = self.crop.size
        images = torch.zeros(len(positions), 3, size, size, dtype=torch.uint8)
        masks = torch.full((len(positions), size, size), IGNORED, dtype=torch.uint8)
        corrupt = []
        indices = self.order.indices(0, positions).tolist()
        for row, (position, index) in enumerate(zip(positions.tolist(), indices, strict=True)):
            pair = _pair(self.source, index)
            if pair is None:
                corrupt.append(self.source.key(index))
            else:
                images[row], masks[row] = self.crop(*pair, seed_of(self.seed, "segmentation", "crop", position))
        return Masked(images, masks, corrupt)


class _Whole:
    def __init__(self, source: Source) -> None:
        self.source = source

    def make(self, unit: np.ndarray) -> list[Masked]:
        """Return the readable images of a unit, in groups of equal size."""
        groups: list[Masked] = []
        for index in unit.tolist():
            pair = _pair(self.source, index)
            if pair is None:
                empty = torch.zeros(0, 3, 1, 1, dtype=torch.uint8)
                groups.append(Masked(empty, empty[:, 0], [self.source.key(index)]))
                continue
            image, mask = torch.from_numpy(pair[0]).permute(2, 0, 1)[None], torch.from_numpy(pair[1])[None]
            if groups and groups[-1].images.shape[1:] == image.shape[1:]:
                last = groups.pop()
                groups.append(Masked(torch.cat([last.images, image]), torch.cat([last.masks, mask]), last.corrupt))
            else:
                groups.append(Masked(image, mask))
        return groups


def _pair(source: Source, index: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Return an image and its mask, None if the image is unreadable. Raises UserError for a bad mask."""
    if index in source.unreadable:
        return None
    try:
        image = np.array(source.image(index))  # own memory: torch wants it writable
    except CorruptSample:
        return None
    return image, np.array(read_mask(source, index, *image.shape[:2]))

