"""Names of networks, RUN[:EXPORT], timm:NAME[@FILE] or torchvision:NAME[@FILE], and where a run keeps its copies.

EXPORT may be a size: RUN:384x12, or RUN:EXPORT@384x12, is the sub-network of that size of an elastic network.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

LIBRARIES = ("timm", "torchvision")  # a run whose folder has such a name is given as ./timm
# torchvision's networks that are timm's too: they have the same names of weights, and compute the same
_AS_TIMMS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x8d",
             "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2")

SIZE = r"(\d+)x(\d+(?:-\d+)*)"  # WIDTHxDEPTH, of as many depths as stages are elastic
_SIZED = re.compile(rf"(?:(?P<export>[^@]+)@)?(?P<size>{SIZE})(?:\.(?P<block>.+))?")


class Sized(NamedTuple):
    """A sub-network, by its size, of an elastic export; None: the first such, and a block inside it or None."""

    export: str | None
    size: str
    block: str | None


@dataclass(frozen=True)
class Public:
    """A network of another library; file: of its weights, None: those that the library itself publishes."""

    library: str
    name: str
    file: Path | None = None

    @property
    def architecture(self) -> str:
        """The name without the tag of published weights: resnet18 of resnet18.a1_in1k."""
        return self.name.partition(".")[0]

    @property
    def backbone(self) -> str:
        """The name that it has as a recipe's `backbone.name`."""
        timms = self.library == "timm" or self.name in _AS_TIMMS
        return self.architecture if timms else f"{self.library}:{self.name}"

    def __str__(self) -> str:
        """Return the name as it is written in a recipe."""
        return f"{self.library}:{self.name}" + ("" if self.file is None else f"@{self.file}")


def public(source: str) -> Public | None:
    """Return what a name of another library's network says, None for anything else, such as a run."""
    library, colon, rest = source.partition(":")
    if not colon or library not in LIBRARIES:
        return None
    name, at, file = rest.partition("@")
    return Public(library, name, Path(file).expanduser() if at else None)


def split_source(source: str) -> tuple[Path, str | None]:
    """Split RUN or RUN:EXPORT."""
    run, colon, export = source.partition(":")
    return Path(run), export if colon else None


def sized(export: str | None) -> Sized | None:
    """Read [EXPORT@]SIZE[.BLOCK]; None for the name of an export, and for a text of another form."""
    found = _SIZED.fullmatch(export or "")
    return Sized(found["export"], found["size"], found["block"]) if found else None


def copy_of(source: str, run: Path) -> Path:
    """Return where `run` keeps its copy of a source."""
    named = public(source)
    origin = split_source(source)[0].name if named is None else f"{named.library}-{named.name}"
    digest = hashlib.sha256(source.encode("utf-8", "surrogateescape")).hexdigest()
    return run / "sources" / f"{origin[:100]}-{digest[:8]}"
