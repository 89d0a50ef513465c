"""Endless micro-batches of one stream for training, exactly repeatable from any update on."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from unlabeled.data.batch import Batch, Stream
from unlabeled.data.clips import clips_of, refuse_no_clips
from unlabeled.data.crops import TOGETHER, ClipCrop, cut, cut_in_turn
from unlabeled.data.loader import PATIENCE, batches
from unlabeled.data.order import Order, WeightedOrder
from unlabeled.data.records.rows import Rows, joined, stored_rows
from unlabeled.data.records.store import refuse_no_store
from unlabeled.data.remote import InOrder, StreamSource, Turn
from unlabeled.data.sources.base import CorruptSample, Source
from unlabeled.data.sources.mixed import Mixed
from unlabeled.errors import UserError
from unlabeled.ops.random import uniforms

_ATTEMPTS = 10
_SOME = np.zeros(1, np.int64)  # the entry of rows that have none


@dataclass(frozen=True)
class Unit:
    """One micro-batch of one process: positions in the epoch's order and the samples there, int64 [b]."""

    epoch: int
    positions: np.ndarray
    indices: np.ndarray


@dataclass(frozen=True)
class BatchShare:
    """What process `rank` of `world` takes of every global batch of `images`, in `grad_accum` micro-batches.

    Micro-batches are contiguous parts of the batch, and the processes' shares contiguous parts of the micro-batches.
    """

    images: int
    rank: int = 0
    world: int = 1
    grad_accum: int = 1

    @property
    def parts(self) -> int:
        """Into how many micro-batches of single processes the batch is divided."""
        return self.world * self.grad_accum

    def positions(self, batch: int, micro: int) -> np.ndarray:
        """Return where a micro-batch of the epoch's batch number `batch` stands in the epoch's order, int64 [b]."""
        length = self.images // self.parts
        first = batch * self.images + (micro * self.world + self.rank) * length
        return np.arange(first, first + length)


@dataclass(frozen=True)
class Reading:
    """How batches are made: by how many processes, in page-locked memory or not, seconds to wait (`batches`)."""

    workers: int = 0
    pin_memory: bool = False
    patience: float = PATIENCE


class TrainStream:
    """One stream of a run, for one of its processes.

    Update u takes positions [k B, (k + 1) B) of the order of epoch u // updates_per_epoch, k = u % updates_per_epoch.
    What a sample becomes depends on (seed, name, epoch, position) alone, so not on processes, workers or resumes; of a
    `StreamSource` it also depends on the number of processes and of workers (see `remote`).
    Raises UserError if the batch does not divide, or an epoch holds none, or labels or places are wanted of a set
    without.
    """

    def __init__(self, source: Source, stream: Stream, share: BatchShare, reading: Reading = Reading(), *, name: str,
                 seed: int, updates_per_epoch: int) -> None:
        if share.images % share.parts:
            raise UserError(f"data.{name}.batch {share.images} does not divide into {share.world} processes x "
                            f"{share.grad_accum} micro-batches")
        if updates_per_epoch < 1:
            raise UserError(f"data.{name}.batch is {share.images}, but split '{source.split}' of '{source.name}' holds "
                            f"only {len(source)} samples; use a smaller batch")
        if stream.labels and not source.has_labels:
            raise UserError(f"data.{name} needs labels, but split '{source.split}' of data card '{source.name}' has "
                            "none")
        if stream.index and not source.random_access:
            raise UserError(f"data.{name}: every image needs its place, and split '{source.split}' of data card "
                            f"'{source.name}' is streamed; use a card with random access, such as source kind shards")
        if stream.clips is not None:
            refuse_no_clips(source)
        for record in stream.records:
            refuse_no_store(source, record.name, name)
        self.maker: _TrainMaker | InOrder
        if isinstance(source, StreamSource):
            lanes = source.lanes(share.world, reading.workers)
            self.maker = InOrder(source, stream, name, seed, share.rank, share.world, lanes)
            self.reading = replace(reading, workers=min(reading.workers, lanes))
        else:
            self.maker = _TrainMaker(source, stream, _order(source, share.images * updates_per_epoch, seed, name))
            self.reading = reading if source.images is None else replace(reading, workers=0)
        self.share, self.updates_per_epoch = share, updates_per_epoch
        self._running: Generator[Batch, None, None] | None = None

    def updates(self, start: int, stop: int, waiting: Callable[[], None] = lambda: None) -> Iterator[list[Batch]]:
        """Yield the micro-batches of this process for each update in [start, stop); see `batches` on `waiting`."""
        self.close()
        units, reading = _Units(self, start, stop), self.reading
        running = batches(self.maker, units, reading.workers, reading.pin_memory, reading.patience, waiting)
        self._running = running
        try:
            for _ in range(start, stop):
                yield [next(running) for _ in range(self.share.grad_accum)]
        finally:  # also when the caller stops early: workers that wait for the garbage collector take seconds to end
            running.close()

    def unit(self, update: int, micro: int) -> Unit | Turn:
        """Return what the maker needs to know of one micro-batch of this process."""
        epoch, k = divmod(update, self.updates_per_epoch)
        return self.maker.unit(epoch, self.share.positions(k, micro), k * self.share.grad_accum + micro)

    def close(self) -> None:
        """End the worker processes."""
        if self._running is not None:
            self._running.close()
            self._running = None


