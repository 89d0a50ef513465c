"""Photographs with a class for every pixel, in the folders of PASCAL VOC 2012 and Cityscapes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from unlabeled.config.card import Card, VocMasks
from unlabeled.data.sources.base import Source
from unlabeled.data.sources.decode import decode_numbers
from unlabeled.data.sources.dense.annotations import read_names, refuse_size
from unlabeled.data.sources.fingerprint import Names
from unlabeled.data.sources.folder import FolderSource
from unlabeled.errors import UserError

IGNORED = 255  # value of pixels that are not counted, in masks and in the files of both sets

VOC = ("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
       "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
       "tvmonitor")  # fmt: skip

# the classes that are evaluated, by their number in the files *_labelIds.png; the other numbers are ignored
CITYSCAPES = {7: "road", 8: "sidewalk", 11: "building", 12: "wall", 13: "fence", 17: "pole", 19: "traffic light",
              20: "traffic sign", 21: "vegetation", 22: "terrain", 23: "sky", 24: "person", 25: "rider", 26: "car",
              27: "truck", 28: "bus", 31: "train", 32: "motorcycle", 33: "bicycle"}  # fmt: skip
_CITYSCAPES_IDS = 34

_UNKNOWN = 254  # in the table of numbers


def read_mask(source: Source, index: int, height: int, width: int) -> np.ndarray:
    """Return the mask of an image of that size, uint8 [H, W]. Raises UserError if it has another."""
    mask = source.mask(index)
    refuse_size(source, index, "the mask", mask.shape, (height, width))
    return mask


class MaskedFolder(FolderSource):
    """Image files and, for each, a PNG whose values are numbers of classes; keys are the images' paths.

    numbers: value in the files -> class, or IGNORED; other values are refused when they are met.
    """

    def __init__(self, name: str, split: str, folder: Path, paths: Sequence[tuple[str, str]], classes: Sequence[str],
                 numbers: Mapping[int, int]) -> None:
        super().__init__(name, split, folder, [image for image, _ in paths])
        self.masks = Names(mask for _, mask in paths)
        self.mask_classes = list(classes)
        self._table = np.full(256, _UNKNOWN, np.uint8)
        for number, each in numbers.items():
            self._table[number] = each
        missing = [mask for _, mask in paths if not os.path.isfile(folder / mask)]
        if missing:
            raise UserError(f"data card '{name}', split '{split}': {len(missing)} of {len(paths)} masks are missing in "
                            f"{folder}, the first: {missing[0]}")

    def mask(self, index: int) -> np.ndarray:
        """Return the class of every pixel, uint8 [H, W].

        Raises UserError for a damaged mask, one that is no PNG of a number per pixel, or an unknown number.
        """
        path = self.folder / self.masks[index]
        try:
            values = decode_numbers(path.read_bytes(), self.pixels)
        except OSError as error:
            raise UserError(f"mask {path} cannot be read: {error.strerror or error}") from error
        except ValueError as error:
            raise UserError(f"mask {path} cannot be read: {error}") from error
        mask = self._table[values]
        if bool((mask == _UNKNOWN).any()):
            number = int(values[mask == _UNKNOWN][0])
            assert self.mask_classes is not None
            raise UserError(f"mask {path} holds the number {number}, which is none of the {len(self.mask_classes)} "
                            f"classes of data card '{self.name}'")
        return mask


def open_voc(card: Card, split: str, root: str | None) -> Source:
    """Open ROOT/JPEGImages/ID.jpg and ROOT/MASKS/ID.png for the IDs of ROOT/ImageSets/Segmentation/PATH.txt.

    Raises UserError if a file is missing.
    """
    rule, folder = card.source, card.folder(root)
    assert isinstance(rule, VocMasks)
    listing = folder / "ImageSets" / "Segmentation" / f"{card.splits[split].path or split}.txt"
    if not listing.is_file():
        raise UserError(f"data card '{card.name}', split '{split}': no file {listing}; give the folder that holds "
                        "JPEGImages and ImageSets (VOCdevkit/VOC2012) with root=FOLDER")
    names = read_names(listing)
    paths = [(f"JPEGImages/{name}.jpg", f"{rule.masks}/{name}.png") for name in names]
    return MaskedFolder(card.name, split, folder, paths, VOC, {n: n for n in range(len(VOC))} | {IGNORED: IGNORED})


def open_cityscapes(card: Card, split: str, root: str | None) -> Source:
    """Open ROOT/leftImg8bit/PATH/CITY/X_leftImg8bit.png and ROOT/gtFine/PATH/CITY/X_gtFine_labelIds.png, sorted.

    Raises UserError if a folder or a file is missing.
    """
    folder, part = card.folder(root), card.splits[split].path or split
    images = folder / "leftImg8bit" / part
    ending = "_leftImg8bit.png"
    names = sorted(path.relative_to(images).as_posix() for path in images.glob(f"*/*{ending}"))
    if not names:
        raise UserError(f"data card '{card.name}', split '{split}': no files {images}/CITY/*{ending}; give the folder "
                        "that holds leftImg8bit and gtFine with root=FOLDER")
    paths = [(f"leftImg8bit/{part}/{name}", f"gtFine/{part}/{name.removesuffix(ending)}_gtFine_labelIds.png")
             for name in names]
    places = {number: place for place, number in enumerate(CITYSCAPES)}
    numbers = {n: places.get(n, IGNORED) for n in (*range(_CITYSCAPES_IDS), IGNORED)}
    return MaskedFolder(card.name, split, folder, paths, list(CITYSCAPES.values()), numbers)
