"""Published reinforced sets (apple/ml-dr) as a store that streams read.

A record knows its image by nothing but its number in the sorted list of files. So the numbers are compared with the
card, stored crops with the sizes of images, and stored classes with labels, before anything is written.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from unlabeled.augment.replay.entries import OPERATIONS, RANDAUGMENT_INTERPOLATION, fields
from unlabeled.config.augment import PaddedCrop, StorableCrop, StoredResizedCrop
from unlabeled.config.passes.convert_ml_dr import MlDrFiles
from unlabeled.config.passes.reinforce import KIND
from unlabeled.data.batch import Batch
from unlabeled.data.records.classes import Classes
from unlabeled.data.records.store import Store
from unlabeled.data.sources.base import CorruptSample, Source
from unlabeled.engine.passes.run import Work, run_pass
from unlabeled.errors import UserError
from unlabeled.ops.distributed import on_rank0
from unlabeled.passes.ml_dr_format import decompress, read_plain, row_of, transforms_of
from unlabeled.passes.published import refuse_other_labels, spread

CONFIG = "config.pth.tar"
_LISTED = 5
_PILS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}  # PIL's numbers of filters
_BORDERS: dict[Any, Literal["black", "reflect"]] = {"constant": "black", "reflect": "reflect"}
# options that a replay has in one way
_FIXED: dict[tuple[str, str], Any] = {
    ("rand_augment", "interpolation"): RANDAUGMENT_INTERPOLATION, ("rand_augment", "fill"): 0,
    ("rand_augment", "num_ops"): OPERATIONS, ("resize", "interpolation"): "bilinear", ("random_crop", "fill"): 0,
    ("random_erase", "value"): 0,
}


@dataclass(frozen=True)
class Published:
    """A folder of records, and how its views were made: transforms by name with their options, in order."""

    folder: Path
    transforms: dict[str, Any]
    crop: StorableCrop
    classes: int

    @property
    def mix(self) -> bool:
        """Return whether entries may be mixed with a second image."""
        return bool({"mixup", "cutmix"} & set(self.transforms))

    def row(self, place: int) -> dict[str, np.ndarray]:
        """Return the fields of all entries of an image, [entries, ...]. Raises UserError for what cannot be read."""
        file = self.folder / f"{place}.pth.tar"
        content = read_plain(file)
        try:
            index, entries = content
            if index != place:
                raise ValueError(f"it says that it is of image {index}")
            rows = [self._entry(entry) for entry in entries]
            return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise UserError(f"{file} is no record of stored entries: {error}") from error

    def _entry(self, entry: dict[str, Any]) -> dict[str, np.ndarray]:
        row = row_of(decompress(entry["params"], list(self.transforms)), self.crop.size, self.mix)
        prob, classes = (np.array(values) for values in entry["prob"])
        if classes.min() < 0 or classes.max() >= self.classes:
            raise ValueError(f"its classes reach {classes.max()}, but there are {self.classes}")
        order = np.argsort(-prob, kind="stable")  # the published order is arbitrary
        return {**row, "class": classes[order].astype(np.uint16), "prob": prob[order].astype(np.float16)}


@dataclass(frozen=True)
class _RecordMaker:
    """Reads the records of samples; of one form all."""

    published: Published
    entries: int
    topk: int

    def make(self, unit: np.ndarray) -> Batch:
        rows = [self.published.row(place) for place in unit.tolist()]
        for place, row in zip(unit.tolist(), rows, strict=True):
            if row["class"].shape != (self.entries, self.topk):
                raise UserError(f"{self.published.folder / f'{place}.pth.tar'} has {len(row['class'])} entries of "
                                f"{row['class'].shape[1]} classes, but others have {self.entries} of {self.topk}")
        stacked = {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}
        return Batch([], [], torch.from_numpy(unit), records={KIND: stacked})


def convert(folder: Path, source: Source, settings: MlDrFiles, device: torch.device) -> Store | None:
    """Write the records of a published set, of exactly the images of `source`, into `settings.out`.

    Returns None while other parts are missing. Raises UserError for records that are missing, damaged or of other
    images, and as `run_pass` does.
    """
    published = open_published(folder, source, settings)
    on_rank0(lambda: refuse_other_images(published, source))
    entries, topk = published.row(0)["class"].shape
    about = {**Classes(str(folder), published.classes, None).about(), "entries": entries, "topk": topk,
             "mix": published.mix, "crop": published.crop.model_dump(), "published": "ml-dr",
             "randaugment_interpolation": RANDAUGMENT_INTERPOLATION, "transforms": list(published.transforms)}
    work = Work(KIND, fields(entries, topk, published.mix), about, _RecordMaker(published, entries, topk),
                lambda batch: batch.records[KIND])
    return run_pass(work, source, Path(settings.out).expanduser(), part=settings.share, batch=settings.batch,
                    workers=settings.workers, device=device, max_corrupt=settings.max_corrupt)


def open_published(folder: Path, source: Source, settings: MlDrFiles) -> Published:
    """Read how a published set was made. Raises UserError if nobody says it, or numbers of images differ."""
    if not (folder / CONFIG).exists():
        raise UserError(f"{folder} holds no {CONFIG}, which says how its views were made; name the folder that holds "
                        "it beside <index>.pth.tar")
    try:
        transforms = transforms_of(read_plain(folder / CONFIG))
        crop = _crop(transforms, settings.size)
    except ValueError as error:
        raise UserError(f"{folder / CONFIG}: {error}") from error
    classes = len(source.classes) if source.classes else settings.classes
    if classes is None:
        raise UserError(f"data card '{source.name}' names no classes; give their number with classes=N")
    numbers = {int(file.name.split(".")[0]) for file in folder.glob("*.pth.tar") if file.name.split(".")[0].isdigit()}
    missing = sorted(set(range(len(source))) - numbers)
    here = f"split '{source.split}' of data card '{source.name}' has {len(source)} images"
    if missing:
        shown = ", ".join(map(str, missing[:_LISTED])) + (", ..." if len(missing) > _LISTED else "")
        raise UserError(f"{folder} lacks {len(missing)} records ({shown}): {here}, whose places are the records' names")
    if len(numbers) > len(source):
        raise UserError(f"{folder} holds {len(numbers)} records, but {here}: they are of another set")
    return Published(folder, transforms, crop, classes)


def _crop(transforms: dict[str, Any], size: int | None) -> StorableCrop:
    """Return the crop of a configuration. Raises ValueError for one that cannot be replayed."""
    kinds = [name for name in ("random_resized_crop", "random_crop") if name in transforms]
    if len(kinds) != 1:
        raise ValueError("it names neither random_resized_crop nor random_crop, of which stored views are made"
                         if not kinds else f"it names {' and '.join(kinds)}, but stored views are of one crop")
    (kind,) = kinds
    before = ("resize", "center_crop") if kind == "random_resized_crop" else ("center_crop",)
    other = [name for name in before if name in transforms]
    if other:
        raise ValueError(f"it names {' and '.join(other)} before {kind}, which a replay cannot show")
    for (name, option), allowed in _FIXED.items():
        stated = _stated(transforms.get(name), option)
        if stated is not None and stated != allowed:
            raise ValueError(f"{name} has {option} {stated}, but a replay has {allowed}")
    options = transforms[kind]
    side = size or _number(options, "size")
    if kind == "random_resized_crop":
        stated = _stated(options, "interpolation")
        if stated not in (None, "bilinear", "bicubic"):
            raise ValueError(f"random_resized_crop has interpolation {stated}; replayed are bilinear and bicubic")
        return StoredResizedCrop(size=side, interpolation=stated or "bilinear")
    resize = transforms.get("resize")
    border = _stated(options, "padding_mode") or "constant"
    if border not in _BORDERS:
        raise ValueError(f"random_crop has padding_mode {border}; replayed are {' and '.join(_BORDERS)}")
    return PaddedCrop(kind="padded", size=side, pad=_number(options, "padding", 0), border=_BORDERS[border],
                      resize=None if resize is None else _number(resize, "size"))


def _stated(options: Any, key: str) -> Any:
    """Return an option of a transform, interpolations by name; None if it is not given."""
    value = options.get(key) if isinstance(options, dict) else None
    if key == "interpolation":
        if isinstance(value, int) and not isinstance(value, bool):
            return _PILS.get(value, value)
        return value.lower() if isinstance(value, str) else value
    if isinstance(value, list | tuple) and value and len(set(value)) == 1:
        value = value[0]
    return value


def _number(options: Any, key: str, otherwise: int | None = None) -> int:
    """Return an option of a transform: a number, or several equal ones."""
    value = options.get(key, otherwise) if isinstance(options, dict) else options
    if isinstance(value, list | tuple) and len(set(value)) == 1:
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"'{key}' is {value!r}, no whole number; give the side of the views with size=PIXELS")
    return value


def refuse_other_images(published: Published, source: Source) -> None:
    """Print how often stored classes and labels agree. Raises UserError if records are those of other images."""
    places = spread(source)
    said = []
    for place in places.tolist():
        row = published.row(place)
        _refuse_crop_outside(published, source, place, row["crop"])
        said.append(np.bincount(row["class"].ravel(), row["prob"].ravel().astype(float), published.classes).argmax())
    refuse_other_labels(published.folder, "stored classes", source, places, np.array(said), published.classes)


def _refuse_crop_outside(published: Published, source: Source, place: int, crop: np.ndarray) -> None:
    try:
        height, width = source.image(place).shape[:2]
    except CorruptSample:
        return
    if isinstance(published.crop, PaddedCrop):
        around = 2 * published.crop.pad
        height, width = (published.crop.resize or height) + around, (published.crop.resize or width) + around
    bottom, right = (crop[:, :2].astype(int) + crop[:, 2:]).max(0)
    if bottom > height or right > width:
        raise UserError(f"{published.folder}: a crop of record {place} reaches to ({bottom}, {right}), but image "
                        f"'{source.key(place)}' has {height} x {width} pixels: records are of other images, of files "
                        "in another order, or of images that were resized since")
