"""torchvision's Faster R-CNN and Mask R-CNN around a pretrained backbone (arXiv 1506.01497, 1703.06870, 1612.03144)."""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from unlabeled.backbones.intermediate import names, outputs
from unlabeled.backbones.sizes import REFUSALS, refusal
from unlabeled.config.protocols.detection import Detection
from unlabeled.errors import UserError
from unlabeled.methods.base import Input

_STAGES = 4
_RATIOS = (0.5, 1.0, 2.0)
_TRIAL = 64  # side of the image on which a network's maps are looked at


class Stages(nn.Module):
    """The maps of some blocks of a network: [b, 3, H, W] -> {"0": [b, C, h, w], ...}. What lies behind does not run.

    channels: of every map. stride: pixels per cell of the coarsest one. Weights that these maps do not depend on are
    frozen. Raises UserError unless every map has half the cells along a side of the one before.
    """

    def __init__(self, network: nn.Module, blocks: list[str]) -> None:
        super().__init__()
        self.network, self.blocks = network.eval().requires_grad_(True), blocks
        try:
            maps = list(self(torch.zeros(1, 3, _TRIAL, _TRIAL)).values())
        except REFUSALS as error:
            said = refusal(network, type(network).__name__, _TRIAL, str(error), "size")
            raise UserError(f"this network takes no images of any size, which detection needs: {said}") from error
        shapes = [tuple(x.shape) for x in maps]
        sides = [shape[-1] for shape in shapes]
        if any(len(shape) != 4 for shape in shapes) or any(2 * b != a for a, b in pairwise(sides)):
            raise UserError(f"{', '.join(blocks)} of this {type(network).__name__} give {shapes}: no maps, each half "
                            "as large as the one before. Detection needs a ResNet or a hierarchical network of timm's")
        self.channels, self.stride = [shape[1] for shape in shapes], _TRIAL // sides[-1]
        torch.stack([x.sum() for x in maps]).sum().backward()
        for parameter in network.parameters():
            parameter.requires_grad_(parameter.grad is not None)
            parameter.grad = None

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return the maps by the number of their block."""
        found = outputs(self.network, self.blocks, x)
        return OrderedDict((str(i), found[block]) for i, block in enumerate(self.blocks))


class Pyramid(nn.Module):
    """Stages and a feature pyramid on them, with norms (arXiv 1612.03144); one coarser level by pooling the last."""

    def __init__(self, stages: Stages, width: int) -> None:
        super().__init__()
        self.stages, self.out_channels = stages, width
        self.fpn = FeaturePyramidNetwork(stages.channels, width, LastLevelMaxPool(), nn.BatchNorm2d)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return maps of equal width by level: 0 to 3, and pool."""
        levels: dict[str, Tensor] = self.fpn(self.stages(x))
        return levels


class LastStage(nn.Sequential):
    """layer4 on the crops of layer3's map, and one more norm behind it, as in arXiv 1911.05722's R50-C4."""

    def __init__(self, layer: nn.Module, channels: int) -> None:
        super().__init__(OrderedDict(layer4=layer, norm=nn.BatchNorm2d(channels)))


class Averaged(nn.Module):
    """The mean over places of what another network gives, [n, C, h, w] -> [n, C]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Return the vectors."""
        out: Tensor = self.network(x)
        return out.mean((2, 3))