class _Units:
    def __init__(self, stream: TrainStream, start: int, stop: int) -> None:
        self.stream, self.start, self.stop = stream, start, stop

    def __len__(self) -> int:
        return (self.stop - self.start) * self.stream.share.grad_accum

    def __iter__(self) -> Iterator[Unit | Turn]:
        for update in range(self.start, self.stop):
            for micro in range(self.stream.share.grad_accum):
                yield self.stream.unit(update, micro)


def _order(source: Source, epoch: int, seed: int, name: str) -> Order:
    """Return the order of a source; `epoch`: samples that one takes, of which sets with weights have fixed shares."""
    if isinstance(source, Mixed) and source.weights is not None:
        return WeightedOrder([len(one) for one in source.members], source.weights, epoch, seed, name)
    return Order(len(source), seed, name)


class _TrainMaker:
    """Reads, replaces and cuts the samples of a unit."""

    def __init__(self, source: Source, stream: Stream, order: Order) -> None:
        self.source, self.stream, self.order = source, stream, order
        # stores -> fields by which geometries cut other images than the sample's own
        self.others = [(getattr(geometry, "record", ""), getattr(geometry, "image", None)) for geometry in stream.crops]
        self.one_by_one = source.images is None or any(field is not None for _, field in self.others)
        self.crops, self.together = stream.crops, TOGETHER
        if stream.clips is not None:  # frames of two clips fill as much memory as those of many images
            self.crops, self.together = tuple(ClipCrop(crop, stream.clips) for crop in stream.crops), 1
        self.unreadable = dict(source.unreadable)
        for record in stream.records:
            self.unreadable |= source.without_record(record.name)

    def unit(self, epoch: int, positions: np.ndarray, turn: int) -> Unit:
        """Return the samples at `positions`, whichever micro-batch of its epoch it is."""
        return Unit(epoch, positions, self.order.indices(epoch, positions))

    def make(self, unit: Unit) -> Batch:
        """Return the batch of a unit."""
        draws = [uniforms(unit.positions, geometry.draws, self.order.seed, self.order.name, "crop", c, unit.epoch)
                 for c, geometry in enumerate(self.stream.crops)]
        corrupt: list[str] = []
        indices = unit.indices.copy()
        if self.one_by_one:
            parts: list[Rows] = []

            def rows_of(part: slice) -> Rows:
                parts.append(self._rows(unit, indices, part))
                return parts[-1]

            cuts = cut_in_turn(self.crops, self._images(unit, indices, corrupt), draws, rows_of, self.together)
            rows = joined(parts)
        else:
            assert self.source.images is not None
            for row in [row for row, index in enumerate(indices.tolist()) if index in self.unreadable]:
                indices[row] = self._readable(unit, row, corrupt)[0]
            rows = self._rows(unit, indices, slice(None))
            images = self.source.images[indices]
            cuts = [cut(geometry, images, draw, rows) for geometry, draw in zip(self.stream.crops, draws, strict=True)]
        labels = self.source.labels_of(indices) if self.stream.labels else None
        label = None if labels is None else torch.from_numpy(labels)
        records = {name: {field: torch.from_numpy(np.ascontiguousarray(values)) for field, values in fields.items()}
                   for name, fields in rows.items()}
        return Batch([crop for crop, _ in cuts], [box for _, box in cuts], torch.from_numpy(indices), label, corrupt,
                     records)

    def _rows(self, unit: Unit, indices: np.ndarray, part: slice) -> Rows:
        return stored_rows(self.source, self.stream.records, indices[part], unit.positions[part], seed=self.order.seed,
                           stream=self.order.name, epoch=unit.epoch)

    def _images(self, unit: Unit, indices: np.ndarray, corrupt: list[str]) -> Iterator[list[np.ndarray]]:
        for row in range(len(indices)):
            indices[row], images = self._readable(unit, row, corrupt)
            yield images

    def _readable(self, unit: Unit, row: int, corrupt: list[str]) -> tuple[int, list[np.ndarray]]:
        """Return the sample at a row or, if it is unreadable, the first readable substitute; images by geometry."""
        index = int(unit.indices[row])
        for attempt in range(_ATTEMPTS):
            try:
                if index in self.unreadable:
                    raise CorruptSample(self.source.key(index), self.unreadable[index])
                return index, self._shown(unit, row, index)
            except CorruptSample as error:
                corrupt.append(error.key)
                reason = str(error)
            index = self.order.substitute(unit.epoch, int(unit.positions[row]), attempt)
        raise UserError(f"split '{self.source.split}' of data card '{self.source.name}': {_ATTEMPTS} samples in a row "
                        f"are unreadable, the last one {reason}")

    def _shown(self, unit: Unit, row: int, index: int) -> list[np.ndarray]:
        """Return what each geometry cuts: its clip, the sample's own image, or one that its stored row names."""
        if self.stream.clips is not None:
            draw = uniforms(unit.positions[row : row + 1], self.stream.clips.draws, self.order.seed, self.order.name,
                            "clips", unit.epoch)
            return list(clips_of(self.source, self.stream.clips, draw, index))
        own = self.source.image(index)
        images = [own] * len(self.others)
        if any(field is not None for _, field in self.others):
            rows = stored_rows(self.source, self.stream.records, np.array([index]), unit.positions[row : row + 1],
                               seed=self.order.seed, stream=self.order.name, epoch=unit.epoch)
            for number, (record, field) in enumerate(self.others):
                if field is not None and rows[record].get("entry", _SOME)[0] >= 0:  # a plain visit shows its own image
                    place = int(rows[record][field][0])
                    images[number] = own if place < 0 else self.source.neighbour(record, index, place)
        return images
