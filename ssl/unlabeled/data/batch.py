"""What passes between the readers of data, the methods and the engine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


class Geometry(Protocol):
    """A random crop or warp of one image, drawn apart from being applied (see `augment.geometry`)."""

    @property
    def size(self) -> int:
        """Side of the square output, pixels."""

    @property
    def draws(self) -> int:
        """Uniform numbers that one sample needs."""

    @property
    def boxes(self) -> bool:
        """Whether its parameters are crop boxes, as in `Batch.boxes`."""

    def draw(self, uniforms: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Turn uniforms [n, draws] and image sizes [n, 2] (height, width) into parameters [n, p], float64."""

    def apply(self, image: np.ndarray, parameters: np.ndarray) -> np.ndarray:
        """Cut one uint8 image [H, W, 3] by parameters [p] into uint8 [3, size, size]."""

    def apply_batch(self, images: Tensor, parameters: np.ndarray) -> Tensor:
        """Cut equally large uint8 images [n, 3, H, W] by parameters [n, p] into uint8 [n, 3, size, size]."""


@dataclass(frozen=True)
class Stream:
    """What a method wants of one stream: its crops, in order; whether it reads the labels, and whether the places."""

    crops: tuple[Geometry, ...]
    labels: bool = False
    index: bool = False


@dataclass
class Batch:
    """One micro-batch of one process.

    crops: per crop of the stream, uint8 [b, 3, S, S]. boxes: per crop, float32 [b, 7] with the columns of
    `ops.boxes.CropBox`; None for warps without a box.
    index: int64 [b], the sample's place in its split (of a streamed one: see `remote`). label: int64 [b], -1 where
    unknown; None if the stream has none.
    corrupt: keys of unreadable samples whose places were taken by substitutes.
    """

    crops: list[Tensor]
    boxes: list[Tensor | None]
    index: Tensor
    label: Tensor | None = None
    corrupt: list[str] = field(default_factory=list)

    def to(self, device: torch.device) -> Batch:
        """Return the batch on `device`."""

        def move(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.to(device, non_blocking=True)

        return Batch(
            [c.to(device, non_blocking=True) for c in self.crops],
            [move(b) for b in self.boxes],
            self.index.to(device, non_blocking=True),
            move(self.label),
            self.corrupt,
        )

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory."""

        def pin(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.pin_memory()

        return Batch(
            [c.pin_memory() for c in self.crops],
            [pin(b) for b in self.boxes],
            self.index.pin_memory(),
            pin(self.label),
            self.corrupt,
        )
