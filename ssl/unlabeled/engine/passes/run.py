"""A pass: what a network gives for every sample of a split, kept in blocks; the same command goes on where it stopped.

A block is a file of rows, written whole or not at all. What stands in it depends on its samples alone, not on the jobs,
processes and interruptions in which it came about: batches are cut inside of blocks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unlabeled.config.passes.shared import WHOLE, Part
from unlabeled.data.batch import Batch
from unlabeled.data.records.store import Header, Store, write_block
from unlabeled.data.sources.base import CorruptKey, Source
from unlabeled.data.sources.files.lists import write_lines
from unlabeled.data.workers import Maker
from unlabeled.engine.passes.features import refuse_corrupt
from unlabeled.engine.passes.folder import begin, block_there, finished, header_of, refuse_removed
from unlabeled.engine.passes.queue import Queue
from unlabeled.engine.passes.source import refuse_streamed
from unlabeled.engine.passes.walk import walk
from unlabeled.engine.run.progress import LongPass
from unlabeled.errors import UserError
from unlabeled.ops.distributed import on_rank0, raise_together, rank
from unlabeled.ops.machine.files import write_atomically

UNREADABLE = "unreadable.txt"


@dataclass(frozen=True)
class Work:
    """What a pass computes.

    kind: of the rows, a noun of the store's readers. fields, about: as in `Header`. maker: makes a batch of the samples
    at int64 [b] places, with the readable ones in `index`. compute: from a batch on the device to each field's values
    [b, *shape] of the samples in `index`; inference mode, full precision unless it says otherwise. block: rows of a
    file, where the usual number would take minutes.
    """

    kind: str
    fields: Mapping[str, tuple[str, tuple[int, ...]]]
    about: Mapping[str, Any]
    maker: Maker
    compute: Callable[[Batch], dict[str, Tensor]]
    block: int | None = None


def run_pass(work: Work, source: Source, out: Path, *, part: Part = WHOLE, batch: int, workers: int,
             device: torch.device, max_corrupt: float, more: int = 0) -> Store | None:
    """Compute this part's blocks that `out` lacks; return what is kept there, or None while other parts are missing.

    Call it on all processes of a launch, which share the part. more: bytes that are written from the rows afterwards.
    Raises UserError, on all processes, for a streamed split, a folder that holds something else, a disk that is full or
    will be, unreadable images above `max_corrupt` (over all blocks) and results that are NaN or infinite.
    """
    refuse_streamed(source)
    header = header_of(work.kind, work.fields, work.about, source, work.block)
    header, missing, unreadable = on_rank0(lambda: begin(out, header, source, work.maker, part, more))
    queue = Queue(missing)
    problem: Exception | None = None
    try:
        _Pass(work, header, source, out, queue, unreadable, max_corrupt).run(batch, workers, device)
    except Exception as error:  # the other processes wait for this one below
        problem = error
        queue.fail()
    raise_together(problem, device)
    store = None
    try:
        store = finished(out, header, part)
    except UserError as error:
        problem = error
    raise_together(problem, device)  # none of them goes on to take the rows away before all have opened them
    if store is not None:
        _refuse_unreadable(source, store.unreadable, max_corrupt, out)
    return store


@dataclass
class _Block:
    """One block in the making. units: those of which no batch has come yet."""

    number: int
    places: range
    rows: np.ndarray
    units: deque[np.ndarray]
    unreadable: dict[int, str] = field(default_factory=dict)


@dataclass
class _Computed:
    """A batch of which the device may still be computing: values by field, on their way to the CPU."""

    block: _Block
    unit: np.ndarray
    readable: np.ndarray
    corrupt: list[str]
    values: dict[str, Tensor] = field(default_factory=dict)
    ready: torch.cuda.Event | None = None


class _Pass:
    """The blocks of one process. unreadable: place and reason in the blocks that are there."""

    def __init__(self, work: Work, header: Header, source: Source, out: Path, queue: Queue, unreadable: dict[int, str],
                 max_corrupt: float) -> None:
        self.work, self.header, self.source, self.out, self.queue = work, header, source, out, queue
        self.unreadable, self.max_corrupt = dict(unreadable), max_corrupt
        self.begun: deque[_Block] = deque()  # those whose batches are being made, in order
        self.computed: _Computed | None = None
        self.written: Future[None] | None = None

    def run(self, batch: int, workers: int, device: torch.device) -> None:
        """Compute and write blocks until none is left."""
        total = sum(len(self.header.places(number)) for number in self.queue.blocks)
        what = f"{self.work.kind} of '{self.source.split}' of '{self.source.name}'"
        self.writer = ThreadPoolExecutor(1)  # a slow disk need not keep the network waiting
        with LongPass(what, total, rank() == 0) as self.progress, self.writer:
            walk(self.work.maker, self._units(batch), self._take, source=self.source, workers=workers, device=device)
            self._keep()
            self._wait()

    def _units(self, batch: int) -> Iterator[np.ndarray]:
        """Yield the places of batch after batch, cut inside of blocks."""
        for number in self.queue:
            refuse_removed(self.out)
            if block_there(self.out, self.header, number):  # another job was faster
                self.progress.advance(self.queue.finish(len(self.header.places(number))))
                continue
            places = self.header.places(number)
            units = [np.arange(first, min(first + batch, places.stop)) for first in places[::batch]]
            rows = np.zeros(len(places), self.header.dtype)
            self.begun.append(_Block(number, places, rows, deque(units)))
            yield from units

    def _take(self, batch: Batch, readable: np.ndarray) -> None:
        """Start what is computed of a batch, and keep what was computed of the one before meanwhile."""
        block = self.begun[0]
        unit = block.units.popleft()
        if not block.units:
            self.begun.popleft()
        computed = _Computed(block, unit, readable, batch.corrupt)
        if len(readable):
            values = self.work.compute(batch)
            assert values.keys() == self.work.fields.keys(), f"fields {sorted(values)}"
            computed.values = {name: _on_the_way(value) for name, value in values.items()}
            if batch.index.is_cuda:
                computed.ready = torch.cuda.Event()
                computed.ready.record()
        self._keep()
        self.computed = computed

    def _keep(self) -> None:
        """Put the newest batch into its block, and let the block be written if it is full."""
        computed, self.computed = self.computed, None
        if computed is None:
            return
        if computed.ready is not None:
            computed.ready.synchronize()
        block = computed.block
        for name, value in computed.values.items():
            self._fill(block, name, value.numpy(), computed.readable)
        block.unreadable |= self._reasons(computed)
        if computed.unit[-1] == block.places[-1]:
            self._write(block)
        self.progress.advance(self.queue.finish(len(computed.unit)))

    def _fill(self, block: _Block, name: str, values: np.ndarray, readable: np.ndarray) -> None:
        """Store values [b, *shape] of a field. Raises UserError for numbers that it cannot hold."""
        column, rows = block.rows[name], readable - block.places.start
        assert values.shape == (len(rows), *column.shape[1:]), f"'{name}' has the shape {values.shape}"
        with np.errstate(over="ignore"):
            column[rows] = values
        wrong = ~np.isfinite(column[rows]) if column.dtype.kind == "f" else column[rows] != values
        bad = np.flatnonzero(wrong.reshape(len(rows), -1).any(1))
        if len(bad):
            raise UserError(f"{self.work.kind}: the {name} of {len(bad)} of {len(rows)} samples are NaN or beyond what "
                            f"{column.dtype} holds, the first of '{self.source.key(int(readable[bad[0]]))}'; take "
                            "precision=fp32, or another network: this one may have diverged")

    def _reasons(self, computed: _Computed) -> dict[int, str]:
        """Return why samples of a batch are unreadable, by place."""
        reasons = {str(key): key.reason for key in computed.corrupt if isinstance(key, CorruptKey)}
        return {place: reasons.get(self.source.key(place), "cannot be read")
                for place in np.setdiff1d(computed.unit, computed.readable).tolist()}

    def _write(self, block: _Block) -> None:
        """Let a full block be written after the one before, whose failure is raised here."""
        self._wait()
        self.written = self.writer.submit(write_block, self.out, self.header, block.number, block.rows,
                                          block.unreadable)
        if block.unreadable:
            self._wait()
            self.unreadable |= block.unreadable
            _refuse_unreadable(self.source, self.unreadable, self.max_corrupt, self.out)

    def _wait(self) -> None:
        if self.written is not None:
            self.written.result()


def _on_the_way(value: Tensor) -> Tensor:
    """Return a copy on the CPU, of which a GPU is not waited for; numpy has no bfloat16."""
    return (value.float() if value.dtype == torch.bfloat16 else value).to("cpu", non_blocking=True)


def _refuse_unreadable(source: Source, unreadable: Mapping[int, str], allowed: float, out: Path) -> None:
    """Raise UserError, and write the list of all, if unreadable samples are more than the `allowed` share."""
    keys = [CorruptKey(source.key(place), reason) for place, reason in sorted(unreadable.items())]
    try:
        refuse_corrupt(source, list(keys), allowed)
    except UserError as error:
        lines = write_lines(f"{key}: {key.reason}" for key in keys)
        write_atomically(out / UNREADABLE, lambda file: file.write(lines))
        raise UserError(f"{error}. {out / UNREADABLE} names all. Mend them, or raise max_corrupt; the same command "
                        "goes on") from error
