"""Crops that one draw always gives: a place in the padded image, a square of fixed share, an area that fits its aspect,
or all of it (see `data.batch.Geometry`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from unlabeled.augment.resample import Interpolation, crop_resize, crop_resize_batch
from unlabeled.errors import UserError
from unlabeled.ops.boxes import CropBox, crop_boxes, crop_columns


@dataclass(frozen=True)
class RandomPaddedCrop:
    """A random place of size x size in the image with `pad` pixels around it, and a flip; boxes [n, 7].

    The border is black or, with `reflect`, mirrored at the centres of the outermost pixels. Boxes are in pixels
    of the image without its border, so they may begin below zero.
    """

    size: int
    pad: int
    flip: float
    reflect: bool = False
    draws: ClassVar[int] = 3
    boxes: ClassVar[bool] = True

    def draw(self, uniforms: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Turn uniforms [n, 3] and image sizes [n, 2] into boxes [n, 7]. Raises UserError if an image is too small."""
        room = sizes.astype(np.float64) + 2 * self.pad - self.size
        if self.reflect and (sizes <= self.pad).any():
            raise UserError(f"a border of {self.pad} mirrored pixels needs larger images; lower the crop's pad")
        if (room < 0).any():
            height, width = sizes[(room < 0).any(1)][0].tolist()
            raise UserError(
                f"a padded crop of {self.size} pixels does not fit an image of {height} x {width} with {self.pad} "
                "pixels around it; lower method.crop.size, or use method.crop.kind=resized"
            )
        place = np.floor(uniforms[:, :2] * (room + 1)) - self.pad
        extent = np.full_like(place, self.size)
        return crop_boxes(place, extent, sizes.astype(np.float64), uniforms[:, -1] < self.flip)

    def apply(self, image: np.ndarray, parameters: np.ndarray) -> np.ndarray:
        """Cut one uint8 image [H, W, 3] by its box [7] into uint8 [3, size, size]."""
        return self.apply_batch(torch.from_numpy(image).permute(2, 0, 1)[None], parameters[None])[0].numpy()

    def apply_batch(self, images: Tensor, parameters: np.ndarray) -> Tensor:
        """Cut equally large uint8 images [n, 3, H, W] by boxes [n, 7] into uint8 [n, 3, size, size]."""
        box, steps = crop_columns(torch.from_numpy(parameters)[:, None]), torch.arange(self.size)
        rows, columns = (start.long() + steps for start in (box.top, box.left))
        if self.reflect:
            rows, columns = _mirrored(rows, images.shape[2]), _mirrored(columns, images.shape[3])
        else:
            images = torch.nn.functional.pad(images, (self.pad,) * 4)
            rows, columns = rows + self.pad, columns + self.pad
        columns = torch.where(box.flipped > 0, columns.flip(1), columns)
        chosen = images[torch.arange(len(images))[:, None, None], :, rows[:, :, None], columns[:, None, :]]
        return chosen.permute(0, 3, 1, 2).contiguous()


class OuterCrop:
    """What crops share that leave size and place of the view to the crop inside them."""

    crop: Any
    boxes: ClassVar[bool] = True

    @property
    def size(self) -> int:
        """Return the side of the view, pixels."""
        side: int = self.crop.size
        return side

    @property
    def draws(self) -> int:
        """Return how many uniform numbers a crop takes."""
        count: int = self.crop.draws
        return count


