"""Linear segmentation: one linear classifier of the cells of the frozen last map.

Its logits, upsampled bilinearly, are the same classifier's on features that are interpolated at the pixel. So training
needs the drawn pixels only, and is the linear probe on vectors.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from unlabeled.augment.plain_crops import Whole
from unlabeled.config.protocols.dense import SegmentationLinear
from unlabeled.data.evaluation import eval_batches
from unlabeled.data.sources.dense.masks import IGNORED, read_mask
from unlabeled.data.sources.open import Source
from unlabeled.engine.passes.features import gather_names, gather_rows, refuse_corrupt, refuse_nonfinite
from unlabeled.engine.restore import Restored
from unlabeled.engine.run.progress import LongPass
from unlabeled.errors import UserError
from unlabeled.evaluation.dense.networks import MaskedSplits, Network, dense_report, networks, open_masked
from unlabeled.evaluation.dense.segmentation import class_iou, confusion, constant_miou, score, upsampled_classes
from unlabeled.evaluation.setup import count_twins, pick_export
from unlabeled.evaluation.vectors.linear import Probe, descend
from unlabeled.evaluation.vectors.scores import Score
from unlabeled.ops.boxes import crop_columns
from unlabeled.ops.distributed import rank, sum_over_ranks, world
from unlabeled.ops.precision import full_precision
from unlabeled.ops.random import generator, permutation
from unlabeled.report.report import Report, Split


@dataclass
class Maps:
    """Last maps float32 [n, C, h, w] and masks uint8 [n, S, S] of the readable images of a split, in its order."""

    x: Tensor
    mask: Tensor
    corrupt: list[str] = field(default_factory=list)


def run(name: str, cfg: SegmentationLinear, restored: Restored, run: Path, device: torch.device) -> Report | None:
    """Score the run's network, and the untrained one, by `mIoU`; None on other ranks than 0. Raises UserError."""
    splits = open_masked(cfg, restored)
    if len(splits.train) < 2:
        raise UserError(f"data card '{splits.card.name}', split '{splits.train.split}': one image is too few, for the "
                        "lr is chosen on held-out ones")
    size = cfg.size or splits.card.image_size or pick_export(restored.method, cfg.export)[1].input.size
    scores: dict[str, dict[str, Score]] = {}
    for kind, network in networks(cfg, restored, run, size, device):
        export = network.export
        found, counts, used = judge(cfg, network, splits, device)
        scores[kind] = {"mIoU": found}
    if rank() != 0:
        return None
    return dense_report(name, cfg, restored, export, splits.card, used, scores, {"mIoU": constant_miou(counts)},
                        measure="mIoU", classes=len(splits.names),
                        shared=count_twins(splits.card, splits.train, splits.test))


def judge(cfg: SegmentationLinear, network: Network, splits: MaskedSplits, device: torch.device,
          ) -> tuple[Score, Tensor, tuple[Split, Split]]:
    """Train on the maps of train and score on test: score, confusion matrix, and the splits as they were used."""
    train = collect(cfg, network, splits.train, device)
    classes = len(splits.names)
    learned: list[Any] = [None] * 5
    if rank() == 0:
        learned = [*standardise(train.x), *learn(cfg, train, classes, device)]
    trained = Split(splits.train.split, len(train.x), 0, len(train.corrupt), train.corrupt)
    del train
    if world() > 1:  # all ranks score their part of test
        dist.broadcast_object_list(learned, 0)
    mean, std, weight, bias, details = learned
    counts = torch.zeros(classes, classes, dtype=torch.int64)
    missed: list[str] = []
    images = 0
    with torch.inference_mode(), full_precision(device):
        for maps, masks, lost in read(cfg, network, splits.test, device):
            missed += lost
            images += len(masks)
            logits = F.conv2d((maps - mean.to(device)) / std.to(device), weight.to(device), bias.to(device))
            for row, mask in enumerate(masks):
                predicted = upsampled_classes(logits[row : row + 1], *mask.shape)[0]
                counts += confusion(predicted.cpu(), mask, classes)
    missed = gather_names(missed)
    refuse_corrupt(splits.test, missed, cfg.max_corrupt)
    counts = sum_over_ranks(counts.to(device)).cpu()
    n = int(sum_over_ranks(torch.tensor(images, device=device)))
    tested = Split(splits.test.split, n, 0, len(missed), missed)
    return score(counts, splits.names, details), counts, (trained, tested)


