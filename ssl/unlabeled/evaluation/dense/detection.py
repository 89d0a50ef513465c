"""Detection transfer: what a backbone is worth to Faster R-CNN or Mask R-CNN, trained on boxes, in COCO's AP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from unlabeled.config.card import Card
from unlabeled.config.protocols.detection import Detection
from unlabeled.data.detection_batches import WholeMaker
from unlabeled.data.loader import batches, own_units
from unlabeled.data.sources.base import Source
from unlabeled.data.sources.subset import Part
from unlabeled.engine.exports.networks import open_residuals, refuse_clips
from unlabeled.engine.passes.features import gather_names, refuse_corrupt
from unlabeled.engine.restore import Restored, load_run
from unlabeled.engine.run.progress import LongPass
from unlabeled.engine.steps import seed_everything
from unlabeled.errors import UserError
from unlabeled.evaluation.dense.average_precision import Detections, average_precision, encode, require_pycocotools
from unlabeled.evaluation.dense.detection_network import build_detector
from unlabeled.evaluation.dense.detection_train import train_detector
from unlabeled.evaluation.dense.networks import dense_report, open_both
from unlabeled.evaluation.setup import count_twins, pick_export
from unlabeled.evaluation.vectors.scores import Score
from unlabeled.ops.distributed import rank, world
from unlabeled.ops.precision import full_precision
from unlabeled.report.report import Report, Split


@dataclass(frozen=True)
class BoxedSplits:
    """The opened splits of a set with boxes."""

    card: Card
    train: Source
    test: Source
    names: list[str]


def run(name: str, cfg: Detection, restored: Restored, run: Path, device: torch.device) -> Report | None:
    """Train the protocol's detector on the run's network, and on the untrained one if asked for, and score both.

    The trainings stand in RUN/eval/NAME and NAME-random-init. Returns the report on rank 0, None elsewhere. Raises
    UserError for bad input, or if a training was interrupted.
    """
    require_pycocotools()
    splits = open_boxed(cfg, restored)
    if rank() == 0:
        for source in (splits.train, splits.test):
            if source.dropped:
                print(f"data {splits.card.name}, '{source.split}': objects left out, since their boxes or masks "
                      f"enclose nothing of the image: {source.dropped}")
    scores: dict[str, dict[str, Score]] = {}
    for kind in ("network", *(["random_init"] if cfg.random_init else [])):
        trained = kind == "network"
        method = (restored if trained else load_run(run, random_init=True)).method
        export, chosen = pick_export(method, cfg.export)
        refuse_clips(chosen, f"export '{export}'", "a detector is for images")
        chosen = chosen if trained else open_residuals(chosen)
        seed_everything(cfg.seed, "detection", "heads")
        model = build_detector(chosen.build(), cfg, len(splits.names), chosen.input)
        folder = restored.run / "eval" / (name if trained else f"{name}-random-init")
        origin = f"{kind}: {export}{restored.moment}"
        unreadable = sorted(set(train_detector(model, cfg, splits.train, folder, origin)))
        detections, corrupt = detect(model, cfg, splits.test, device)
        if rank() == 0:
            scores[kind] = score(splits, detections, cfg)
    if rank() != 0:
        return None
    counts = (Split(splits.train.split, len(splits.train.with_objects()), 0, len(unreadable), unreadable),
              Split(splits.test.split, len(detections), 0, len(corrupt), corrupt))
    chance = dict.fromkeys(scores["network"], 0.0)  # of boxes drawn at random hardly any is right
    shared = count_twins(splits.card, splits.train, splits.test, len(detections))
    return dense_report(name, cfg, restored, export, splits.card, counts, scores, chance, measure="average precision",
                        classes=len(splits.names), shared=shared)


def open_boxed(cfg: Detection, restored: Restored) -> BoxedSplits:
    """Open train and test of a protocol's card, its own or the run's. Raises UserError if it has no boxes."""
    card, train, test = open_both(cfg, restored, "boxes", "coco")
    for source in (train, test):
        if cfg.masks and not source.has_shapes:
            raise UserError(f"data card '{card.name}' has boxes but no masks of objects ({source.lacks_shape}); use "
                            "masks=false")
    if train.object_classes != test.object_classes:
        raise UserError(f"data card '{card.name}': splits '{train.split}' and '{test.split}' have different classes; "
                        "name them in the card with 'classes'")
    assert train.object_classes is not None
    return BoxedSplits(card, train, test, train.object_classes)


@torch.inference_mode()
def detect(model: nn.Module, cfg: Detection, source: Source, device: torch.device,
           ) -> tuple[dict[int, Detections], list[str]]:
    """Return what `model` finds in every readable image of `source`, each seen once over all processes, on rank 0.

    Other ranks get their own part. Also returns the keys of unreadable images, on all ranks. Raises UserError if there
    are too many of them.
    """
    model.eval()
    detections: dict[int, Detections] = {}
    corrupt: list[str] = []
    tested = Part(source, np.arange(min(cfg.test_images or len(source), len(source))))
    units = own_units(len(tested), rank(), world(), cfg.batch)
    done, what = 0, f"detection in '{source.split}' of '{source.name}'"
    with full_precision(device), LongPass(what, len(tested), rank() == 0) as progress:
        for batch in batches(WholeMaker(tested), units, cfg.workers):
            corrupt += batch.corrupt
            done += len(batch.images) + len(batch.corrupt)
            progress.advance(done * world())
            images = [image.to(device).float() / 255 for image in batch.images]
            if images:
                for index, output in zip(batch.index, model(images), strict=True):
                    detections[index] = _read(output)
    model.train()
    if world() > 1:
        parts: list[dict[int, Detections]] = [{} for _ in range(world())]
        dist.gather_object(detections, parts if rank() == 0 else None)
        if rank() == 0:
            detections = {index: each for part in parts for index, each in part.items()}
    corrupt = gather_names(corrupt)
    refuse_corrupt(tested, corrupt, cfg.max_corrupt)
    return detections, corrupt


def score(splits: BoxedSplits, detections: Mapping[int, Detections], cfg: Detection) -> dict[str, Score]:
    """Return the average precisions of detections on the test images."""
    truth = {index: splits.test.objects(index, masks=cfg.masks) for index in detections}
    return average_precision(truth, detections, splits.names, masks=cfg.masks, recall_levels=cfg.recall_levels)


def _read(output: dict[str, Tensor]) -> Detections:
    """Turn the answer for one image into arrays; masks [k, 1, H, W] count from one half on."""
    masks = encode((output["masks"][:, 0] >= 0.5).cpu().numpy()) if "masks" in output else None
    boxes, scores, labels = (output[key].cpu().numpy() for key in ("boxes", "scores", "labels"))
    return Detections(boxes, scores, labels - 1, masks)
