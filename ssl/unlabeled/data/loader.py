"""Making batches in other processes, in order."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.util import Finalize
from typing import Any

import numpy as np
import torch

from unlabeled.data.workers import Maker, Worker, end_all, failure

PATIENCE = 120.0  # seconds without a batch, after which a loader process is taken to be stuck
_AHEAD = 2  # units that each process has been handed


def usable(workers: int) -> int:
    """Return how many of `workers` processes are started: more than cores only cost memory."""
    return min(workers, len(os.sched_getaffinity(0)))


def batches(maker: Maker, units: Iterable[Any], workers: int, pin_memory: bool = False, patience: float = PATIENCE,
            waiting: Callable[[], None] = lambda: None) -> Generator[Any, None, None]:
    """Yield the batch of every unit in order, made by `workers` processes, or here if there are none.

    The n-th unit goes to process n modulo their number. See `Worker.deliver` on processes that give nothing for
    `patience` seconds, and on `waiting`. Raises UserError for what the user or the system must mend.
    """
    if not workers:
        yield from _made_ahead(maker, iter(units)) if pin_memory else (_made_here(maker, unit) for unit in units)
        return
    crew = _Crew(maker, units, usable(workers), patience, waiting)
    try:
        yield from _pinned(crew) if pin_memory else crew
    finally:
        crew.close()


def _made_here(maker: Maker, unit: Any) -> Any:
    try:
        return maker.make(unit)
    except (OSError, MemoryError, RuntimeError) as error:
        problem = failure(error)
        if problem.kind != "system":
            raise
        raise problem.error() from error


def _made_ahead(maker: Maker, units: Iterator[Any]) -> Iterator[Any]:
    """Yield batches in page-locked memory that a thread makes while the GPU computes; torch lets others run meanwhile.
    """
    device = torch.cuda.current_device() if torch.cuda.is_available() else None
    thread = ThreadPoolExecutor(1)
    try:
        coming = deque(thread.submit(_made_and_pinned, maker, unit, device) for unit in itertools.islice(units, _AHEAD))
        while coming:
            batch = coming.popleft().result()
            coming.extend(thread.submit(_made_and_pinned, maker, unit, device) for unit in itertools.islice(units, 1))
            yield batch
    finally:
        thread.shutdown(cancel_futures=True)


def _made_and_pinned(maker: Maker, unit: Any, device: int | None) -> Any:
    return _pin(_made_here(maker, unit), device)


class _Crew(Iterator[Any]):
    """Loader processes that take turns."""

    def __init__(self, maker: Maker, units: Iterable[Any], count: int, patience: float, waiting: Callable[[], None],
                 ) -> None:
        self.rest, self.patience, self.waiting = iter(units), patience, waiting
        self.workers: list[Worker] = []
        self.close = Finalize(self, end_all, (self.workers,), exitpriority=10)  # also where nobody calls it
        for _ in range(count):
            self.workers.append(Worker(maker))
        self.next_worker = itertools.cycle(self.workers)
        self.turns: deque[Worker] = deque()  # who owes the next batches, in order
        for unit in itertools.islice(self.rest, _AHEAD * count):
            self._hand(unit)

    def __next__(self) -> Any:
        if not self.turns:
            raise StopIteration
        batch = self.turns[0].deliver(self.patience, self.waiting)
        self.turns.popleft()
        for unit in itertools.islice(self.rest, 1):
            self._hand(unit)
        return batch

    def ready(self) -> bool:
        """Return whether the next batch is there."""
        return bool(self.turns) and self.turns[0].waits()

    def _hand(self, unit: Any) -> None:
        worker = next(self.next_worker)
        worker.hand(unit)
        self.turns.append(worker)


def _pinned(crew: _Crew) -> Iterator[Any]:
    """Yield batches in page-locked memory, to which those that are there are copied in a thread, ahead of their use."""
    device = torch.cuda.current_device() if torch.cuda.is_available() else None
    with ThreadPoolExecutor(1) as thread:
        copies: deque[Future[Any]] = deque()
        problem: Exception | None = None
        while True:
            while problem is None and len(copies) < _AHEAD and (not copies or crew.ready()):
                try:
                    copies.append(thread.submit(_pin, next(crew), device))
                except Exception as error:  # the end among them; what was made before comes first
                    problem = error
            if not copies:
                if isinstance(problem, StopIteration):
                    return
                assert problem is not None
                raise problem
            yield copies.popleft().result()


def _pin(batch: Any, device: int | None) -> Any:
    if device is not None:  # else a thread takes memory of the first one
        torch.cuda.set_device(device)
    return batch.pin_memory()


def own_units(total: int, rank: int, world: int, batch: int) -> list[np.ndarray]:
    """Return this process's contiguous part of range(total), in order, in units of `batch` places or fewer."""
    bounds = split_evenly(total, world)
    start, stop = bounds[rank], bounds[rank + 1]
    return [np.arange(first, min(first + batch, stop)) for first in range(start, stop, batch)]


def split_evenly(total: int, parts: int) -> Sequence[int]:
    """Return parts + 1 bounds of contiguous parts of range(total) whose lengths differ by one at most."""
    return [total * part // parts for part in range(parts + 1)]
