"""What all files of annotations are held to: lists of images, sizes of images, boxes."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from unlabeled.data.sources.base import Source
from unlabeled.data.sources.truth import Objects
from unlabeled.errors import UserError
from unlabeled.ops.boxes import Edges

_SMALLEST = 1e-5  # side of a box, pixels; smaller ones are no boxes (detectron2's threshold)
_Named = TypeVar("_Named", bound=Hashable)


@dataclass
class ImageObjects:
    """What the annotations say of one image: its path, height and width, and its objects, a list per property."""

    path: str
    size: tuple[int, int]
    boxes: list[list[float]] = field(default_factory=list)
    kinds: list[int] = field(default_factory=list)
    areas: list[float] = field(default_factory=list)
    crowd: list[bool] = field(default_factory=list)
    difficult: list[bool] = field(default_factory=list)
    shapes: list[Any] = field(default_factory=list)

    def add(self, box: Edges[float], kind: int, area: float | None = None, *, crowd: bool = False,
            difficult: bool = False, shape: Any = None) -> bool:
        """Add an object, its box cut at the image's border; return whether anything was left of it.

        Raises ValueError for edges (left, top, right, bottom) that are no numbers or in the wrong order.
        """
        left, top, right, bottom = box
        if not all(map(math.isfinite, box)) or right < left or bottom < top:
            raise ValueError(f"a box from {left:g}, {top:g} to {right:g}, {bottom:g} (left, top to right, bottom)")
        height, width = self.size
        left, right = (min(max(x, 0.0), width) for x in (left, right))
        top, bottom = (min(max(y, 0.0), height) for y in (top, bottom))
        if not (right - left > _SMALLEST and bottom - top > _SMALLEST):
            return False
        self.boxes.append([left, top, right, bottom])
        self.kinds.append(kind)
        self.areas.append((right - left) * (bottom - top) if area is None else area)
        self.crowd.append(crowd)
        self.difficult.append(difficult)
        self.shapes.append(shape)
        return True


def stated_size(height: Any, width: Any) -> tuple[int, int]:
    """Return the size of an image as its annotation states it. Raises ValueError if it is none."""
    for name, side in (("height", height), ("width", width)):
        if isinstance(side, bool) or not isinstance(side, int | float) or not (side > 0 and side % 1 == 0):
            raise ValueError(f"its {name} is {side!r}; state the size of the image in pixels")
    return int(height), int(width)


def twice(names: Iterable[_Named]) -> _Named | None:
    """Return the first name that comes a second time, None if all differ."""
    earlier: set[_Named] = set()
    for name in names:
        if name in earlier:
            return name
        earlier.add(name)
    return None


def read_names(path: Path) -> list[str]:
    """Return the lines of a list of images.

    Raises UserError if it is no text, is empty, names one twice, or one that lies outside of the set.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the list {path} cannot be read as text: {error}") from error
    names = [line for line in lines if line]
    again = twice(names)
    if again is not None or not names:
        what = "is empty" if again is None else f"names '{again}' twice; remove one of the lines"
        raise UserError(f"the list {path} {what}")
    outside = next((name for name in names if name.startswith("/") or ".." in name.split("/")), None)
    if outside is not None:
        raise UserError(f"the list {path} names '{outside}', which lies outside of the set")
    return names


def read_objects(source: Source, index: int, height: int, width: int, *, masks: bool = False) -> Objects:
    """Return the objects of an image of that size. Raises UserError if their annotation states another."""
    objects = source.objects(index, masks=masks)
    if objects.size is not None:
        refuse_size(source, index, "the annotation", objects.size, (height, width))
    return objects


def refuse_size(source: Source, index: int, what: str, stated: Sequence[int], size: tuple[int, int]) -> None:
    """Raise UserError if `what` belongs to an image of another height and width than the one that is read."""
    if tuple(stated) == size:
        return
    hint = ("; the other of orientation: apply and ignore, in the card, may be right" if tuple(stated) == size[::-1]
            else "")
    raise UserError(f"data '{source.name}', split '{source.split}': {what} of '{source.key(index)}' is {stated[0]} x "
                    f"{stated[1]}, but the image {size[0]} x {size[1]}{hint}")
