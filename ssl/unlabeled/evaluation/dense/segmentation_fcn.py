"""Segmentation by a fully convolutional network: two convolutions and a classifier on the last map, all trained.

The protocol of MoCo and PixPro for Cityscapes (arXiv 1911.05722 appendix, 2011.10043 section 4): scale 0.5 to 2, crops,
flips, SGD whose learning rate falls to a tenth after 70 % and 90 % of the training, synchronised BatchNorm.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from unlabeled.config.protocols.dense import SegmentationFcn
from unlabeled.data.segmentation_batches import JointCrop, training_crops, whole_images
from unlabeled.data.sources.dense.masks import IGNORED
from unlabeled.engine.maps import LastMap
from unlabeled.engine.passes.features import gather_names, refuse_corrupt
from unlabeled.engine.restore import Restored
from unlabeled.engine.run.progress import LongPass
from unlabeled.errors import UserError
from unlabeled.evaluation.dense.networks import MaskedSplits, Network, dense_report, networks, open_masked
from unlabeled.evaluation.dense.segmentation import confusion, constant_miou, score, upsampled_classes
from unlabeled.evaluation.setup import count_twins, pick_export
from unlabeled.evaluation.vectors.scores import Score
from unlabeled.ops.batchnorm import convert
from unlabeled.ops.distributed import max_over_ranks, rank, sum_over_ranks, world
from unlabeled.ops.precision import full_precision
from unlabeled.ops.random import seed_of
from unlabeled.report.report import Report, Split


class Fcn(nn.Module):
    """A backbone's last map, two 3x3 convolutions with BatchNorm, and a 1x1 classifier.

    [b, 3, H, W] -> logits [b, classes, h, w]. frozen: the backbone stays in evaluation mode and has no gradient.
    """

    def __init__(self, backbone: LastMap, channels: int, cfg: SegmentationFcn, classes: int) -> None:
        super().__init__()
        self.backbone, self.frozen = backbone, cfg.backbone == "frozen"
        backbone.requires_grad_(not self.frozen)
        layers: list[nn.Module] = []
        for width in (channels, cfg.width):
            layers.append(nn.Conv2d(width, cfg.width, 3, padding=cfg.dilation, dilation=cfg.dilation, bias=False))
            layers += [nn.BatchNorm2d(cfg.width), nn.ReLU(inplace=True)]
        self.head = nn.Sequential(*layers, nn.Conv2d(cfg.width, classes, 1))

    def train(self, mode: bool = True) -> Fcn:
        """Set the mode of the head, and of the backbone unless it is frozen."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of the map's cells."""
        logits: Tensor = self.head(self.backbone(x))
        return logits


def run(name: str, cfg: SegmentationFcn, restored: Restored, run: Path, device: torch.device) -> Report | None:
    """Train and score the run's network, and the untrained one, by `mIoU`; None on other ranks than 0.

    Raises UserError for bad input, and if a loss is not finite.
    """
    splits = open_masked(cfg, restored)
    size = cfg.size or splits.card.image_size or pick_export(restored.method, cfg.export)[1].input.size
    if cfg.images_per_update % world():
        raise UserError(f"images_per_update {cfg.images_per_update} does not divide into {world()} processes")
    scores: dict[str, dict[str, Score]] = {}
    for kind, network in networks(cfg, restored, run, size, device):
        export = network.export
        if cfg.dilated_stages:
            dilate(network.map.network, cfg.dilated_stages)
        model, missed = learn(cfg, network, splits, device)
        counts, tested = judge(cfg, model, network, splits, device)
        scores[kind] = {"mIoU": score(counts, splits.names, {})}
    if rank() != 0:
        return None
    trained = Split(splits.train.split, len(splits.train) - len(missed), 0, len(missed), missed)
    return dense_report(name, cfg, restored, export, splits.card, (trained, tested), scores,
                        {"mIoU": constant_miou(counts)}, measure="mIoU", classes=len(splits.names),
                        shared=count_twins(splits.card, splits.train, splits.test))


def dilate(network: nn.Module, stages: int) -> None:
    """Turn the stride of a ResNet's last `stages` (1 or 2) stages into dilation of what follows, in place.

    As timm's and torchvision's: the convolution that had the stride keeps the dilation of the stage before. Raises
    UserError for other networks.
    """
    found = dict(network.named_children())
    if not {"layer3", "layer4"} <= set(found):
        raise UserError("dilated_stages belongs to ResNets, whose stages are named layer3 and layer4; leave it 0")
    before = 1
    for stage in (found[name] for name in ("layer3", "layer4")[-stages:]):
        for module in stage.modules():
            strided = getattr(module, "stride", None) in (2, (2, 2))
            if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
                rate = before if strided else 2 * before
                module.dilation = module.padding = (rate, rate)
            if strided:  # convolutions, and the poolings of shortcuts
                module.stride = 1 if module.stride == 2 else (1, 1)  # type: ignore[assignment]
        before *= 2


