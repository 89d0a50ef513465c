"""Photographs with boxes around objects, in the folders of PASCAL VOC and COCO; of COCO's with their masks too."""

from __future__ import annotations

import json
import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from unlabeled.config.card import Card
from unlabeled.data.base import Names, Objects, Source
from unlabeled.data.folder import FolderSource
from unlabeled.errors import UserError

_EDGES = ("xmin", "ymin", "xmax", "ymax")
_SMALLEST = 1e-5  # side of a box, pixels; smaller ones are no boxes (detectron2's threshold)


@dataclass
class Found:
    """What the annotations say of one image: its path, height and width, and its objects, a list per property."""

    path: str
    size: tuple[float, float]
    boxes: list[list[float]] = field(default_factory=list)
    kinds: list[int] = field(default_factory=list)
    areas: list[float] = field(default_factory=list)
    crowd: list[bool] = field(default_factory=list)
    difficult: list[bool] = field(default_factory=list)
    shapes: list[Any] = field(default_factory=list)

    def add(self, box: Sequence[float], kind: int, area: float | None = None, *, crowd: bool = False,
            difficult: bool = False, shape: Any = None) -> bool:
        """Add an object, its box cut at the image's border; return whether anything was left of it."""
        height, width = self.size
        left, right = (min(max(x, 0.0), width) for x in (box[0], box[2]))
        top, bottom = (min(max(y, 0.0), height) for y in (box[1], box[3]))
        if not (right - left > _SMALLEST and bottom - top > _SMALLEST):
            return False
        self.boxes.append([left, top, right, bottom])
        self.kinds.append(kind)
        self.areas.append((right - left) * (bottom - top) if area is None else area)
        self.crowd.append(crowd)
        self.difficult.append(difficult)
        self.shapes.append(shape)
        return True


class BoxedFolder(FolderSource):
    """Image files with their objects; keys are paths. dropped: objects left out, whose boxes enclose nothing.

    The annotations are kept as text, in one buffer for all images: as objects those of COCO take gigabytes in every
    loader process. Raises UserError if images are missing.
    """

    def __init__(self, name: str, split: str, folder: Path, found: Sequence[Found], classes: Sequence[str],
                 dropped: int, *, shapes: bool) -> None:
        super().__init__(name, split, folder, [each.path for each in found])
        self.object_classes, self.dropped, self.has_shapes = list(classes), dropped, shapes
        self._refuse_missing()
        self._filled = np.array([not all(each.crowd) for each in found], bool)
        self._records = Names(json.dumps(vars(each)) for each in found)

    def _refuse_missing(self) -> None:
        there: dict[str, set[str]] = {}
        missing = []
        for i in range(len(self.paths)):
            parent, _, name = self.paths[i].rpartition("/")
            if parent not in there:
                beside = self.folder / parent
                there[parent] = set(os.listdir(beside)) if beside.is_dir() else set()
            if name not in there[parent]:
                missing.append(self.paths[i])
        if missing:
            raise UserError(f"data card '{self.name}', split '{self.split}': {len(missing)} of {len(self.paths)} "
                            f"annotated images are missing in {self.folder}, the first: {missing[0]}")

    def with_objects(self) -> np.ndarray:
        """Return the images, int64, that hold an object other than a crowd."""
        return np.flatnonzero(self._filled)

    def objects(self, index: int, *, masks: bool = False) -> Objects:
        """Return the objects of an image. Raises UserError for masks that cannot be read."""
        found = Found(**json.loads(self._records[index]))
        return Objects(
            np.array(found.boxes, np.float32).reshape(-1, 4), np.array(found.kinds, np.int64),
            np.array(found.areas, np.float32), np.array(found.crowd, bool), np.array(found.difficult, bool),
            self._masks(found) if masks else None,
        )

    def _masks(self, found: Found) -> np.ndarray:
        from pycocotools import mask

        height, width = (int(side) for side in found.size)
        decoded = np.zeros((len(found.shapes), height, width), bool)
        for i, shape in enumerate(found.shapes):
            try:
                if isinstance(shape, list):  # polygons, which together are the object
                    shape = mask.merge(mask.frPyObjects(shape, height, width))
                elif isinstance(shape["counts"], list):
                    shape = mask.frPyObjects(shape, height, width)
                decoded[i] = mask.decode(shape)
            except Exception as error:  # the library raises almost anything
                raise UserError(f"data card '{self.name}': a mask of {found.path} cannot be read: {error}") from error
        return decoded