def read(cfg: SegmentationLinear, network: Network, source: Source, device: torch.device,
         ) -> Iterator[tuple[Tensor, list[Tensor], list[str]]]:
    """Yield maps [b, C, h, w] on the device, masks uint8 [H, W] and keys of unreadable images, of this rank's part.

    Raises UserError for a mask that is damaged or of another size than its image.
    """
    done, what = 0, f"maps of '{source.split}' of '{source.name}'"
    with LongPass(what, len(source), rank() == 0) as progress:
        for part in eval_batches(source, Whole(network.input.size), rank(), world(), cfg.batch, cfg.workers):
            done += len(part.index) + len(part.corrupt)
            progress.advance(done * world())
            if len(part.index) == 0:
                yield torch.empty(0, *network.shape, device=device), [], part.corrupt
                continue
            assert part.boxes[0] is not None
            box = crop_columns(part.boxes[0].int())
            sizes = zip(part.index.tolist(), box.image_height.tolist(), box.image_width.tolist(), strict=True)
            masks = [torch.from_numpy(read_mask(source, *size)) for size in sizes]
            yield network(part.crops[0].to(device, non_blocking=True)), masks, part.corrupt


@torch.no_grad()
def collect(cfg: SegmentationLinear, network: Network, source: Source, device: torch.device) -> Maps:
    """Return the maps of a split, and its masks at the size of the network's input, nearest pixels.

    All of them on rank 0, on the others this process's part. Raises UserError if too many images cannot be read, and if
    the network gives NaN or infinity.
    """
    side = network.input.size
    x, masks, corrupt = [torch.empty(0, *network.shape)], [torch.empty(0, side, side, dtype=torch.uint8)], []
    with full_precision(device):
        for maps, found, lost in read(cfg, network, source, device):
            x.append(maps.cpu())
            masks += [F.interpolate(mask[None, None], (side, side), mode="nearest-exact")[0] for mask in found]
            corrupt += lost
    part = Maps(torch.cat(x), torch.cat(masks), gather_names(corrupt))
    refuse_corrupt(source, part.corrupt, cfg.max_corrupt)
    refuse_nonfinite(network.export, part.x.flatten(1), device)
    if world() == 1:
        return part
    # rows of cells and of pixels, so that a message stays small; ranks hold consecutive parts of the split
    _, height, width = network.shape
    cells = gather_rows(part.x.permute(0, 2, 3, 1).flatten(0, 2), device)
    lines = gather_rows(part.mask.flatten(0, 1), device)
    x = cells.unflatten(0, (-1, height, width)).permute(0, 3, 1, 2)
    return Maps(x, lines.unflatten(0, (-1, side)), part.corrupt)


def standardise(x: Tensor) -> tuple[Tensor, Tensor]:
    """Standardise maps [n, C, h, w] in place by mean and deviation over all cells; return both, [1, C, 1, 1]."""
    parts, cells = x.split(256), x.numel() // x.shape[1]  # in parts, for the sums are taken in float64
    mean = torch.stack([part.double().sum((0, 2, 3)) for part in parts]).sum(0).div(cells)[None, :, None, None]
    square = torch.stack([(part.double() - mean).square().sum((0, 2, 3)) for part in parts]).sum(0).div(cells)
    std = square.sqrt()[None, :, None, None]
    std = torch.where(std > 1e-8 * mean.abs() + 1e-30, std, 1.0)  # a channel that never changes keeps its scale
    for part in parts:
        part.sub_(mean.float()).div_(std.float())
    return mean.float(), std.float()


