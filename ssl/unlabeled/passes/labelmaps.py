"""Label maps of a split: what a classifier says of every cell of every image (arXiv 2101.05022 section 3.2).

The map generator of the paper was never published; this follows its description and its authors' answers. Images are
resized to a square without a crop, so that shares of the image are shares of the map; the classifier's linear layer
stands where global pooling was, and of every cell the k largest logits are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlabeled.augment.photometric import to_input
from unlabeled.augment.plain_crops import Whole
from unlabeled.backbones.sizes import refuse_images
from unlabeled.config.passes.labelmaps import LabelmapSettings
from unlabeled.config.passes.shared import MOST_CLASSES
from unlabeled.data.batch import Batch
from unlabeled.data.evaluation import ImageMaker
from unlabeled.data.records.classes import (
    WITH_THE_CARD,
    Classes,
    classes_of_card,
    classes_of_teacher,
    refuse_other_classes,
)
from unlabeled.data.records.labelmaps import KIND, ORIENTATION, RESIZE
from unlabeled.data.records.store import Store
from unlabeled.data.sources.base import Source
from unlabeled.engine.exports.split import split_classifier
from unlabeled.engine.launch import pick_precision
from unlabeled.engine.method import load_teacher
from unlabeled.engine.passes.kept_features import network_digest
from unlabeled.engine.passes.run import Work, run_pass
from unlabeled.errors import UserError
from unlabeled.methods.base import Input
from unlabeled.ops.distributed import on_rank0, rank
from unlabeled.ops.precision import Resolved, autocast, full_precision
from unlabeled.ops.targets.label_pooling import pool, whole

_KEPT = 5  # classes of every cell, as published
_ASKED = 100  # images of which maps and teacher are compared, before and after
_TOGETHER = 16  # of them at once


# ---- the maps


def cell_logits(features: Tensor, linear: nn.Linear) -> Tensor:
    """Return what a classifier says of every cell [b, classes, H, W] of a map of features [b, D, H, W].

    Its linear layer stands where global pooling was: the mean over the cells is what it says of the image.
    """
    return F.linear(features.movedim(1, -1), linear.weight, linear.bias).movedim(-1, 1)


def strongest(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k largest logits of every cell of [b, classes, H, W], descending, and their classes: [b, k, H, W]."""
    value, index = logits.topk(k, dim=1)
    return value, index


# ---- the teacher


@dataclass(frozen=True)
class CellTeacher:
    """A classifier of the form map, mean over its cells, linear layer, on images of its own size and statistics.

    names: of its classes in order, None where nobody states them.
    """

    source: str
    network: nn.Module
    features: nn.Module
    linear: nn.Linear
    input: Input
    names: list[str] | None
    precision: Resolved

    @property
    def classes(self) -> Classes:
        """Return the classes that it knows."""
        return classes_of_teacher(self.source, self.linear.out_features, self.names)

    def map_of(self, crops: Tensor) -> Tensor:
        """Return the logits, float32 [b, classes, H, W], of the cells of uint8 images [b, 3, S, S]."""
        with autocast(crops.device, self.precision):
            features = self.features(self._seen(crops))
        return cell_logits(features.float(), self.linear)

    def logits(self, crops: Tensor) -> Tensor:
        """Return what it says of whole uint8 images [b, 3, S, S]: float32 [b, classes]."""
        with autocast(crops.device, self.precision):
            logits: Tensor = self.network(self._seen(crops))
        return logits.float()

    def _seen(self, crops: Tensor) -> Tensor:
        return to_input(crops, self.input.mean, self.input.std).contiguous(memory_format=torch.channels_last)


def open_teacher(source: str, device: torch.device, precision: Resolved, size: int | None = None) -> CellTeacher:
    """Open a classifier: RUN[:EXPORT], timm:NAME[@FILE] or torchvision:NAME[@FILE].

    Raises UserError for what is no classifier, or not of the form map, mean, linear layer, and for too many classes.
    """
    export = load_teacher(source)
    if export.gives != "logits":
        raise UserError(f"'{source}' gives {export.gives} and no logits; label maps need a classifier, such as a "
                        "fine-tuned run")
    image = Input(size or export.input.size, export.input.mean, export.input.std)
    network = export.build()
    features, linear = split_classifier(network, name=f"'{source}'")
    if linear.out_features > MOST_CLASSES:
        raise UserError(f"'{source}' knows {linear.out_features} classes; label maps hold the numbers of "
                        f"{MOST_CLASSES} at most")
    refuse_images(network, {image.size: "size"}, f"'{source}'")
    network = network.to(device).to(memory_format=torch.channels_last).eval()
    return CellTeacher(source, network, features, linear, image, export.names, precision)


# ---- the pass


def write_labelmaps(source: Source, teacher: str, settings: LabelmapSettings, device: torch.device) -> Store | None:
    """Keep the label maps of all images of `source` in the folder `settings.out`; None while other parts are missing.

    Raises UserError as `open_teacher` and `run_pass` do, for classes that are not those of the set, and if the maps of
    some images do not say what the teacher says of the images, which is seen before the pass and behind it.
    """
    known = open_teacher(teacher, device, pick_precision(settings.precision, device.type), settings.size)
    classes = known.linear.out_features
    k = settings.k or min(_KEPT, classes)
    if k > classes:
        raise UserError(f"unlabeled labelmaps: k={k}, but the teacher knows {classes} classes; give no more than "
                        "these")
    refuse_other_classes(known.classes, classes_of_card(source), WITH_THE_CARD)
    work = work_of(known, source, k, device)
    if work.about["map_size"] == [1, 1] and rank() == 0:
        print(f"at {known.input.size} pixels the map of '{teacher}' is a single cell, which says the same of every "
              "crop: a larger size=PIXELS gives more", flush=True)
    on_rank0(lambda: try_out(work, source, known, device))
    store = run_pass(work, source, Path(settings.out).expanduser(), part=settings.share, batch=settings.batch,
                     workers=settings.workers, device=device, max_corrupt=settings.max_corrupt)
    if store is not None:
        on_rank0(lambda: check(store, source, known, device))
    return store


