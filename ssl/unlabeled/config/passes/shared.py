"""The settings that all passes over a split share. Imports no torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, field_validator

from unlabeled.config.marks import Free
from unlabeled.config.recipe import Precision, Strict


@dataclass(frozen=True)
class Part:
    """One of several jobs that share the blocks of a pass: the `number`-th of `count`, from 1."""

    number: int = 1
    count: int = 1

    def of(self, blocks: int) -> range:
        """Return the blocks of this job."""
        return range(blocks * (self.number - 1) // self.count, blocks * self.number // self.count)

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


def part_of(text: Any) -> Part:
    """Read 3/16 as the third of sixteen jobs. Raises ValueError for anything else."""
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", str(text))
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise ValueError(f"there is no '{text}'; allowed: 1/16 to 16/16 for sixteen jobs, and so on")
    return Part(int(found[1]), int(found[2]))


WHOLE = Part()
MOST_CLASSES = 65_535  # whose numbers a store can hold, in two bytes each


class PassSettings(Strict):
    """How a network is taken over many samples: `class LabelmapSettings(PassSettings)` adds a command's own."""

    part: Free[str] = Field("1/1", description="3/16: the third of sixteen jobs that share the samples")
    batch: Free[int] = Field(256, gt=0, description="samples through the network at once")
    workers: Free[int] = Field(4, ge=0, description="processes that read images; 0: this one")
    precision: Precision = Field("auto", description="that the network runs in")
    max_corrupt: Free[float] = Field(0.001, ge=0, le=1, description="share of unreadable images that is put up with")

    @field_validator("part", mode="before")
    @classmethod
    def _one_of_several(cls, value: Any) -> str:
        return str(part_of(value))

    @property
    def share(self) -> Part:
        """Return the part as numbers."""
        return part_of(self.part)


class SplitPassSettings(PassSettings):
    """Of which samples, and where what was computed is kept."""

    card: Free[str | Annotated[list[str], Field(min_length=1)]] = Field(
        description="name or path of a data card; or [CARD, CARD]: several as one set"
    )
    split: Free[str] = Field("train", description="of every card")
    root: Free[str | None] = Field(None, description="folder of the data; overrides the card's own")
    out: Free[str] = Field(description="folder of the rows; that of a pass that was cut short goes on")