def open_voc(card: Card, split: str, root: str | None) -> Source:
    """Open ROOT/YEAR/JPEGImages and ROOT/YEAR/Annotations for the names in ROOT/YEAR/ImageSets/Main/LIST.txt.

    Boxes are those of the files, whose first pixel is 1 and whose last one is inside, as edges. Raises UserError if a
    file is missing or damaged, or for an object of a class that the card does not name.
    """
    folder = card.folder(root)
    if card.classes is None:
        raise UserError(f"data card '{card.name}': source kind voc-boxes needs 'classes', the names in the annotations")
    numbers = {name: number for number, name in enumerate(card.classes)}
    found: list[Found] = []
    dropped = 0
    for part in (card.splits[split].path or split).split("+"):
        year, _, listing = part.strip().partition("/")
        names = folder / year / "ImageSets" / "Main" / f"{listing}.txt"
        if not names.is_file():
            raise UserError(f"data card '{card.name}', split '{split}': no file {names}; give the folder that holds "
                            "VOC2007 and the like with root=FOLDER (VOCdevkit)")
        for line in names.read_text("utf-8", "surrogateescape").splitlines():
            if line.strip():
                each, lost = _read_voc(card.name, folder, year, line.split()[0], numbers)
                found.append(each)
                dropped += lost
    return BoxedFolder(card.name, split, folder, found, card.classes, dropped, shapes=False)


def _read_voc(card: str, folder: Path, year: str, name: str, numbers: dict[str, int]) -> tuple[Found, int]:
    """Return the objects of one annotation file, and how many were left out."""
    path = folder / year / "Annotations" / f"{name}.xml"
    try:
        tree = ElementTree.parse(path).getroot()
        size = float(_text(tree, "size/height")), float(_text(tree, "size/width"))
        found, lost = Found(f"{year}/JPEGImages/{name}.jpg", size), 0
        for each in tree.iter("object"):
            kind = _text(each, "name")
            if kind not in numbers:
                raise UserError(f"{path}: object of class '{kind}', which data card '{card}' does not name "
                                f"({len(numbers)} classes: {', '.join([*numbers][:5])}, ...)")
            left, top, right, bottom = (float(_text(each, f"bndbox/{edge}")) for edge in _EDGES)
            difficult = (each.findtext("difficult") or "0").strip() == "1"
            lost += not found.add([left - 1, top - 1, right, bottom], numbers[kind], difficult=difficult)
    except OSError as error:
        raise UserError(f"data card '{card}': annotation {path} cannot be read: {error.strerror or error}") from error
    except (ElementTree.ParseError, ValueError) as error:
        raise UserError(f"data card '{card}': annotation {path} is damaged: {error}") from error
    return found, lost


def _text(tree: ElementTree.Element, path: str) -> str:
    text = tree.findtext(path)
    if text is None:
        raise ValueError(f"no {path}")
    return text.strip()


def open_coco(card: Card, split: str, root: str | None) -> Source:
    """Open the images in ROOT/PATH with the objects in ROOT/annotations/instances_PATH.json.

    Classes are those of the card, else the file's categories by their numbers. Raises UserError if a file is missing or
    damaged, or for a category that the card does not name.
    """
    folder, part = card.folder(root), card.splits[split].path or split
    path = folder / "annotations" / f"instances_{part}.json"
    if not path.is_file():
        raise UserError(f"data card '{card.name}', split '{split}': no file {path}; give the folder that holds "
                        f"annotations and {part} with root=FOLDER")
    try:
        content = json.loads(path.read_bytes())
        names = {each["id"]: each["name"] for each in sorted(content["categories"], key=lambda each: each["id"])}
        classes = card.classes or list(names.values())
        unknown = [name for name in names.values() if name not in classes]
        if unknown:
            raise UserError(f"{path}: category '{unknown[0]}', which data card '{card.name}' does not name "
                            f"({len(classes)} classes: {', '.join(classes[:5])}, ...)")
        numbers = {number: classes.index(name) for number, name in names.items()}
        images = {each["id"]: Found(f"{part}/{each['file_name']}", (each["height"], each["width"]))
                  for each in sorted(content["images"], key=lambda each: each["id"])}
        dropped = sum(not _add_coco(images[each["image_id"]], each, numbers) for each in content["annotations"])
    except (KeyError, TypeError, ValueError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"data card '{card.name}': {path} is damaged, or no file of instances: {what}") from error
    return BoxedFolder(card.name, split, folder, list(images.values()), classes, dropped, shapes=True)


def _add_coco(found: Found, each: dict[str, Any], numbers: dict[int, int]) -> bool:
    """Add one annotation; return whether it was kept: its box encloses something, and so does its mask."""
    left, top, width, height = each["bbox"]
    shape = each["segmentation"]
    if isinstance(shape, list):
        shape = [polygon for polygon in shape if len(polygon) >= 6 and len(polygon) % 2 == 0]
        if not shape:
            return False
    return found.add([left, top, left + width, top + height], numbers[each["category_id"]], each.get("area"),
                     crowd=bool(each.get("iscrowd", 0)), shape=shape)