def work_of(teacher: CellTeacher, source: Source, k: int, device: torch.device) -> Work:
    """Return what the pass computes of the images of a split."""
    shape, squash = _shape(teacher, device), Whole(teacher.input.size)
    about = describe(teacher.classes, (k, *shape), {
        "teacher": teacher.source, "network": network_digest(teacher.network, repr(teacher.input)), "size": squash.size,
        "interpolation": squash.interpolation, "precision": teacher.precision})

    def compute(batch: Batch) -> dict[str, Tensor]:
        logit, index = strongest(teacher.map_of(batch.crops[0]), k)
        return {"logit": logit, "index": index}

    return Work(KIND, fields_of((k, *shape)), about, ImageMaker(source, [squash]), compute)


def fields_of(shape: tuple[int, int, int]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return the fields of rows of maps of `shape` (k, H, W)."""
    return {"logit": ("<f2", shape), "index": ("<u2", shape)}


def describe(classes: Classes, shape: tuple[int, int, int], more: dict[str, Any]) -> dict[str, Any]:
    """Return what a store says of its maps, with `more` on how they came about."""
    k, height, width = shape
    return {**classes.about(), "k": k, "map_size": [height, width], "orientation": ORIENTATION, "resize": RESIZE,
            **more}


@torch.inference_mode()
def _shape(teacher: CellTeacher, device: torch.device) -> tuple[int, int]:
    """Return height and width of the map. Raises UserError if its mean is not what the teacher says of an image."""
    side = teacher.input.size
    crops = torch.randint(256, (1, 3, side, side), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    with full_precision(device):
        dense, logits = teacher.map_of(crops.to(device)), teacher.logits(crops.to(device))
    apart = float((dense.mean((2, 3)) - logits).abs().max() / logits.abs().max().clamp_min(1e-12))
    if apart > (1e-3 if teacher.precision == "fp32" else 0.05):
        raise UserError(f"'{teacher.source}': at {side} pixels the mean over the cells of its map differs from its "
                        f"logits by {apart:.1%} of the largest: take its own size, or a classifier of map, mean and "
                        "linear layer")
    return dense.shape[2], dense.shape[3]


# ---- the check before and after


def try_out(work: Work, source: Source, teacher: CellTeacher, device: torch.device) -> None:
    """Print of how many images, spread over the split, the pooled map and the teacher name the same class.

    Raises UserError, with reason and cure, if these are less than a quarter. A map keeps the k best classes of every
    cell, and others count as 0, so that some images differ, above all those that show several things.
    """
    batch = _some(source, teacher, list(source.unreadable))
    if not len(batch.index):
        return  # the pass says why
    with torch.inference_mode(), full_precision(device):
        parts = [work.compute(Batch([part.to(device)], [None], torch.arange(len(part))))
                 for part in batch.crops[0].split(_TOGETHER)]
    logit, index = (torch.cat([part[field].cpu() for part in parts]) for field in ("logit", "index"))
    same, below = _agreement(logit, index, batch, teacher, device)
    print(f"maps and teacher name the same class of {same} of {len(logit)} images", flush=True)
    if 4 * same < len(logit):
        classes = teacher.linear.out_features
        why = "k is too small; give a larger one"
        if 2 * below > len(logit) - same:
            why = (f"of {below} the logit of its class is negative, as with classifiers that were trained by binary "
                   "cross-entropy, and classes that a cell does not keep count as 0, which is more. Keep all of them "
                   f"with k={classes}, or take a classifier that was trained with a softmax")
        raise UserError(f"'{teacher.source}': the pooled maps name its class of {same} of {len(logit)} images only: "
                        f"{why}")


def check(store: Store, source: Source, teacher: CellTeacher, device: torch.device) -> None:
    """Raise UserError if what is kept names the teacher's class of less than a quarter of some images."""
    batch = _some(source, teacher, list(store.unreadable))
    rows = store.rows(batch.index.numpy())
    logit, index = (torch.from_numpy(np.ascontiguousarray(rows[field])) for field in ("logit", "index"))
    same, _ = _agreement(logit, index, batch, teacher, device)
    if 4 * same < len(logit):
        raise UserError(f"{store.folder}: the pooled maps name the teacher's class of {same} of {len(logit)} images "
                        "only. They are of other images or another network: remove the folder and make it anew")


def _some(source: Source, teacher: CellTeacher, unreadable: list[int]) -> Batch:
    """Return images that are spread over the split, as the teacher sees them."""
    readable = np.setdiff1d(np.arange(len(source)), unreadable)
    places = readable[np.linspace(0, len(readable) - 1, min(_ASKED, len(readable))).astype(int)]
    return ImageMaker(source, [Whole(teacher.input.size)]).make(places)


@torch.inference_mode()
def _agreement(logit: Tensor, index: Tensor, batch: Batch, teacher: CellTeacher, device: torch.device,
               ) -> tuple[int, int]:
    """Return of how many images maps and teacher name one class, and of how many others that class is below 0."""
    pooled = pool(logit, index, whole(logit), teacher.linear.out_features)
    with full_precision(device):
        said = torch.cat([teacher.logits(part.to(device)).argmax(1).cpu()
                          for part in batch.crops[0].split(_TOGETHER)])
    same = pooled.argmax(1) == said
    below = ~same & (pooled.gather(1, said[:, None])[:, 0] < 0)
    return int(same.sum()), int(below.sum())
