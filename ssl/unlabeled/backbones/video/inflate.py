"""Weights of a 2D ResNet as those of a 3D one (inflation, arXiv 1705.07750 section 3.1)."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from unlabeled.backbones.naming import largest_difference
from unlabeled.backbones.video.r3d import NETWORKS, R3D
from unlabeled.errors import UserError

_COUNTER = "num_batches_tracked"
_CLOSE = 1e-4  # of the largest feature: thirds of a kernel are rounded
_SIZE = 64  # of the images on which both networks are tried, pixels


def inflate(network: R3D, flat: nn.Module) -> None:
    """Give `network` the weights of a 2D ResNet with torchvision's and timm's names, without classifier.

    A kernel over t frames is the 2D one t times, divided by t; everything else is copied. So a clip of T equal frames
    gives what the 2D network gives for one of them at every step of the last map that no zero from beyond the clip's
    ends reaches: with n blocks whose kernels span time (9 in r3d50), from step 1 + n to ceil(T / 2) - 2 - n, counted
    from 0. Raises UserError, which names the first difference and the cure, for another network.
    """
    if problem := misfit(network, flat):
        raise UserError(problem)
    weights = flat.state_dict()
    network.load_state_dict({name: _over_time(weights.get(name, value), value)
                             for name, value in network.state_dict().items()})
    apart = largest_difference(still(network).eval(), flat, _SIZE)
    if not apart <= _CLOSE:
        raise UserError(f"its tensors are those of a plain ResNet, but its features are {apart:.1g} apart from the "
                        "inflated ones: it computes otherwise (smoothed strides, another activation or pool); take "
                        "weights that were trained in the plain ResNet")


def still(network: R3D) -> R3D:
    """Return a copy that takes one frame for a clip without ends that stands still: kernels are summed over time."""
    summed = copy.deepcopy(network)
    for module in summed.modules():
        if isinstance(module, nn.Conv3d):
            _, rows, columns = module.kernel_size
            module.weight = nn.Parameter(module.weight.detach().sum(2, keepdim=True))
            module.kernel_size, module.padding = (1, rows, columns), (0, rows // 2, columns // 2)
    return summed


def misfit(network: R3D, flat: nn.Module) -> str | None:
    """Return why a 2D network cannot be inflated into `network`, and the cure; None if its tensors fit."""
    stages: list[Any] = [getattr(flat, f"layer{number}", None) for number in range(1, 5)]
    stem: Any = getattr(flat, "conv1", None)
    if stem is None or not all(isinstance(stage, nn.Sequential) and len(stage) for stage in stages):
        return f"it is a {type(flat).__name__}, and only ResNets are inflated: {_takers()}"
    own = [len(getattr(network, f"layer{number}")) for number in range(1, 5)]
    if not hasattr(stages[0][0], "conv3"):
        return f"its blocks have two convolutions, and those of 3D networks three: {_takers()}"
    if not isinstance(stem, nn.Conv2d):
        count = sum(isinstance(module, nn.Conv2d) for module in stem.modules())
        return (f"its deep stem has {count} convolutions, and the 3D network's has one of 7 x 7: take a ResNet with "
                "the plain stem, such as resnet50 in place of resnet50d, or a run without backbone.sk_ratio")
    if stem.kernel_size != network.conv1.kernel_size[1:]:
        rows, columns = stem.kernel_size
        return (f"its stem is a convolution of {rows} x {columns} for small images, and the 3D network's is one of "
                "7 x 7: take a run with backbone.stem=imagenet")
    layers = [len(stage) for stage in stages]
    if layers != own:
        fitting = next((name for name, (depths, _) in NETWORKS.items() if list(depths) == layers), None)
        cure = f"take {fitting}" if fitting else f"no 3D network has its depth: {_takers()}"
        return f"it has {_listed(layers)} blocks in its stages, and the 3D network {_listed(own)}; {cure}"
    if stem.out_channels != network.conv1.out_channels:
        factor = stem.out_channels / network.conv1.out_channels
        return (f"its stem has {stem.out_channels} channels, and the 3D network's {network.conv1.out_channels}; take "
                f"{factor:g} times the backbone.width")
    return _first_other_tensor(network, flat)


def _first_other_tensor(network: R3D, flat: nn.Module) -> str | None:
    own, weights = network.state_dict(), flat.state_dict()
    for name in dict.fromkeys([*own, *weights]):
        if name.endswith(_COUNTER):  # of BatchNorm; older files have none
            continue
        wanted, given = (list(x.shape) if x is not None else None for x in (own.get(name), weights.get(name)))
        if wanted is not None and len(wanted) == 5:
            wanted = wanted[:2] + wanted[3:]
        if wanted != given:
            return (f"'{name}' is {given or 'absent'} in it, and {wanted or 'absent'} in the 3D network: take a plain "
                    f"ResNet, whose blocks have neither groups nor gates and are as wide as published; {_takers()}")
    return None


def _takers() -> str:
    return "r3d50 takes the weights of a resnet50, r3d101 those of a resnet101, r3d152 those of a resnet152"


def _listed(layers: list[int]) -> str:
    return ", ".join(map(str, layers))


def _over_time(weight: Tensor, like: Tensor) -> Tensor:
    return weight if weight.ndim == like.ndim else weight.unsqueeze(2).expand_as(like) / like.shape[2]
