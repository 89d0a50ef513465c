"""What passes between the readers of data, the methods and the engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from unlabeled.data.records.rows import Record


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


class RecordGeometry(Geometry, Protocol):
    """A crop whose place is stored: `draw` also gets the rows {field: [n, ...]} of the store `record`.

    image: None, or the field that says at which place of the store the image stands that is cut in the sample's stead;
    where it is -1 the sample itself is cut.
    """

    record: str
    image: str | None

    def draw(self, uniforms: np.ndarray, sizes: np.ndarray, rows: dict[str, np.ndarray] | None = None) -> np.ndarray:
        """Turn uniforms [n, draws], image sizes [n, 2] and stored rows into parameters [n, p], float64."""


class Clips(Protocol):
    """Which frames of a video its clips are of: one joint draw (see `data.clips`)."""

    @property
    def frames(self) -> int:
        """Frames of a clip."""

    @property
    def count(self) -> int:
        """Clips of one video."""

    @property
    def draws(self) -> int:
        """Uniform numbers that one video needs."""

    def places(self, uniforms: np.ndarray, lengths: np.ndarray, rates: np.ndarray) -> np.ndarray:
        """Turn uniforms [n, draws], lengths [n] in frames and frames per second [n] (0: unknown) into frames, int64
        [n, count, frames].
        """


@dataclass(frozen=True)
class Stream:
    """What a method wants of one stream: its crops, in order; whether it reads the labels, and whether the places.

    records: what it wants of what is stored of every sample. clips: samples are videos, of which each crop cuts one
    clip; one draw of the crop serves all frames of it.
    """

    crops: tuple[Geometry, ...]
    labels: bool = False
    index: bool = False
    records: tuple[Record, ...] = ()
    clips: Clips | None = None


@dataclass
class Batch:
    """One micro-batch of one process.

    crops: per crop of the stream, uint8 [b, 3, S, S], of clips [b, 3, T, S, S]. boxes: per crop, float32 [b, 7] with
    the columns of `ops.boxes.CropBox`; None for warps without a box.
    index: int64 [b], the sample's place in its split (of a streamed one: see `remote`). label: int64 [b], -1 where
    unknown; None if the stream has none. records: name of the store -> field -> [b, ...], see `Record`;
    on the CPU, wherever the rest is: what of them is needed elsewhere, `ops.machine.memory.to_device` copies.
    corrupt: keys of unreadable samples whose places were taken by substitutes.
    """

    crops: list[Tensor]
    boxes: list[Tensor | None]
    index: Tensor
    label: Tensor | None = None
    corrupt: list[str] = field(default_factory=list)
    records: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def to(self, device: torch.device) -> Batch:
        """Return the batch on `device`, but for its records."""
        return self._moved(lambda x: x.to(device, non_blocking=True), self.records)

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory."""
        records = {name: {key: value.pin_memory() for key, value in fields.items()}
                   for name, fields in self.records.items()}
        return self._moved(Tensor.pin_memory, records)

    def _moved(self, move: Callable[[Tensor], Tensor], records: dict[str, dict[str, Tensor]]) -> Batch:
        return Batch(
            [move(crop) for crop in self.crops],
            [None if box is None else move(box) for box in self.boxes],
            move(self.index),
            None if self.label is None else move(self.label),
            self.corrupt,
            records,
        )