def learn(cfg: SegmentationFcn, network: Network, splits: MaskedSplits, device: torch.device) -> tuple[Fcn, list[str]]:
    """Train the network and a new head; return them, and the keys of unreadable images, of all ranks.

    Raises UserError if the loss is not finite, or too many images cannot be read.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(cfg.seed, "segmentation-fcn", "head"))  # on all ranks, for both networks
        model = Fcn(network.map, network.shape[0], cfg, len(splits.names)).to(device)
    trained: nn.Module = model
    if world() > 1:
        convert(model, device)
        # networks have layers behind the last map, which get no gradient
        trained = DistributedDataParallel(model, broadcast_buffers=False, find_unused_parameters=True)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(weights, cfg.lr, cfg.momentum, weight_decay=cfg.weight_decay)
    fill = tuple(round(255 * value) for value in network.input.mean or (0.5, 0.5, 0.5))
    crops = training_crops(splits.train, JointCrop(network.input.size, cfg.scale, fill), cfg.seed, cfg.updates,
                           cfg.images_per_update, rank(), world(), cfg.workers)
    missed: set[str] = set()
    model.train()
    with LongPass("segmentation-fcn", cfg.updates, rank() == 0, "updates") as progress:
        for update, part in enumerate(crops):
            optimizer.param_groups[0]["lr"] = cfg.lr * 0.1 ** sum(update >= share * cfg.updates for share in cfg.drops)
            missed.update(part.corrupt)
            loss = _loss(trained, network.prepare(part.images.to(device)), part.masks.to(device).long())
            if bool(max_over_ranks((~torch.isfinite(loss.detach())).float())):  # on all ranks, so that all of them stop
                raise UserError(f"segmentation-fcn: the loss is not finite at update {update}; lower lr ({cfg.lr:g})")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            progress.advance(update + 1)
            if (update + 1) % max(1, cfg.updates // 10) == 0:
                mean = float(sum_over_ranks(loss.detach().clone())) / world()
                if rank() == 0:
                    print(f"segmentation-fcn: update {update + 1} of {cfg.updates}, loss {mean:.3f}", flush=True)
    names = sorted(set(gather_names(sorted(missed))))
    refuse_corrupt(splits.train, names, cfg.max_corrupt)
    return model.eval(), names


def _loss(model: nn.Module, images: Tensor, masks: Tensor) -> Tensor:
    """Return the cross-entropy at the masks' size; its mean over ranks is that of all counted pixels of the batch."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=images.device.type == "cuda"):
        logits = model(images)
    full = F.interpolate(logits.float(), size=masks.shape[1:], mode="bilinear", align_corners=False)
    counted = sum_over_ranks((masks != IGNORED).sum().double()).clamp_min(1) / world()
    return F.cross_entropy(full, masks, ignore_index=IGNORED, reduction="sum") / counted.float()


@torch.inference_mode()
def judge(cfg: SegmentationFcn, model: Fcn, network: Network, splits: MaskedSplits, device: torch.device,
          ) -> tuple[Tensor, Split]:
    """Score every pixel of every test image, whole and at its own size: confusion matrix, and the split as used."""
    classes = len(splits.names)
    counts = torch.zeros(classes, classes, dtype=torch.int64, device=device)
    missed: list[str] = []
    seen, what = 0, f"segmentation of '{splits.test.split}' of '{splits.test.name}'"
    with full_precision(device), LongPass(what, len(splits.test), rank() == 0) as progress:
        for part in whole_images(splits.test, cfg.batch, rank(), world(), cfg.workers):
            missed += part.corrupt
            seen += len(part.images) + len(part.corrupt)
            progress.advance(seen * world())
            if len(part.images):
                predicted = upsampled_classes(model(network.prepare(part.images.to(device))), *part.masks.shape[1:])
                counts += confusion(predicted, part.masks.to(device), classes)
    names = gather_names(missed)
    refuse_corrupt(splits.test, names, cfg.max_corrupt)
    n = len(splits.test) - len(names)
    return sum_over_ranks(counts).cpu(), Split(splits.test.split, n, 0, len(names), names)
