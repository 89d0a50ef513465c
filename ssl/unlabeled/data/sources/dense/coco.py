"""Photographs with boxes and masks of objects in COCO's files."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from unlabeled.config.card import Card
from unlabeled.data.sources.base import Source
from unlabeled.data.sources.dense.annotations import ImageObjects, stated_size, twice
from unlabeled.data.sources.dense.boxes import BoxedFolder
from unlabeled.data.sources.files.reading import reading
from unlabeled.errors import UserError
from unlabeled.ops.boxes import Edges

_Id = int | str
_LARGEST = 1e12  # area, square pixels


def open_coco(card: Card, split: str, root: str | None) -> Source:
    """Open the images in ROOT/PATH with the objects in ROOT/annotations/instances_PATH.json.

    Classes are those of the card, else the file's categories by their numbers. Objects without a usable mask keep their
    boxes; the source says that masks are lacking. Raises UserError if a file is missing or damaged, or names an image
    or a category twice, or one that is not there, or a category that the card does not name.
    """
    folder, part = card.folder(root), card.splits[split].path or split
    path = folder / "annotations" / f"instances_{part}.json"
    if not path.is_file():
        raise UserError(f"data card '{card.name}', split '{split}': no file {path}; give the folder that holds "
                        f"annotations and {part} with root=FOLDER")
    notes = _Notes(card, path)
    numbers, classes = notes.categories()
    images = notes.images(part)
    dropped, lacks_shape = notes.add_to(images, numbers)
    return BoxedFolder(card.name, split, folder, list(images.values()), classes, dropped, lacks_shape=lacks_shape)


class _Notes:
    """One file of instances; what is wrong in it raises UserError with the file and the entry."""

    def __init__(self, card: Card, path: Path) -> None:
        self.card, self.path = card, path
        with reading(path, "damaged, or no file of instances"):
            self.content = json.loads(path.read_bytes())

    def categories(self) -> tuple[dict[_Id, int], list[str]]:
        """Return the place of the class of every category, by its number, and the names of the classes."""
        names: dict[_Id, str] = {}
        for entry in self._entries("categories"):
            try:
                number, name = _id(entry["id"]), entry["name"]
                if not isinstance(name, str):
                    raise ValueError(f"its name is {name!r}")
            except (KeyError, TypeError, ValueError) as error:
                raise self._wrong(error, "category", entry) from error
            if number in names or name in names.values():
                raise UserError(f"{self.path}: category {number}, '{name}', comes twice; numbers and names must differ")
            names[number] = name
        names = {number: names[number] for number in self._sorted(names)}
        classes = self.card.classes or list(names.values())
        unknown = [name for name in names.values() if name not in classes]
        if unknown:
            raise UserError(f"{self.path}: category '{unknown[0]}', which data card '{self.card.name}' does not name "
                            f"({len(classes)} classes: {', '.join(classes[:5])}, ...)")
        return {number: classes.index(name) for number, name in names.items()}, classes

    def images(self, part: str) -> dict[_Id, ImageObjects]:
        """Return the images in the order of their numbers, still without objects."""
        by_id: dict[_Id, ImageObjects] = {}
        for entry in self._entries("images"):
            try:
                number, name = _id(entry["id"]), entry["file_name"]
                if not isinstance(name, str) or not os.fsencode(name):
                    raise ValueError(f"its file_name is {name!r}")
                size = stated_size(entry["height"], entry["width"])
            except (KeyError, TypeError, ValueError) as error:
                raise self._wrong(error, "image", entry) from error
            if number in by_id:
                raise UserError(f"{self.path}: images {by_id[number].path} and {part}/{name} have the same id "
                                f"{number}; every image needs its own")
            by_id[number] = ImageObjects(f"{part}/{name}", size)
        again = twice(os.path.normpath(entry.path) for entry in by_id.values())
        if again is not None:
            raise UserError(f"{self.path}: two images are {again}; join their annotations under one id")
        return {number: by_id[number] for number in self._sorted(by_id)}

    def add_to(self, images: dict[_Id, ImageObjects], numbers: dict[_Id, int]) -> tuple[int, str | None]:
        """Add the annotations to their images.

        Returns how many enclose nothing and are dropped, and the first one without a usable mask, None if all have one.
        """
        dropped, lacking = 0, None
        for entry in self._entries("annotations"):
            try:
                image, kind = images.get(_id(entry["image_id"])), numbers.get(_id(entry["category_id"]))
                if image is None or kind is None:
                    what = f"image {entry['image_id']!r}" if image is None else f"category {entry['category_id']!r}"
                    raise ValueError(f"it belongs to {what}, which the file does not hold")
                shape, reason = _shape(entry.get("segmentation"), image.size)
                has_area = shape != [] and image.add(_edges(entry["bbox"]), kind, _area(entry.get("area")),
                                                     crowd=_crowd(entry.get("iscrowd")), shape=shape)
            except (KeyError, TypeError, ValueError, OverflowError) as error:
                raise self._wrong(error, "annotation", entry) from error
            dropped += not has_area
            if has_area and shape is None and lacking is None:
                lacking = f"{self.path}, annotation {entry.get('id')!r}: {reason}"
        return dropped, lacking

    def _entries(self, kind: str) -> list[Any]:
        entries = self.content.get(kind) if isinstance(self.content, dict) else None
        if not isinstance(entries, list):
            raise self._wrong(ValueError(f"no list '{kind}'"))
        return entries

    def _sorted(self, ids: Any) -> list[_Id]:
        if len({type(each) for each in ids}) > 1:
            raise self._wrong(ValueError("ids are numbers in some places and text in others"))
        return sorted(ids)

    def _wrong(self, error: Exception, kind: str = "", entry: Any = None) -> UserError:
        what = f"no {error}" if isinstance(error, KeyError) else f"{error!s:.300}"
        name = entry.get("id") if isinstance(entry, dict) else entry
        where = f" ({kind} {name!r:.60})" if kind else ""
        return UserError(f"data card '{self.card.name}': {self.path} is damaged, or no file of instances: "
                         f"{what}{where}")


def _id(value: Any) -> _Id:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"the id {value!r}")
    return value


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _edges(box: Any) -> Edges[float]:
    if not isinstance(box, list) or len(box) != 4 or not all(_number(edge) for edge in box):
        raise ValueError(f"the bbox {box!r}, which should be [left, top, width, height]")
    left, top, width, height = box
    return Edges(left, top, left + width, top + height)


def _area(value: Any) -> float | None:
    if value is not None and not (_number(value) and 0 <= value <= _LARGEST):
        raise ValueError(f"the area {value!r}")
    return value


def _crowd(value: Any) -> bool:
    if value not in (None, 0, 1):
        raise ValueError(f"iscrowd {value!r} (allowed: 0, 1)")
    return bool(value)


def _shape(value: Any, size: tuple[int, int]) -> tuple[Any, str]:
    """Return a mask as pycocotools takes it, [] if it encloses nothing, or None and the reason if there is none."""
    if isinstance(value, dict):
        return _runs(value, size)
    if not isinstance(value, list) or not any(value):
        return None, "no segmentation"
    if not all(isinstance(polygon, list) for polygon in value):
        return None, "its segmentation is no list of polygons"
    reach = 2 * max(size)  # farther ones are in other units, and filling them would take memory without end
    for polygon in value:
        try:
            if polygon and not (math.isfinite(sum(polygon)) and -reach <= min(polygon) and max(polygon) <= 2 * reach):
                return None, "a polygon that lies outside of its image"
        except (TypeError, OverflowError):
            return None, "a polygon that holds other things than numbers"
    return [polygon for polygon in value if len(polygon) >= 6 and len(polygon) % 2 == 0], ""


def _runs(value: dict[str, Any], size: tuple[int, int]) -> tuple[Any, str]:
    counts = value.get("counts")
    if not counts or not isinstance(counts, list | str):
        return None, "no run lengths in its segmentation"
    if value.get("size") != list(size):
        return None, f"its mask is for an image of {value.get('size')}, which is {list(size)}"
    if isinstance(counts, list) and (not all(type(run) is int and run >= 0 for run in counts)
                                     or sum(counts) != size[0] * size[1]):
        return None, "its run lengths do not fill the image"
    return {"size": list(size), "counts": counts}, ""
