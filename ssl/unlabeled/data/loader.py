"""Making batches in other processes, in order."""

from __future__ import annotations

import os
import signal
import warnings
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from unlabeled.errors import UserError

_END = object()


class Maker(Protocol):
    """Makes one batch (or what is packed) from the description of its samples; it is copied to the workers."""

    def make(self, unit: Any) -> Any:
        """Return the batch of `unit`."""


def usable(workers: int) -> int:
    """Return how many of `workers` processes are started: more than cores only cost memory, and torch warns."""
    return min(workers, len(os.sched_getaffinity(0)))


def batches(maker: Maker, units: Iterable[Any], workers: int, pin_memory: bool = False, patience: float = 120.0,
            ) -> Generator[Any, None, None]:
    """Yield the batch of every unit in order, made by `workers` processes, or here if there are none.

    Processes that give nothing for `patience` seconds (0: for ever) are taken to be stuck, on a file system perhaps;
    they are replaced, and what they had not delivered is made again.
    """
    if workers == 0:
        for unit in units:
            batch = maker.make(unit)
            yield batch.pin_memory() if pin_memory else batch
        return
    sent: deque[Any] = deque()  # handed to the workers, and not yet back
    rest = iter(units)

    def handed() -> Iterator[Any]:
        yield from list(sent)
        for unit in rest:
            sent.append(unit)
            yield unit

    while True:
        loader: DataLoader[Any] = DataLoader(
            _Units(maker), batch_size=None, sampler=handed(), num_workers=usable(workers), pin_memory=pin_memory,
            collate_fn=_unchanged, worker_init_fn=_quiet, timeout=patience,
            generator=torch.Generator(),  # else the loader draws from torch's global generator
        )
        made: Any = iter(loader)
        try:
            while (batch := next(made, _END)) is not _END:
                sent.popleft()
                if isinstance(batch, UserError):
                    raise batch
                yield batch
            return
        except RuntimeError as error:
            if not str(error).startswith("DataLoader timed out"):
                raise
            warnings.warn(f"loader processes gave nothing for {patience:.0f} s and are started anew", stacklevel=2)
            patience *= 2
        finally:
            made._shutdown_workers()
            for worker in made._workers:  # one that is stuck, and deaf to TERM, would not let this process end
                if worker.is_alive():
                    worker.kill()
                    worker.join()


class _Units(Dataset[Any]):
    def __init__(self, maker: Maker) -> None:
        self.maker = maker

    def __getitem__(self, unit: Any) -> Any:
        try:
            return self.maker.make(unit)
        except UserError as error:  # raised in a worker it would arrive with the worker's traceback as its message
            return error


def _unchanged(made: Any) -> Any:
    return made


def _quiet(worker: int) -> None:
    """Leave Ctrl-C and a scheduler's signals, which reach all processes, to the training process: it saves first.

    The worker ends when it is told to or when its parent is gone.
    """
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def own_units(total: int, rank: int, world: int, batch: int) -> list[np.ndarray]:
    """Return this process's contiguous part of range(total), in order, in units of `batch` places or fewer."""
    bounds = split_evenly(total, world)
    start, stop = bounds[rank], bounds[rank + 1]
    return [np.arange(first, min(first + batch, stop)) for first in range(start, stop, batch)]


def split_evenly(total: int, parts: int) -> Sequence[int]:
    """Return parts + 1 bounds of contiguous parts of range(total) whose lengths differ by one at most."""
    return [total * part // parts for part in range(parts + 1)]
