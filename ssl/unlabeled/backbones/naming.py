"""A backbone's weights under the names that torchvision's, timm's and detectron2's own ResNet classes read.

timm's ResNets carry torchvision's names already; detectron2's differ (arXiv 2011.10043, its code's conversion).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn
from torchvision.models import resnet

from unlabeled.errors import UserError

_TO_DETECTRON2 = (
    (re.compile(r"^(?!layer)"), "stem."),
    (re.compile(r"^layer([1-4])\."), lambda found: f"res{int(found[1]) + 1}."),
    (re.compile(r"\bbn([1-3])\."), r"conv\1.norm."),
    (re.compile(r"\bdownsample\.0\."), "shortcut."),
    (re.compile(r"\bdownsample\.1\."), "shortcut.norm."),
)
_FROM_DETECTRON2 = (
    (re.compile(r"^stem\."), ""),
    (re.compile(r"^res([2-5])\."), lambda found: f"layer{int(found[1]) - 1}."),
    (re.compile(r"\bconv([1-3])\.norm\."), r"bn\1."),
    (re.compile(r"\bshortcut\.norm\."), "downsample.1."),
    (re.compile(r"\bshortcut\."), "downsample.0."),
)


def to_detectron2(name: str) -> str:
    """Return detectron2's name of a ResNet's weight: layer1.0.bn2.weight -> res2.0.conv2.norm.weight."""
    return _renamed(name, _TO_DETECTRON2)


def from_detectron2(name: str) -> str:
    """Return the name that `to_detectron2` was given."""
    return _renamed(name, _FROM_DETECTRON2)


def _renamed(name: str, rules: tuple[tuple[re.Pattern[str], Any], ...]) -> str:
    for pattern, by in rules:
        name = pattern.sub(by, name)
    return name


@dataclass(frozen=True)
class Shape:
    """What tells the plain ResNets apart: the kind of block, blocks per stage, groups and width of a group."""

    block: str
    layers: list[int]
    groups: int
    width: int

    @property
    def depth(self) -> int:
        """The number in the network's name."""
        return 2 + (2 if self.block == "BasicBlock" else 3) * sum(self.layers)


def shape_of(network: nn.Module) -> Shape:
    """Return the shape of a ResNet. Raises UserError for any other network."""
    stages: list[Any] = [getattr(network, f"layer{i}") for i in range(1, 5)] if type(network) is ResNet else []
    first = stages[0][0] if stages else None
    if first is None or not isinstance(first.conv2, nn.Conv2d):
        raise UserError("torchvision's and detectron2's class is the plain ResNet; this network is "
                        f"a {type(network).__name__}{' with selective kernels or the like' if stages else ''}")
    # what torchvision calls width_per_group is the width of a block of the first stage, per group
    groups = first.conv2.groups
    name = "BasicBlock" if isinstance(first, BasicBlock) else "Bottleneck"
    return Shape(name, [len(stage) for stage in stages], groups, first.conv2.out_channels // groups)


def torchvision_network(shape: Shape) -> nn.Module:
    """Build torchvision's ResNet of that shape, without classifier."""
    network = resnet.ResNet(getattr(resnet, shape.block), shape.layers, **_torchvision_options(shape))
    network.fc = nn.Identity()
    return network


def torchvision_lines(shape: Shape) -> str:
    """Return the Python lines that do what `torchvision_network` does, for a user without this package, as `model`."""
    options = "".join(f", {name}={value}" for name, value in _torchvision_options(shape).items())
    return (
        f"import torch\nfrom torchvision.models.resnet import {shape.block}, ResNet\n"
        f"model = ResNet({shape.block}, {shape.layers}{options})\n"
        "model.fc = torch.nn.Identity()"
    )


def _torchvision_options(shape: Shape) -> dict[str, int]:
    if (shape.groups, shape.width) == (1, 64) or shape.block == "BasicBlock":  # its BasicBlock has no other
        return {}
    return {"groups": shape.groups, "width_per_group": shape.width}


def refuse_other_shapes(state: Mapping[str, Tensor], theirs: Mapping[str, Tensor], library: str) -> None:
    """Raise UserError, with the first weight that differs, unless `state` has the names and shapes of `theirs`."""
    ours = {name: tuple(value.shape) for name, value in state.items()}
    others = {name: tuple(value.shape) for name, value in theirs.items()}
    odd = next((name for name in [*ours, *others] if ours.get(name) != others.get(name)), None)
    if odd is not None:
        raise UserError(
            f"{library}'s class cannot hold this network: '{odd}' is {ours.get(odd, 'absent')} here and "
            f"{others.get(odd, 'absent')} there. It has the plain 7 x 7 stem of 64 channels (backbone.stem=imagenet, "
            "width=1)"
        )


@torch.no_grad()
def largest_difference(one: nn.Module, other: nn.Module, size: int) -> float:
    """Return the largest difference of the features of two networks on random images of `size`, by the largest feature.

    They differ where two classes carry the same names and compute otherwise (another activation or pool).
    """
    x = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    ours, theirs = one(x), other(x)
    return float((ours - theirs).abs().max() / ours.abs().max().clamp_min(1e-12))
