"""Unreadable samples: named once, counted over all processes, and too many of them end the run."""

from __future__ import annotations

import torch.distributed as dist

from unlabeled.data.sources.base import CorruptKey, too_many, with_reason
from unlabeled.engine.run.folder import RunFolder
from unlabeled.errors import UserError
from unlabeled.ops.distributed import on_rank0, rank, world


class CorruptSamples:
    """The set of unreadable keys seen so far, equal on all ranks; it is kept in `corrupt.jsonl`."""

    def __init__(self, folder: RunFolder, samples: int, share: float) -> None:
        self.folder, self.samples, self.share = folder, samples, share
        lines = on_rank0(lambda: folder.read_lines(folder.corrupt))
        self.seen: set[str] = {CorruptKey(line["key"], line["reason"]) if "reason" in line else line["key"]
                               for line in lines}

    def add(self, update: int, keys: list[str]) -> list[str]:
        """Add this rank's `keys` of `update` and return those of all ranks that are new; call it on all ranks at once.

        Raises UserError, on all ranks, if more than the allowed share of the samples cannot be read.
        """
        parts: list[list[str]] = [keys]
        if world() > 1:
            parts = [[] for _ in range(world())]
            dist.all_gather_object(parts, keys)
        new = sorted({key for part in parts for key in part} - self.seen)
        self.seen |= set(new)
        if rank() == 0 and new:
            self.folder.append(self.folder.corrupt, [self._line(update, key) for key in new])
        if too_many(len(self.seen), self.samples, self.share):
            some = "\n".join(f"  {with_reason(key)}" for key in sorted(self.seen)[:10])
            raise UserError(
                f"{len(self.seen)} of {self.samples} samples cannot be read, more than data.max_corrupt "
                f"{self.share:g} allows. The first of them ({self.folder.corrupt} names all):\n{some}\n"
                "Repair or remove them, or raise data.max_corrupt"
            )
        return new

    @staticmethod
    def _line(update: int, key: str) -> dict[str, object]:
        return {"update": update, "key": key, **({"reason": key.reason} if isinstance(key, CorruptKey) else {})}
