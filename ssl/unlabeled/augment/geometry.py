"""Crops and warps: random geometry drawn from given uniform numbers, apart from being applied (`data.batch.Geometry`).

The numbers of a sample come from its position in the stream's order, so its crop depends on nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from unlabeled.augment import affine
from unlabeled.augment.plain_crops import RandomBoundCrop, RandomPaddedCrop, RandomSquareCrop, ResizedBox, ResizedFirst
from unlabeled.augment.resample import Interpolation, crop_resize, crop_resize_batch
from unlabeled.config.augment import AffineCrop, Crop, PaddedCrop, PaddleCrop, SquareCrop
from unlabeled.ops.boxes import crop_boxes

_TRIES = 10


@dataclass(frozen=True)
class RandomResizedCrop(ResizedBox):
    """Random resized crop with flip in torchvision's law; parameters are boxes [n, 7] (see `data.batch.Batch`)."""

    size: int
    area: tuple[float, float]
    aspect: tuple[float, float]
    flip: float
    interpolation: Interpolation
    draws: ClassVar[int] = 2 * _TRIES + 3
    boxes: ClassVar[bool] = True

    def draw(self, uniforms: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Turn uniforms [n, draws] and image sizes [n, 2] into boxes [n, 7].

        Ten candidates of area and log-uniform aspect at once; the first that fits is taken, at a uniform integer
        place, else the largest central crop of an allowed aspect. The last uniform number decides the flip.
        """
        sizes = sizes.astype(np.float64)
        tries, offset, flip = np.split(uniforms, [2 * _TRIES, 2 * _TRIES + 2], 1)
        height, width = _candidates(tries, sizes, self.area, self.aspect)
        image_height, image_width = np.split(sizes, 2, 1)
        fits = (width > 0) & (width <= image_width) & (height > 0) & (height <= image_height)
        first = fits.argmax(1)[:, None]
        fitting = fits.any(axis=1, keepdims=True)
        extent = np.concatenate([np.take_along_axis(height, first, 1), np.take_along_axis(width, first, 1)], 1)
        place = np.floor(offset * (sizes - extent + 1))
        central = _largest(sizes, self.aspect)
        extent = np.where(fitting, extent, central)
        place = np.where(fitting, place, (sizes - central) // 2)
        return crop_boxes(place, extent, sizes, flip[:, 0] < self.flip)


@dataclass(frozen=True)
class EvalCrop:
    """Central square of `proportion` of the shorter side, resized; parameters are boxes [n, 7].

    An image that already has the size stays as it is. Up to 32 pixels nothing is cut off but what is not square
    (simclrv2: small sets are evaluated whole).
    """

    size: int
    proportion: float = 0.875
    interpolation: Interpolation = "bicubic"
    draws: ClassVar[int] = 0
    boxes: ClassVar[bool] = True

    @property
    def share(self) -> float:
        """Return the share of the shorter side that the square takes."""
        return 1.0 if self.size <= 32 else self.proportion

    def draw(self, uniforms: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Turn image sizes [n, 2] into boxes [n, 7]; `uniforms` [n, 0] is not looked at."""
        whole = (sizes == self.size).all(1, keepdims=True)
        return central_boxes(sizes, np.where(whole, 1.0, self.share))

    def apply(self, image: np.ndarray, parameters: np.ndarray) -> np.ndarray:
        """Cut one uint8 image [H, W, 3] by its box [7] into uint8 [3, size, size]."""
        return crop_resize(image, parameters, self.size, self.interpolation)

    def apply_batch(self, images: Tensor, parameters: np.ndarray) -> Tensor:
        """Cut equally large uint8 images [n, 3, H, W] by boxes [n, 7] into uint8 [n, 3, size, size]."""
        if tuple(images.shape[2:]) == (self.size, self.size):
            return images.contiguous()
        return crop_resize_batch(images, parameters, self.size, self.interpolation)


@dataclass(frozen=True)
class RandomAffine:
    """Random rotation, shift, scale and shear of the whole image; parameters are maps [n, 6], not boxes.

    The law is torchvision's RandomAffine, except that shifts are not rounded to whole pixels. See `augment.affine`.
    """

    size: int
    degrees: float
    translate: float
    scale: tuple[float, float]
    shear: float
    draws: ClassVar[int] = 5
    boxes: ClassVar[bool] = False

    def draw(self, uniforms: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Turn uniforms [n, 5] (angle, two shifts, scale, shear) and image sizes [n, 2] into maps [n, 6]."""
        angle, across, down, scale, shear = uniforms.T
        low, high = self.scale
        return affine.inverse_maps(
            sizes,
            angle=np.deg2rad(self.degrees * (2 * angle - 1)),
            shift=self.translate * (2 * np.stack([across, down], 1) - 1),
            scale=low + (high - low) * scale,
            shear=np.deg2rad(self.shear * (2 * shear - 1)),
        )

    def apply(self, image: np.ndarray, parameters: np.ndarray) -> np.ndarray:
        """Warp one uint8 image [H, W, 3] by its map [6] into uint8 [3, size, size]."""
        return affine.warp_image(image, parameters, self.size)

    def apply_batch(self, images: Tensor, parameters: np.ndarray) -> Tensor:
        """Warp equally large uint8 images [n, 3, H, W] by maps [n, 6] into uint8 [n, 3, size, size]."""
        return affine.warp(images, parameters, self.size)


def build(cfg: Crop) -> (
    RandomResizedCrop | RandomPaddedCrop | ResizedFirst | RandomSquareCrop | RandomBoundCrop | RandomAffine
):
    """Make the geometry that a recipe describes."""
    if isinstance(cfg, AffineCrop):
        return RandomAffine(cfg.size, cfg.degrees, cfg.translate, cfg.scale, cfg.shear)
    if isinstance(cfg, PaddedCrop):
        padded = RandomPaddedCrop(cfg.size, cfg.pad, cfg.flip, cfg.border == "reflect")
        return padded if cfg.resize is None else ResizedFirst(padded, cfg.resize)
    if isinstance(cfg, SquareCrop):
        return RandomSquareCrop(cfg.size, cfg.proportion, cfg.flip, cfg.interpolation)
    if isinstance(cfg, PaddleCrop):
        return RandomBoundCrop(cfg.size, cfg.area, cfg.aspect, cfg.flip, cfg.interpolation)
    return RandomResizedCrop(cfg.size, cfg.area, cfg.aspect, cfg.flip, cfg.interpolation)


def central_boxes(sizes: np.ndarray, proportion: float | np.ndarray) -> np.ndarray:
    """Return the central square boxes [n, 7] with `proportion` of the shorter side of images of sizes [n, 2].

    proportion: one number, or [n, 1]. Rounding and offsets are those of SimCLR (tf2/data_util.py `center_crop`).
    """
    sizes = sizes.astype(np.float64)
    side = np.maximum(np.rint(proportion * sizes.min(1, keepdims=True)), 1)
    place = (sizes - side + 1) // 2
    return crop_boxes(place, side.repeat(2, 1), sizes, np.zeros(len(sizes)))


def _candidates(
    uniforms: np.ndarray, sizes: np.ndarray, area: tuple[float, float], aspect: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Return heights and widths [n, tries], whole pixels, from uniforms [n, 2 tries] (areas, then aspects)."""
    shares, turns = np.split(uniforms, 2, axis=1)
    target = sizes.prod(1, keepdims=True) * (area[0] + (area[1] - area[0]) * shares)
    low, high = np.log(aspect)
    ratio = np.exp(low + (high - low) * turns)
    return np.rint(np.sqrt(target / ratio)), np.rint(np.sqrt(target * ratio))


def _largest(sizes: np.ndarray, aspect: tuple[float, float]) -> np.ndarray:
    """Return height and width [n, 2] of the largest crops of images [n, 2] whose aspect is allowed."""
    height, width = sizes.T
    ratio = width / height
    tall = np.where(ratio < aspect[0], np.rint(width / aspect[0]), height)
    wide = np.where(ratio > aspect[1], np.rint(height * aspect[1]), width)
    return np.maximum(np.stack([tall, wide], 1), 1)