def build_detector(network: nn.Module, cfg: Detection, classes: int, image: Input) -> nn.Module:
    """Build the detector that `cfg` describes around `network`, which becomes part of it, for `classes` kinds.

    Called in training with a list of images [3, H, W] in [0, 1], resized, and targets, it gives losses by name; in
    evaluation with images of any size, a dict of boxes, scores, labels (from 1 on) and masks for each. Raises UserError
    if the network has no fitting maps.
    """
    network = network.cpu()
    parts = _pyramid_parts(network, cfg, classes) if cfg.neck == "fpn" else _c4_parts(network, cfg, classes)
    stride = parts.pop("stride")
    common: dict[str, Any] = {
        "min_size": cfg.size, "max_size": cfg.longest, "size_divisible": stride,
        "_skip_resize": True,  # of training images, which come resized
        "image_mean": list(image.mean or (0.0, 0.0, 0.0)), "image_std": list(image.std or (1.0, 1.0, 1.0)),
        "rpn_pre_nms_top_n_train": cfg.proposals_train[0], "rpn_post_nms_top_n_train": cfg.proposals_train[1],
        "rpn_pre_nms_top_n_test": cfg.proposals_test[0], "rpn_post_nms_top_n_test": cfg.proposals_test[1],
        "box_batch_size_per_image": cfg.regions,
    }
    boxes: FastRCNNPredictor = parts["box_predictor"]
    last = [(boxes.cls_score, 0.01), (boxes.bbox_pred, 0.001)]
    if cfg.masks:
        last.append((parts["mask_predictor"].mask_fcn_logits, 0.001))
    for layer, std in last:  # detectron2's first weights; torchvision's answers begin too far apart
        nn.init.normal_(layer.weight, std=std)
        nn.init.zeros_(layer.bias)
    model: nn.Module = (MaskRCNN if cfg.masks else FasterRCNN)(**parts, **common)
    return model


def _pyramid_parts(network: nn.Module, cfg: Detection, classes: int) -> dict[str, Any]:
    """Return the parts of a detector on a pyramid: heads of four convolutions with norms on its finest levels."""
    blocks = names(network)[-_STAGES:]
    if len(blocks) < _STAGES:
        raise UserError(f"neck fpn needs {_STAGES} stages; this {type(network).__name__} has {', '.join(blocks)}")
    backbone = Pyramid(Stages(network, blocks), cfg.width)
    levels = [str(i) for i in range(_STAGES)]
    size, linear = (cfg.width, 7, 7), 4 * cfg.width
    parts: dict[str, Any] = {
        "backbone": backbone,
        "stride": 2 * backbone.stages.stride,
        "rpn_anchor_generator": AnchorGenerator(tuple((side,) for side in cfg.anchors), (_RATIOS,) * len(cfg.anchors)),
        "box_roi_pool": MultiScaleRoIAlign(levels, 7, 0),
        "box_head": FastRCNNConvFCHead(size, [cfg.width] * 4, [linear], nn.BatchNorm2d),
        "box_predictor": FastRCNNPredictor(linear, classes + 1),
    }
    if cfg.masks:
        parts |= {
            "mask_roi_pool": MultiScaleRoIAlign(levels, 14, 0),
            "mask_head": MaskRCNNHeads(cfg.width, [cfg.width] * 4, 1, nn.BatchNorm2d),
            "mask_predictor": MaskRCNNPredictor(cfg.width, cfg.width, classes + 1),
        }
    return parts


def _c4_parts(network: nn.Module, cfg: Detection, classes: int) -> dict[str, Any]:
    """Return the parts of a detector on layer3's map, whose regions pass layer4."""
    last = getattr(network, "layer4", None)
    if not isinstance(last, nn.Sequential) or not hasattr(network, "layer3"):
        raise UserError(f"neck c4 needs a ResNet, with layer3 and layer4; this is a {type(network).__name__}. "
                        "Use neck=fpn")
    network.layer4 = nn.Identity()
    backbone = Stages(network, ["layer3"])
    with torch.no_grad():
        channels = last.eval()(torch.zeros(1, backbone.channels[0], 14, 14)).shape[1]
    backbone.out_channels = backbone.channels[0]  # as torchvision calls it
    head = LastStage(last.requires_grad_(True), channels)
    parts: dict[str, Any] = {
        "backbone": backbone,
        "stride": backbone.stride,
        "rpn_anchor_generator": AnchorGenerator((tuple(cfg.anchors),), (_RATIOS,)),
        "box_roi_pool": MultiScaleRoIAlign(["0"], 14, 0),
        "box_head": Averaged(head),
        "box_predictor": FastRCNNPredictor(channels, classes + 1),
    }
    if cfg.masks:  # the same layer4, run once more on the regions that hold objects
        parts |= {
            "mask_roi_pool": MultiScaleRoIAlign(["0"], 14, 0),
            "mask_head": head,
            "mask_predictor": MaskRCNNPredictor(channels, 256, classes + 1),
        }
    return parts
