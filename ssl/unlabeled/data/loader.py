"""Making batches in other processes, in order."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator, Iterable, Sequence
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset

from unlabeled.errors import UserError


class Maker(Protocol):
    """Makes one batch (or what is packed) from the description of its samples; it is copied to the workers."""

    def make(self, unit: Any) -> Any:
        """Return the batch of `unit`."""


def usable(workers: int) -> int:
    """Return how many of `workers` processes are started: more than cores only cost memory, and torch warns."""
    return min(workers, len(os.sched_getaffinity(0)))


def batches(maker: Maker, units: Iterable[Any], workers: int, pin_memory: bool = False,
            ) -> Generator[Any, None, None]:
    """Yield the batch of every unit in order, made by `workers` processes, or here if there are none."""
    if workers == 0:
        for unit in units:
            batch = maker.make(unit)
            yield batch.pin_memory() if pin_memory else batch
        return
    loader: DataLoader[Any] = DataLoader(
        _Units(maker), batch_size=None, sampler=units, num_workers=usable(workers), pin_memory=pin_memory,
        collate_fn=_unchanged, worker_init_fn=_quiet,
        generator=torch.Generator(),  # else the loader draws from torch's global generator
    )
    for made in loader:
        if isinstance(made, UserError):
            raise made
        yield made


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


def split_evenly(total: int, parts: int) -> Sequence[int]:
    """Return parts + 1 bounds of contiguous parts of range(total) whose lengths differ by one at most."""
    return [total * part // parts for part in range(parts + 1)]