@dataclass(frozen=True)
class ResizedFirst(OuterCrop):
    """The whole image resized to a square of `side` pixels, then `crop`; boxes [n, 7] in pixels of the square."""

    crop: RandomPaddedCrop
    side: int
    interpolation: Interpolation = "bilinear"

    def draw(self, uniforms: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Turn uniforms [n, draws] into boxes [n, 7]; of image sizes [n, 2] only the number counts."""
        return self.crop.draw(uniforms, np.full_like(sizes, self.side))

    def apply(self, image: np.ndarray, parameters: np.ndarray) -> np.ndarray:
        """Cut one uint8 image [H, W, 3] by its box [7] into uint8 [3, size, size]."""
        whole = np.array([0, 0, *image.shape[:2], *image.shape[:2], 0])
        square = crop_resize(image, whole, self.side, self.interpolation)
        return self.crop.apply(square.transpose(1, 2, 0), parameters)

    def apply_batch(self, images: Tensor, parameters: np.ndarray) -> Tensor:
        """Cut equally large uint8 images [n, 3, H, W] by boxes [n, 7] into uint8 [n, 3, size, size]."""
        n, (height, width) = len(images), images.shape[2:]
        whole = np.tile(np.array([0.0, 0, height, width, height, width, 0]), (n, 1))
        return self.crop.apply_batch(crop_resize_batch(images, whole, self.side, self.interpolation), parameters)


class ResizedBox:
    """Cuts images by boxes [n, 7] and resizes what is inside: what crops that draw their size share."""

    size: int
    interpolation: Interpolation
    boxes: ClassVar[bool] = True

    def apply(self, image: np.ndarray, parameters: np.ndarray) -> np.ndarray:
        """Cut one uint8 image [H, W, 3] by its box [7] into uint8 [3, size, size]."""
        return crop_resize(image, parameters, self.size, self.interpolation)

    def apply_batch(self, images: Tensor, parameters: np.ndarray) -> Tensor:
        """Cut equally large uint8 images [n, 3, H, W] by boxes [n, 7] into uint8 [n, 3, size, size]."""
        return crop_resize_batch(images, parameters, self.size, self.interpolation)


@dataclass(frozen=True)
class RandomSquareCrop(ResizedBox):
    """A square of `proportion` of the shorter side at a random place, resized, and a flip; parameters are boxes [n, 7].

    The random counterpart of `geometry.EvalCrop`; with 0.875 and 224 pixels the usual "shorter side to 256, crop 224",
    cut before resizing instead of after.
    """

    size: int
    proportion: float
    flip: float
    interpolation: Interpolation
    draws: ClassVar[int] = 3
    boxes: ClassVar[bool] = True

    def draw(self, uniforms: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Turn uniforms [n, 3] and image sizes [n, 2] into boxes [n, 7]."""
        sizes = sizes.astype(np.float64)
        side = np.maximum(np.rint(self.proportion * sizes.min(1, keepdims=True)), 1)
        place = np.floor(uniforms[:, :2] * (sizes - side + 1))
        return crop_boxes(place, side.repeat(2, 1), sizes, uniforms[:, -1] < self.flip)


@dataclass(frozen=True)
class RandomBoundCrop(ResizedBox):
    """Random resized crop with flip in PaddlePaddle's law (PaddleClas, `RandCropImage`); parameters are boxes [n, 7].

    The aspect, width by height, is uniform and not log-uniform as torchvision's. The share of the area is uniform
    between the bounds, of which none exceeds the largest share that the image has room for at that aspect. So one draw
    is enough; sides are cut down to whole pixels.
    """

    size: int
    area: tuple[float, float]
    aspect: tuple[float, float]
    flip: float
    interpolation: Interpolation
    draws: ClassVar[int] = 5
    boxes: ClassVar[bool] = True

    def draw(self, uniforms: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Turn uniforms [n, 5] (aspect, area, row, column, flip) and image sizes [n, 2] into boxes [n, 7]."""
        sizes = sizes.astype(np.float64)
        height, width = sizes.T
        aspect = self.aspect[0] + (self.aspect[1] - self.aspect[0]) * uniforms[:, 0]
        bound = np.minimum(width / height / aspect, height / width * aspect)
        low, high = (np.minimum(share, bound) for share in self.area)
        area = width * height * (low + (high - low) * uniforms[:, 1])
        extent = np.floor(np.sqrt(np.stack([area / aspect, area * aspect], 1)))
        extent = np.clip(extent, 1, sizes)  # a product may be rounded to just above a side; an image of a few pixels
        place = np.floor(uniforms[:, 2:4] * (sizes - extent + 1))
        return crop_boxes(place, extent, sizes, uniforms[:, 4] < self.flip)


@dataclass(frozen=True)
class Whole:
    """The whole image, resized to a square whatever its aspect; parameters are boxes [n, 7].

    Shares of the image's sides are then shares of the square's, as ReLabel's maps need it (arXiv 2101.05022).
    """

    size: int
    interpolation: Interpolation = "bilinear"
    draws: ClassVar[int] = 0
    boxes: ClassVar[bool] = True

    def draw(self, uniforms: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Turn image sizes [n, 2] into boxes [n, 7]; `uniforms` [n, 0] is not looked at."""
        sizes = sizes.astype(np.float64)
        return crop_boxes(np.zeros_like(sizes), sizes, sizes, np.zeros(len(sizes)))

    def apply(self, image: np.ndarray, parameters: np.ndarray) -> np.ndarray:
        """Resize one uint8 image [H, W, 3] to uint8 [3, size, size]."""
        return crop_resize(image, parameters, self.size, self.interpolation)

    def apply_batch(self, images: Tensor, parameters: np.ndarray) -> Tensor:
        """Resize equally large uint8 images [n, 3, H, W] to uint8 [n, 3, size, size]."""
        if tuple(images.shape[2:]) == (self.size, self.size):
            return images.contiguous()
        return crop_resize_batch(images, parameters, self.size, self.interpolation)


@dataclass(frozen=True)
class EdgeCrop:
    """The image resized to `size` pixels at its shorter side, of which a square is cut at one edge of the longer side.

    place: 0, the left or top edge; 1, the middle; 2, the other edge. Boxes [n, 7] are in pixels of the resized image.
    The three are CVRL's test views (arXiv 2008.03800; vision/ops/preprocess_ops_3d.py), resized without antialiasing.
    """

    size: int
    place: int
    draws: ClassVar[int] = 0
    boxes: ClassVar[bool] = True

    def draw(self, uniforms: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Turn image sizes [n, 2] into boxes [n, 7]; `uniforms` [n, 0] is not looked at."""
        resized = np.floor(self.size * sizes.astype(np.float64) / sizes.min(1, keepdims=True))
        room = resized - self.size
        offset = (np.zeros_like(room), np.rint(resized / 2 - self.size / 2), room)[self.place]
        return crop_boxes(np.minimum(offset, room), np.full_like(room, self.size), resized, np.zeros(len(sizes)))

    def apply(self, image: np.ndarray, parameters: np.ndarray) -> np.ndarray:
        """Cut one uint8 image [H, W, 3] by its box [7] into uint8 [3, size, size]."""
        return self.apply_batch(torch.from_numpy(image).permute(2, 0, 1)[None], parameters[None])[0].numpy()

    def apply_batch(self, images: Tensor, parameters: np.ndarray) -> Tensor:
        """Cut equally large uint8 images [n, 3, H, W] by boxes [n, 7] into uint8 [n, 3, size, size]."""
        box = CropBox(*(int(value) for value in parameters[0]))
        side = (box.image_height, box.image_width)
        if tuple(images.shape[2:]) != side:
            images = torch.nn.functional.interpolate(images.float(), side, mode="bilinear").to(torch.uint8)
        return images[:, :, box.top : box.top + self.size, box.left : box.left + self.size].contiguous()


def _mirrored(places: Tensor, side: int) -> Tensor:
    """Return places that lie less than `side` outside of [0, side) as those that a mirror at the edge shows there."""
    return side - 1 - (side - 1 - places.abs()).abs()
