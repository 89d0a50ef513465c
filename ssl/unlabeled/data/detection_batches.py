"""Batches of whole images with their boxes, as detectors read them: images keep their shape."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from unlabeled.data.order import Order
from unlabeled.data.sources.base import CorruptSample, Source
from unlabeled.data.sources.dense.annotations import read_objects
from unlabeled.errors import UserError
from unlabeled.ops.boxes import Edges, edge_columns
from unlabeled.ops.random import uniforms

_STREAM = "detection"  # name under which everything random is drawn
_ATTEMPTS = 20


@dataclass
class DetectionBatch:
    """Images, uint8 [3, H, W] each, with what torchvision's detectors call targets.

    targets: boxes float32 [k, 4], labels int64 [k] from 1 on, and perhaps masks uint8 [k, H, W]; empty for test images.
    index: places in the split. corrupt: keys of images that could not be read.
    """

    images: list[Tensor] = field(default_factory=list)
    targets: list[dict[str, Tensor]] = field(default_factory=list)
    index: list[int] = field(default_factory=list)
    corrupt: list[str] = field(default_factory=list)


class TrainMaker:
    """Makes training batches: images with objects, resized to a random one of `sizes`, half of them flipped.

    A unit is (epoch, positions in its order); size and flip of a position depend on (seed, epoch, position) alone.
    """

    def __init__(self, source: Source, sizes: tuple[int, ...], longest: int, seed: int, *, masks: bool) -> None:
        self.source, self.sizes, self.longest, self.seed, self.masks = source, sizes, longest, seed, masks
        self.usable = source.with_objects()
        if not len(self.usable):
            raise UserError(f"data '{source.name}', split '{source.split}': no image holds an object to train on")
        self.order = Order(len(self.usable), seed, _STREAM)

    def __len__(self) -> int:
        return len(self.usable)

    def make(self, unit: tuple[int, np.ndarray]) -> DetectionBatch:
        """Return the batch; unreadable images are named, and others take their places.

        Raises UserError for annotations of another size than their image.
        """
        epoch, positions = unit
        batch = DetectionBatch()
        draws = uniforms(positions, 2, self.seed, _STREAM, "views", epoch)
        for place, position, (size, flip) in zip(self.order.indices(epoch, positions), positions, draws, strict=True):
            index, image = self._read(int(place), epoch, int(position), batch.corrupt)
            side = self.sizes[int(size * len(self.sizes))]
            resized, target = self._view(index, image, side, flip=flip < 0.5)
            batch.images.append(resized)
            batch.targets.append(target)
            batch.index.append(index)
        return batch

    def _read(self, place: int, epoch: int, position: int, corrupt: list[str]) -> tuple[int, np.ndarray]:
        for attempt in range(_ATTEMPTS):
            index = int(self.usable[place])
            try:
                return index, self.source.image(index)
            except CorruptSample as error:
                corrupt.append(error.key)
                place = self.order.substitute(epoch, position, attempt)
        raise UserError(f"data '{self.source.name}', split '{self.source.split}': {_ATTEMPTS} images in a row cannot "
                        f"be read, the last: {corrupt[-1]}")

    def _view(self, index: int, image: np.ndarray, side: int, flip: bool) -> tuple[Tensor, dict[str, Tensor]]:
        height, width = image.shape[:2]
        objects = read_objects(self.source, index, height, width, masks=self.masks)
        single = ~objects.crowd
        new_height, new_width = resized_to(height, width, side, self.longest)
        if (new_height, new_width) != (height, width):
            image = np.asarray(Image.fromarray(image).resize((new_width, new_height), Image.Resampling.BILINEAR))
        scale = np.array([new_width / width, new_height / height] * 2, np.float32)
        boxes = objects.boxes[single] * scale
        if flip:
            image = image[:, ::-1]
            edge = edge_columns(boxes)
            boxes = np.stack(Edges(new_width - edge.right, edge.top, new_width - edge.left, edge.bottom), 1)
        target = {"boxes": torch.from_numpy(boxes), "labels": torch.from_numpy(objects.kinds[single] + 1)}
        if objects.masks is not None:
            masks = torch.from_numpy(objects.masks[single].astype(np.uint8))
            if masks.shape[1:] != (new_height, new_width):
                masks = F.interpolate(masks[None], (new_height, new_width), mode="nearest")[0]
            target["masks"] = masks.flip(2) if flip else masks
        return _tensor(image), target


class WholeMaker:
    """Makes batches of whole test images; a unit is their indices. Unreadable ones are named and left out."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def make(self, unit: np.ndarray) -> DetectionBatch:
        """Return the readable images of a unit. Raises UserError for annotations of another size."""
        batch = DetectionBatch()
        for index in unit.tolist():
            try:
                image = self.source.image(index)
            except CorruptSample as error:
                batch.corrupt.append(error.key)
                continue
            read_objects(self.source, index, *image.shape[:2])  # what it will be scored by
            batch.images.append(_tensor(image))
            batch.index.append(index)
        return batch


def resized_to(height: int, width: int, side: int, longest: int) -> tuple[int, int]:
    """Return height and width of an image with the shorter side `side`, but the longer one at most `longest`."""
    scale = side / min(height, width)
    scale = min(scale, longest / max(height, width))
    return int(height * scale + 0.5), int(width * scale + 0.5)


def _tensor(image: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