def learn(cfg: SegmentationLinear, train: Maps, classes: int, device: torch.device,
          ) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Choose the lr on held-out images of standardised maps, then train on all of them.

    Returns weight [C, channels, 1, 1] and bias [C] on the CPU, and what was chosen.
    """
    n = len(train.x)
    order = permutation(n, cfg.seed, "segmentation-linear", "held-out")
    held, rest = np.split(order, [min(max(1, round(cfg.held_out * n)), n - 1)])
    probe = fit(cfg, train, np.sort(rest), classes, [(lr, cfg.weight_decay) for lr in cfg.lr], device)
    scores = measure(probe, train, np.sort(held), classes)
    best = max(range(len(scores)), key=scores.__getitem__)
    lr = cfg.lr[best]
    details: dict[str, Any] = {"lr": lr, "held_out": round(scores[best], 2)}
    if len(cfg.lr) > 1 and lr in (min(cfg.lr), max(cfg.lr)):
        details["note"] = "the chosen lr is at the end of the grid"
    final = fit(cfg, train, np.arange(n), classes, [(lr, cfg.weight_decay)], device)
    return final.weight.T[:, :, None, None].cpu(), final.bias.cpu(), details


def fit(cfg: SegmentationLinear, train: Maps, rows: np.ndarray, classes: int, settings: list[tuple[float, float]],
        device: torch.device) -> Probe:
    """Train one classifier per (lr, weight decay) on pixels of the images `rows`, drawn anew in every update."""
    batch, side = min(cfg.images_per_update, len(rows)), train.mask.shape[1]
    per_epoch = len(rows) // batch
    order = torch.empty(0, dtype=torch.int64)

    def draw(update: int) -> tuple[Tensor, Tensor]:
        nonlocal order
        epoch, place = divmod(update, per_epoch)
        if place == 0:
            order = torch.from_numpy(rows[permutation(len(rows), cfg.seed, "segmentation-linear", "order", epoch)])
        chunk = order[place * batch : (place + 1) * batch]
        drawn = generator(cfg.seed, "segmentation-linear", "pixels", update)
        pixels = torch.randint(side**2, (batch, cfg.pixels_per_image), generator=drawn)
        label = train.mask[chunk].flatten(1).gather(1, pixels).flatten()
        counted = label != IGNORED
        features = at_pixels(train.x[chunk].to(device), pixels.to(device), side).flatten(0, 1)
        return features[counted.to(device)], label[counted].long()

    probe = Probe(train.x.shape[1], len(settings), classes, device)
    descend(probe, settings, max(cfg.epochs * per_epoch, cfg.min_updates), draw, cfg.momentum)
    return probe


def at_pixels(maps: Tensor, pixels: Tensor, side: int) -> Tensor:
    """Return maps [b, C, h, w], upsampled bilinearly to [side, side], at pixels int64 [b, K] alone: [b, K, C]."""
    places = torch.stack([pixels % side, pixels // side], 2)
    grid = (2 * places + 1) / side - 1
    found = F.grid_sample(maps, grid[:, None], mode="bilinear", padding_mode="border", align_corners=False)
    return found[:, :, 0].mT


@torch.inference_mode()
def measure(probe: Probe, train: Maps, rows: np.ndarray, classes: int) -> list[float]:
    """Return the mIoU in percent of every setting on all pixels of the images `rows`."""
    device = probe.bias.device
    counts = torch.zeros(probe.settings, classes, classes, dtype=torch.int64)
    with full_precision(device):
        for chunk in torch.from_numpy(rows).split(16):
            logits = F.conv2d(train.x[chunk].to(device), probe.weight.T[:, :, None, None], probe.bias)
            for setting, part in enumerate(logits.split(classes, 1)):
                predicted = upsampled_classes(part, *train.mask.shape[1:])
                counts[setting] += confusion(predicted.cpu(), train.mask[chunk], classes)
    return [100.0 * float(class_iou(each).nanmean()) for each in counts]

