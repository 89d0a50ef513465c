"""ReLabel's published label maps, one file per image, as a store (naver-ai/relabel_imagenet, arXiv 2101.05022)."""

from __future__ import annotations

import pickle
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor

from unlabeled.config.passes.convert_relabel import Orientation, RelabelFiles
from unlabeled.config.passes.shared import MOST_CLASSES
from unlabeled.data.batch import Batch
from unlabeled.data.records.classes import Classes
from unlabeled.data.records.labelmaps import KIND
from unlabeled.data.records.store import Store
from unlabeled.data.sources.base import CorruptSample, Source
from unlabeled.engine.launch import pick_precision
from unlabeled.engine.passes.run import Work, run_pass
from unlabeled.errors import UserError
from unlabeled.ops.distributed import on_rank0
from unlabeled.ops.targets.label_pooling import pool, whole
from unlabeled.passes.labelmaps import describe, fields_of, open_teacher
from unlabeled.passes.orientation import Trial, orientation_by_test
from unlabeled.passes.published import refuse_other_labels, spread

_TRIED = 100  # first images of which one must have a map
_LISTED = 3

Map = dict[str, Tensor]  # what a file holds: `logit` and `index`, [k, H, W] each, as its axes lie


class Files:
    """The maps of a folder, found by the keys of a split: CLASS/IMAGE.pt for CLASS/IMAGE.jpeg (a `loader.Maker`).

    turned: whether columns come first in the files. Raises UserError if the folder has no map of the first images.
    """

    def __init__(self, folder: Path, source: Source, classes: int) -> None:
        self.folder, self.source, self.classes, self.turned = folder, source, classes, False
        self.shape = self._first_shape()

    def read(self, place: int) -> Map:
        """Return the map of a sample. Raises CorruptSample for a file that is missing, damaged or of another kind."""
        key = self.source.key(place)
        file = self.folder / PurePosixPath(key).with_suffix(".pt")
        try:
            found = torch.load(file, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            raise CorruptSample(key, f"there is no {file}") from None
        except OSError as error:
            raise CorruptSample(key, f"{file}: {error.strerror or error}") from error
        except pickle.UnpicklingError as error:
            raise CorruptSample(key, f"{file} is damaged, or holds more than a tensor") from error
        except (RuntimeError, EOFError, ValueError, KeyError, AttributeError) as error:
            raise CorruptSample(key, f"{file} is damaged ({str(error).splitlines()[0][:80] if str(error) else 'short'})"
                                ) from error
        problem = self._problem(found)
        if problem:
            raise CorruptSample(key, f"{file} {problem}")
        return dict(zip(("logit", "index"), found.float(), strict=True))

    def _problem(self, found: object) -> str:
        if not isinstance(found, Tensor) or not found.is_floating_point() or found.ndim != 4 or len(found) != 2:
            shape = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            return f"holds {shape} and no floats [2, k, H, W]"
        expected = getattr(self, "shape", found.shape[1:])
        if found.shape[1:] != expected:
            return f"holds a map of {list(found.shape[1:])}, others {list(expected)}"
        if not bool(found.isfinite().all()):
            return "holds NaN or infinity"
        exact = round(2 / torch.finfo(found.dtype).eps)  # beyond it not every whole number is one of the type
        if self.classes - 1 > exact:
            kind = str(found.dtype).removeprefix("torch.")
            return (f"holds numbers of classes as {kind}, which are exact up to {exact} only, but there are "
                    f"{self.classes} classes")
        index = found[1]
        if bool(((index != index.round()) | (index < 0) | (index >= self.classes)).any()):
            return f"names classes outside of 0 to {self.classes - 1}"
        return ""

    def _first_shape(self) -> torch.Size:
        problems = []
        for place in range(min(_TRIED, len(self.source))):
            try:
                return self.read(place)["logit"].shape
            except CorruptSample as error:
                problems.append(error.reason)
        shown = "; ".join(problems[:_LISTED])
        raise UserError(f"{self.folder} holds no label map of the first {len(problems)} images of split "
                        f"'{self.source.split}' of data card '{self.source.name}': {shown}. Name the folder whose "
                        "CLASS/IMAGE.pt stand for the card's CLASS/IMAGE.jpeg")

    def make(self, unit: np.ndarray) -> Batch:
        """Return the maps, rows of the image first, of the samples at the places `unit`, int64 [b], that have one."""
        places: list[int] = []
        maps: list[Map] = []
        corrupt: list[str] = []
        for place in unit.tolist():
            try:
                maps.append(self.read(place))
                places.append(place)
            except CorruptSample as error:
                corrupt.append(error.key)
        rows = {name: torch.stack([one[name] for one in maps]) for name in ("logit", "index")} if maps else {}
        if self.turned:
            rows = {name: values.mT.contiguous() for name, values in rows.items()}
        return Batch([], [], torch.tensor(places, dtype=torch.int64), None, corrupt, {KIND: rows})


def convert(folder: Path, source: Source, settings: RelabelFiles, device: torch.device) -> Store | None:
    """Keep the maps of a folder in `settings.out`, found by the keys of `source`; None while other parts are missing.

    Raises UserError for a folder of other images or classes, an orientation that cannot be told, and as `run_pass`
    does; images without a map count as unreadable.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; name the one that holds CLASS/IMAGE.pt")
    classes = settings.classes or (None if source.classes is None else len(source.classes))
    if classes is None or classes > MOST_CLASSES:
        raise UserError(f"unlabeled convert: data card '{source.name}' names no classes, or more than {MOST_CLASSES}; "
                        "give classes=N, their number in the maps")
    files = Files(folder, source, classes)
    orientation = settings.orientation
    if orientation is None:
        orientation = on_rank0(lambda: _tested(files, source, settings, device))
    else:
        on_rank0(lambda: refuse_other_images(files, source))
    files.turned = orientation == "wh"
    k, height, width = files.shape
    shape = (k, width, height) if files.turned else (k, height, width)
    about = describe(Classes(str(folder), classes, None), shape, {
        "published": folder.name, "published_orientation": orientation})

    def compute(batch: Batch) -> dict[str, Tensor]:
        return batch.records[KIND]

    return run_pass(Work(KIND, fields_of(shape), about, files, compute), source, Path(settings.out).expanduser(),
                    part=settings.share, batch=settings.batch, workers=settings.workers, device=device,
                    max_corrupt=settings.max_corrupt)


def _tested(files: Files, source: Source, settings: RelabelFiles, device: torch.device) -> Orientation:
    """Return the orientation that a teacher confirms."""
    assert settings.teacher is not None
    teacher = open_teacher(settings.teacher, device, pick_precision(settings.precision, device.type))
    if teacher.linear.out_features != files.classes:
        raise UserError(f"'{settings.teacher}' knows {teacher.linear.out_features} classes, the label maps "
                        f"{files.classes}; take a teacher of the same classes, or orientation=hw|wh")
    trial = _trial(files, source)
    return orientation_by_test(trial, source, teacher, device)


def _trial(files: Files, source: Source) -> Trial:
    """Return the maps of some images as they lie in their files. Raises UserError if none is there."""
    places = spread(source)
    maps = files.make(places)
    if not maps.records[KIND]:
        raise UserError(f"{files.folder} has no map of {len(places)} images over the whole split; complete it")
    return Trial(maps.index.numpy(), **maps.records[KIND])


def refuse_other_images(files: Files, source: Source) -> None:
    """Raise UserError if the classes of whole maps are hardly ever the images' labels; without labels nothing is known.
    """
    trial = _trial(files, source)
    said = pool(trial.logit, trial.index, whole(trial.logit), files.classes).argmax(1)
    refuse_other_labels(files.folder, "label maps", source, trial.places, said.numpy(), files.classes)
