"""Crops whose places are stored, and cut the same way wherever the image lives (`data.batch.RecordGeometry`)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from unlabeled.augment.geometry import RandomResizedCrop, build
from unlabeled.augment.plain_crops import OuterCrop, RandomPaddedCrop, ResizedFirst
from unlabeled.config.augment import StorableCrop
from unlabeled.config.passes.reinforce import KIND
from unlabeled.errors import UserError
from unlabeled.ops.boxes import crop_boxes, crop_columns

Drawn = RandomResizedCrop | RandomPaddedCrop | ResizedFirst
Rows = dict[str, np.ndarray]

LARGEST = 65_535  # pixels: what the stored numbers hold


@dataclass(frozen=True)
class StoredCrop(OuterCrop):
    """A crop that was drawn once and stored; where no entry was taken of a sample, a new one by `crop`.

    crop: the geometry that drew it. second: the crop of the partner with which the entry is mixed.
    """

    crop: Drawn
    second: bool = False
    record: str = KIND

    @property
    def image(self) -> str | None:
        """Return the field that names the image to cut, if it is not the sample itself."""
        return "partner" if self.second else None

    def draw(self, uniforms: np.ndarray, sizes: np.ndarray, rows: Rows | None = None) -> np.ndarray:
        """Turn uniforms [n, draws], image sizes [n, 2] and stored rows into boxes [n, 7]; all new without rows."""
        new = self.crop.draw(uniforms, sizes)
        if rows is None:
            return new
        suffix = "2" if self.second else ""
        stored = decode(rows[f"crop{suffix}"], rows[f"flip{suffix}"], self.crop, new)
        return np.where(rows["entry"][:, None] < 0, new, stored)

    def apply(self, image: np.ndarray, parameters: np.ndarray) -> np.ndarray:
        """Cut one uint8 image [H, W, 3] by its box [7] into uint8 [3, size, size]."""
        return self.crop.apply(image, parameters)

    def apply_batch(self, images: Tensor, parameters: np.ndarray) -> Tensor:
        """Cut equally large uint8 images [n, 3, H, W] by boxes [n, 7] into uint8 [n, 3, size, size].

        One by one: matrix products over batches may round otherwise than what cuts single images from files.
        """
        single = images.permute(0, 2, 3, 1).numpy()
        cuts = [self.crop.apply(image, box) for image, box in zip(single, parameters, strict=True)]
        return torch.from_numpy(np.stack(cuts))


def drawing(cfg: StorableCrop) -> Drawn:
    """Make the geometry that draws crops whose places can be stored."""
    crop = build(cfg)
    assert isinstance(crop, Drawn)
    return crop


def encode(boxes: np.ndarray, crop: Drawn) -> tuple[np.ndarray, np.ndarray]:
    """Return what is stored of boxes [n, 7]: top, left, height, width uint16 [n, 4], and whether flipped, uint8 [n].

    Of a padded crop the place is that in the padded image, as torchvision counts. Raises UserError for images whose
    pixels uint16 cannot count.
    """
    box = crop_columns(boxes)
    pad = padding(crop)
    places = np.stack([box.top + pad, box.left + pad, box.height, box.width], 1)
    if places.size and max(places.max(), box.image_height.max() + pad, box.image_width.max() + pad) > LARGEST:
        height, width = int(box.image_height.max()), int(box.image_width.max())
        raise UserError(f"an image of {height} x {width} pixels: stored crops count up to {LARGEST} a side; make the "
                        "images smaller first, as `unlabeled pack ... short_side=PIXELS` does")
    return places.astype(np.uint16), box.flipped.astype(np.uint8)


def decode(stored: np.ndarray, flipped: np.ndarray, crop: Drawn, sized: np.ndarray) -> np.ndarray:
    """Undo `encode`: boxes [n, 7] of stored [n, 4] and flips [n]; sized: boxes [n, 7] of the same images."""
    places = stored.astype(np.float64)
    box = crop_columns(sized)
    sizes = np.stack([box.image_height, box.image_width], 1)
    return crop_boxes(places[:, :2] - padding(crop), places[:, 2:], sizes, flipped.astype(np.float64))


def padding(crop: Drawn) -> int:
    """Return the pixels around the image in which a crop is placed."""
    inner = crop.crop if isinstance(crop, ResizedFirst) else crop
    return inner.pad if isinstance(inner, RandomPaddedCrop) else 0
