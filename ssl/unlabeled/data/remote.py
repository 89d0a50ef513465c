"""Tar shards that are read from front to back, for training only: URLs, outputs of commands, disks slow to seek in.

In every epoch a seeded permutation deals the shards out to the loader processes of all training processes. Each reads
its shards in turn and draws from a buffer of samples that wait, so the order depends on (seed, stream, epoch) and on
the numbers of processes and of loader processes. A resume reads the samples that were taken once more, without decoding
them. A loader process whose shards end before the epoch goes on with another permutation.
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from unlabeled.config.card import Card, Streamed
from unlabeled.data.batch import Batch, Stream
from unlabeled.data.crops import cut_in_turn
from unlabeled.data.loader import usable
from unlabeled.data.sources.base import CorruptSample, Source
from unlabeled.data.sources.decode import decode
from unlabeled.data.sources.fingerprint import Names
from unlabeled.data.sources.labels import read_label
from unlabeled.data.sources.tar.shards import expand
from unlabeled.data.sources.tar.stream import Member, read_tar
from unlabeled.errors import UserError
from unlabeled.ops.random import permutation, seed_of, uniforms

_ATTEMPTS = 10


class StreamSource(Source):
    """The shards of a split; a sample's `index` is its shard's number in the card times 2^32 plus its place there."""

    random_access = False

    def __init__(self, name: str, split: str, urls: list[str], samples: int, rule: Streamed) -> None:
        super().__init__(name, split)
        self.urls, self.samples, self.rule = urls, samples, rule

    def __len__(self) -> int:
        return self.samples

    @property
    def has_labels(self) -> bool:
        """Return whether samples come with labels, which are read with them."""
        return self.rule.label is not None

    def names(self) -> Names:
        """Return the names of the shards, without the folder or URL above them; commands whole."""
        return Names(url if url.startswith("pipe:") else url.rpartition("/")[2] for url in self.urls)

    def traces(self) -> np.ndarray:
        """Return the sizes of the shards that are local files, -1 for others."""
        return np.array([os.path.getsize(url) if os.path.isfile(url) else -1 for url in self.urls], np.int64)

    def lanes(self, world: int, workers: int) -> int:
        """Return how many loader processes per training process can have shards of their own, at least 1.

        Raises UserError if there are fewer shards than training processes.
        """
        if len(self.urls) < world:
            raise UserError(f"data card '{self.name}', split '{self.split}': {len(self.urls)} shards do not suffice "
                            f"for {world} processes; pack the set into more shards")
        return max(1, min(usable(workers), len(self.urls) // world))

    def read(self, shard: int) -> Iterator[Sample]:
        """Yield the samples of a shard in order. Raises UserError if it cannot be read or lacks images."""
        for place, member in enumerate(read_tar(self.urls[shard])):
            image = next((member.fields[field] for field in self.rule.image if field in member.fields), None)
            if image is None:
                raise UserError(f"shard {self.urls[shard]}, sample {member.key}: no image member "
                                f"({', '.join(self.rule.image)}); it has: {', '.join(member.fields) or 'none'}")
            yield Sample(member.key, shard << 32 | place, image, self._label(member, shard))

    def _label(self, member: Member, shard: int) -> int:
        if self.rule.label is None:
            return -1
        text = member.fields.get(self.rule.label.partition(":")[0])
        if text is None:
            return -1
        try:
            return read_label(text, self.rule.label, self.classes)
        except ValueError as error:
            raise UserError(f"shard {self.urls[shard]}, sample {member.key}: {error}") from error


def open_stream(card: Card, split: str, root: str | None) -> Source:
    """Name the shards of a split; nothing is read yet. Raises UserError if the pattern names none or `root` is bad."""
    rule, spec = card.source, card.splits[split]
    assert isinstance(rule, Streamed) and spec.path is not None and spec.samples is not None  # the card's own checks
    urls = expand(spec.path)
    if "://" not in spec.path and not spec.path.startswith("pipe:"):
        place = card.location(root).rstrip("/")  # as it is: braces in it are part of its name
        urls = [f"{place}/{name}" for name in urls]
    source = StreamSource(card.name, split, urls, spec.samples, rule)
    source.classes = card.classes
    return source


@dataclass(frozen=True)
class Sample:
    """One undecoded sample; label is -1 where there is none."""

    key: str
    index: int
    image: bytes
    label: int


@dataclass(frozen=True)
class Turn:
    """One micro-batch of one process: positions in the epoch, int64 [b], and which samples of which lane."""

    epoch: int
    positions: np.ndarray
    lane: int
    first: int


class Lane:
    """The samples that one loader process reads in one epoch, in the order in which it gives them, without end."""

    def __init__(self, source: StreamSource, seed: int, name: str, epoch: int, lane: int, lanes: int) -> None:
        self.source, self.lane, self.lanes = source, lane, lanes
        self.order = (seed, name, "shards", epoch)
        self.random = random.Random(seed_of(seed, name, "buffer", epoch, lane))
        self.waiting: list[Sample] = []
        self.given = 0
        self._samples = self._shuffled()

    def take(self, first: int, count: int) -> list[Sample]:
        """Return samples [first, first + count), having passed over those before; `first` may only grow."""
        next(itertools.islice(self._samples, first - self.given, first - self.given), None)
        self.given = first + count
        return list(itertools.islice(self._samples, count))

    def close(self) -> None:
        """End the commands and connections under way."""
        self._samples.close()

    def _shuffled(self) -> Any:
        for again in itertools.count():
            for sample in self._pass(again):
                self.waiting.append(sample)
                if len(self.waiting) >= self.source.rule.shuffle:
                    yield self._draw()
            while self.waiting:
                yield self._draw()

    def _pass(self, again: int) -> Iterator[Sample]:
        shards = permutation(len(self.source.urls), *self.order, again)[self.lane :: self.lanes]
        empty = True
        for shard in shards.tolist():
            for sample in self.source.read(shard):
                empty = False
                yield sample
        if empty:  # else this would never end
            raise UserError(f"data card '{self.source.name}', split '{self.source.split}': there are no samples in "
                            + ", ".join(self.source.urls[shard] for shard in shards))

    def _draw(self) -> Sample:
        place = self.random.randrange(len(self.waiting))
        self.waiting[place], self.waiting[-1] = self.waiting[-1], self.waiting[place]
        return self.waiting.pop()


class InOrder:
    """Makes the micro-batches of one process from its lanes, each of which is served by one loader process.

    Between calls it keeps the lane that it read last: micro-batches of one lane in rising order cost no second reading.
    """

    def __init__(self, source: StreamSource, stream: Stream, name: str, seed: int, rank: int, world: int, lanes: int,
                 ) -> None:
        self.source, self.stream, self.name, self.seed = source, stream, name, seed
        self.rank, self.world, self.lanes = rank, world, lanes
        self._open: tuple[int, int, Lane] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": None}

    def unit(self, epoch: int, positions: np.ndarray, turn: int) -> Turn:
        """Return the turn'th micro-batch of an epoch: lanes take turns."""
        return Turn(epoch, positions, turn % self.lanes, turn // self.lanes * len(positions))

    def make(self, unit: Turn) -> Batch:
        """Return the batch of a turn."""
        lane = self._lane(unit)
        samples = lane.take(unit.first, len(unit.positions))
        others = [*lane.waiting, *samples]
        corrupt: list[str] = []
        draws = [uniforms(unit.positions, geometry.draws, self.seed, self.name, "crop", c, unit.epoch)
                 for c, geometry in enumerate(self.stream.crops)]
        cuts = cut_in_turn(self.stream.crops, self._images(unit, samples, others, corrupt), draws)
        label = torch.tensor([sample.label for sample in samples]) if self.stream.labels else None
        index = torch.tensor([sample.index for sample in samples])
        return Batch([crop for crop, _ in cuts], [box for _, box in cuts], index, label, corrupt)

    def _lane(self, unit: Turn) -> Lane:
        if self._open is not None:
            epoch, number, lane = self._open
            if (epoch, number) == (unit.epoch, unit.lane) and lane.given <= unit.first:
                return lane
            lane.close()
        lane = Lane(self.source, self.seed, self.name, unit.epoch, self.rank * self.lanes + unit.lane,
                    self.world * self.lanes)
        self._open = unit.epoch, unit.lane, lane
        return lane

    def _images(self, unit: Turn, samples: list[Sample], others: list[Sample], corrupt: list[str],
                ) -> Iterator[list[np.ndarray]]:
        """Yield the decoded samples, one image per geometry; one that waits takes an unreadable one's place, and stays.
        """
        for row, position in enumerate(unit.positions.tolist()):
            for attempt in range(_ATTEMPTS):
                try:
                    image = decode(samples[row].image, samples[row].key, self.source.pixels)
                    break
                except CorruptSample as error:
                    corrupt.append(error.key)
                    reason = str(error)
                draw = uniforms(np.array([position]), 1, self.seed, self.name, "substitute", unit.epoch, attempt)[0, 0]
                samples[row] = others[int(draw * len(others))]
            else:
                raise UserError(f"split '{self.source.split}' of data card '{self.source.name}': {_ATTEMPTS} samples "
                                f"in a row are unreadable, the last one {reason}")
            yield [image] * len(self.stream.crops)
