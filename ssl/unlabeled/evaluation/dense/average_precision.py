"""Average precision of detections by COCO's own evaluator (arXiv 1405.0312), also at VOC's eleven recalls."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unlabeled.data.sources.truth import Objects
from unlabeled.errors import UserError
from unlabeled.evaluation.vectors.scores import Score
from unlabeled.ops.boxes import Edges

# the axes of pycocotools' arrays: IoU thresholds in percent, and sizes of objects
_OVERLAPS = range(50, 100, 5)
_SIZES = ("all", "small", "medium", "large")


@dataclass(frozen=True)
class Detections:
    """What a detector finds in one image, best first or not.

    boxes: [k, 4], left, top, right, bottom in pixels of the image. scores: [k]. kinds: int [k], from 0 on. masks: run
    lengths as pycocotools has them, or None.
    """

    boxes: np.ndarray
    scores: np.ndarray
    kinds: np.ndarray
    masks: list[dict[str, Any]] | None = None


def require_pycocotools() -> None:
    """Raise UserError if pycocotools, which scores detections, is not installed."""
    try:
        import pycocotools.mask  # noqa: F401
    except ImportError as error:
        raise UserError("detection is scored by pycocotools, which is not installed: pip install 'unlabeled[detection]'"
                        ) from error


def encode(masks: np.ndarray) -> list[dict[str, Any]]:
    """Return the run lengths of masks, bool [k, H, W]."""
    from pycocotools import mask

    return [mask.encode(np.asfortranarray(each.astype(np.uint8))) for each in masks]


def average_precision(truth: Mapping[int, Objects], detections: Mapping[int, Detections], classes: Sequence[str], *,
                      masks: bool, recall_levels: int = 101) -> dict[str, Score]:
    """Return AP, AP50 and AP75 of boxes and, with masks, of masks, in percent; details: AP by size, and by class.

    truth, detections: by image, of the same images. AP is the mean over classes and the IoU thresholds 0.50, 0.55 ...
    0.95, of precision at `recall_levels` recalls, of the 100 best detections of an image. A class without an object in
    `truth` is left out. Crowds count as in COCO, and difficult objects as in VOC: who finds them is neither right nor
    wrong.
    """
    scores: dict[str, Score] = {}
    for kind, prefix in (("bbox", ""), *([("segm", "mask ")] if masks else [])):
        precision = _precision(kind, truth, detections, len(classes), recall_levels)
        whole = precision[..., _SIZES.index("all")]
        by_class = {name: _mean(whole[:, :, k]) for k, name in enumerate(classes)}
        sizes = {f"AP {size}": _mean(precision[..., _SIZES.index(size)]) for size in ("small", "medium", "large")}
        known = {name: round(value, 2) for name, value in sizes.items() if value is not None}
        scores[f"{prefix}AP"] = Score(_mean(whole) or 0.0, details={**known, "by_class": by_class})
        scores[f"{prefix}AP50"] = Score(_mean(whole[_OVERLAPS.index(50)]) or 0.0)
        scores[f"{prefix}AP75"] = Score(_mean(whole[_OVERLAPS.index(75)]) or 0.0)
    return scores


def _precision(kind: str, truth: Mapping[int, Objects], detections: Mapping[int, Detections], classes: int,
               recall_levels: int) -> np.ndarray:
    """Return precision by (IoU threshold, recall, class, size of object), -1 where there is no object."""
    evaluator = _evaluator()
    with contextlib.redirect_stdout(io.StringIO()):
        judged = evaluator(_coco(truth, classes, kind, _true), _coco(detections, classes, kind, _detected), kind)
        if recall_levels == 11:
            judged.params.recThrs = np.linspace(0.0, 1.0, 11)
        judged.evaluate()
        judged.accumulate()
    precision: np.ndarray = judged.eval["precision"][..., -1]  # of at most 100 detections
    return precision


def _evaluator() -> Any:
    """Return pycocotools' evaluator, taught what VOC calls difficult."""
    from pycocotools.cocoeval import COCOeval

    class Evaluator(COCOeval):
        """Ignores difficult objects as it ignores crowds, but overlaps are measured with them as with other objects."""

        def computeIoU(self, image: int, category: int) -> Any:
            truths = self._gts[image, category]
            for item in truths:
                item["iscrowd"] = item["crowd"]
            overlaps = super().computeIoU(image, category)
            for item in truths:
                item["iscrowd"] = item["ignored"]
            return overlaps

    return Evaluator


def _coco(images: Mapping[int, Any], classes: int, kind: str, describe: Any) -> Any:
    """Return pycocotools' index of objects; numbers of images, classes and objects begin at 1 there."""
    from pycocotools.coco import COCO

    rows = [{"image_id": index + 1, **row} for index, each in images.items() for row in describe(each, kind)]
    index = COCO()
    index.dataset = {
        "images": [{"id": each + 1, "height": 0, "width": 0} for each in images],  # sides, for polygons only
        "categories": [{"id": number + 1} for number in range(classes)],
        "annotations": [{"id": number, **row} for number, row in enumerate(rows, 1)],
    }
    index.createIndex()
    return index


def _true(objects: Objects, kind: str) -> list[dict[str, Any]]:
    masks = encode(objects.masks) if kind == "segm" and objects.masks is not None else [None] * len(objects.kinds)
    return [
        {"category_id": int(objects.kinds[i]) + 1, "bbox": _sides(objects.boxes[i]), "area": float(objects.areas[i]),
         "crowd": int(objects.crowd[i]), "ignored": int(objects.crowd[i] or objects.difficult[i]),
         "iscrowd": int(objects.crowd[i] or objects.difficult[i]), "segmentation": masks[i]}
        for i in range(len(objects.kinds))
    ]


def _detected(detections: Detections, kind: str) -> list[dict[str, Any]]:
    from pycocotools import mask

    rows = []
    for i in range(len(detections.kinds)):
        left, top, width, height = _sides(detections.boxes[i])
        shape = detections.masks[i] if kind == "segm" and detections.masks is not None else None
        area = width * height if shape is None else float(mask.area(shape))
        rows.append({"category_id": int(detections.kinds[i]) + 1, "bbox": [left, top, width, height],
                     "area": area, "iscrowd": 0, "score": float(detections.scores[i]), "segmentation": shape})
    return rows


def _sides(box: np.ndarray) -> list[float]:
    """Return left, top, width and height of a box [4], as COCO writes them."""
    edge = Edges(*(float(x) for x in box))
    return [edge.left, edge.top, edge.right - edge.left, edge.bottom - edge.top]


def _mean(precision: np.ndarray) -> float | None:
    known = precision[precision > -1]
    return 100.0 * float(known.mean()) if known.size else None
