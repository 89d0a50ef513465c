"""Photographs with boxes around objects, and the folders of PASCAL VOC."""

from __future__ import annotations

import json
import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unlabeled.config.card import Card
from unlabeled.data.sources.base import Source
from unlabeled.data.sources.dense.annotations import ImageObjects, read_names, stated_size, twice
from unlabeled.data.sources.fingerprint import Names, digest
from unlabeled.data.sources.folder import FolderSource
from unlabeled.data.sources.truth import Objects
from unlabeled.errors import UserError
from unlabeled.ops.boxes import Edges

_EDGES = ("xmin", "ymin", "xmax", "ymax")


class BoxedFolder(FolderSource):
    """Image files with their objects; keys are paths. dropped: objects left out, whose boxes enclose nothing.

    The annotations are kept as text, in one buffer for all images: as objects those of COCO take gigabytes in every
    loader process. lacks_shape: which object has no mask; None if all have. Raises UserError if images are missing.
    """

    def __init__(self, name: str, split: str, folder: Path, images: Sequence[ImageObjects], classes: Sequence[str],
                 dropped: int, *, lacks_shape: str | None) -> None:
        super().__init__(name, split, folder, [image.path for image in images])
        self.object_classes, self.dropped = list(classes), dropped
        self.has_shapes, self.lacks_shape = lacks_shape is None, lacks_shape or ""
        self._refuse_missing()
        self._filled = np.array([not all(image.crowd) for image in images], bool)
        self._records = Names(json.dumps(vars(image)) for image in images)

    def _refuse_missing(self) -> None:
        names: dict[str, set[str]] = {}
        missing = []
        for i in range(len(self.paths)):
            parent, _, name = self.paths[i].rpartition("/")
            if parent not in names:
                beside = self.folder / parent
                names[parent] = set(os.listdir(beside)) if beside.is_dir() else set()
            if name not in names[parent]:
                missing.append(self.paths[i])
        if missing:
            raise UserError(f"data card '{self.name}', split '{self.split}': {len(missing)} of {len(self.paths)} "
                            f"annotated images are missing in {self.folder}, the first: {missing[0]}")

    def fingerprint(self) -> dict[str, Any]:
        """Return that of the images, with a digest of their objects."""
        return {**super().fingerprint(), "objects": digest(self._records.text)}

    def with_objects(self) -> np.ndarray:
        """Return the images, int64, that hold an object other than a crowd."""
        return np.flatnonzero(self._filled)

    def objects(self, index: int, *, masks: bool = False) -> Objects:
        """Return the objects of an image. Raises UserError for masks that cannot be read."""
        image = ImageObjects(**json.loads(self._records[index]))
        return Objects(
            np.array(image.boxes, np.float32).reshape(-1, 4), np.array(image.kinds, np.int64),
            np.array(image.areas, np.float32), np.array(image.crowd, bool), np.array(image.difficult, bool),
            self._masks(image) if masks else None, (image.size[0], image.size[1]),
        )

    def _masks(self, image: ImageObjects) -> np.ndarray:
        from pycocotools import mask

        height, width = image.size
        decoded = np.zeros((len(image.shapes), height, width), bool)
        for i, shape in enumerate(image.shapes):
            try:
                if isinstance(shape, list):  # polygons, which together are the object
                    shape = mask.merge(mask.frPyObjects(shape, height, width))
                elif isinstance(shape["counts"], list):
                    shape = mask.frPyObjects(shape, height, width)
                decoded[i] = mask.decode(shape)
            except Exception as error:  # the library raises almost anything
                raise UserError(f"data card '{self.name}': a mask of an object in {self.folder / image.path} cannot "
                                f"be read: {error}") from error
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
    images: list[ImageObjects] = []
    dropped = 0
    for part in (card.splits[split].path or split).split("+"):
        year, _, listing = part.strip().partition("/")
        names = folder / year / "ImageSets" / "Main" / f"{listing}.txt"
        if not names.is_file():
            raise UserError(f"data card '{card.name}', split '{split}': no file {names}; give the folder that holds "
                            "VOC2007 and the like with root=FOLDER (VOCdevkit)")
        for line in read_names(names):
            image, lost = _read_voc(card.name, folder, year, line.split()[0], numbers)
            images.append(image)
            dropped += lost
    again = twice(image.path for image in images)
    if again is not None:
        raise UserError(f"data card '{card.name}', split '{split}': its lists name {again} twice; the last of them is "
                        f"{names}")
    return BoxedFolder(card.name, split, folder, images, card.classes, dropped,
                       lacks_shape="files of VOC hold boxes only")


def _read_voc(card: str, folder: Path, year: str, name: str, numbers: dict[str, int]) -> tuple[ImageObjects, int]:
    """Return the objects of one annotation file, and how many were left out."""
    path = folder / year / "Annotations" / f"{name}.xml"
    try:
        tree = ElementTree.parse(path).getroot()
        size = stated_size(float(_text(tree, "size/height")), float(_text(tree, "size/width")))
        image, dropped = ImageObjects(f"{year}/JPEGImages/{name}.jpg", size), 0
        for entry in tree.iter("object"):
            kind = _text(entry, "name")
            if kind not in numbers:
                raise UserError(f"{path}: object of class '{kind:.60}', which data card '{card}' does not name "
                                f"({len(numbers)} classes: {', '.join([*numbers][:5])}, ...)")
            left, top, right, bottom = (float(_text(entry, f"bndbox/{edge}")) for edge in _EDGES)
            difficult = (entry.findtext("difficult") or "0").strip()
            if difficult not in ("0", "1"):
                raise ValueError(f"difficult is '{difficult:.60}'; allowed: 0, 1")
            dropped += not image.add(Edges(left - 1, top - 1, right, bottom), numbers[kind], difficult=difficult == "1")
    except OSError as error:
        raise UserError(f"data card '{card}': annotation {path} cannot be read: {error.strerror or error}") from error
    except (ElementTree.ParseError, ValueError, LookupError, RecursionError) as error:
        raise UserError(f"data card '{card}': annotation {path} is damaged: {error}") from error
    return image, dropped


def _text(tree: ElementTree.Element, path: str) -> str:
    text = tree.findtext(path)
    if text is None:
        raise ValueError(f"no {path}")
    return text.strip()
