"""Which process does which block of a pass: whoever is free takes the next one."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import torch.distributed as dist

from unlabeled.ops.distributed import meeting_place, on_rank0, world

_PATIENCE = 600.0  # seconds for the store of the launch to answer


class Queue:
    """The blocks that are to be done, handed out to the processes of a launch one at a time; made on all at once.

    So none waits for a slower one longer than for a block, and a process that fails ends the others after theirs.
    """

    def __init__(self, blocks: Sequence[int]) -> None:
        self.blocks = blocks
        self._store: dist.Store | None = None
        self._done = 0
        if world() > 1:
            name = on_rank0(lambda: f"pass/{time.time_ns()}")  # a process may do several passes
            self._store = dist.PrefixStore(name, meeting_place(_PATIENCE))

    def __iter__(self) -> Iterator[int]:
        """Yield the blocks of this process until none is left, or another process has failed."""
        taken = 0
        while not (self._store is not None and self._store.check(["failed"])):
            place = taken if self._store is None else self._store.add("taken", 1) - 1
            if place >= len(self.blocks):
                return
            taken += 1
            yield self.blocks[place]

    def finish(self, samples: int) -> int:
        """Take notice that so many samples are done, and return how many are in all processes."""
        self._done = self._done + samples if self._store is None else self._store.add("done", samples)
        return self._done

    def fail(self) -> None:
        """Let the other processes end."""
        if self._store is not None:
            self._store.set("failed", "")
