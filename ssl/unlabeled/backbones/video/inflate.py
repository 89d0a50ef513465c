"""Weights of a 2D ResNet as those of a 3D one (inflation, arXiv 1705.07750)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from unlabeled.backbones.video.r3d import R3D
from unlabeled.errors import UserError

_COUNTER = "num_batches_tracked"


def inflate(network: R3D, weights: Mapping[str, Tensor]) -> None:
    """Load the weights of a 2D ResNet under torchvision's and timm's names, without classifier, into `network`.

    A kernel over t frames is the 2D one t times, divided by t: away from a clip's ends, equal frames then give what the
    2D network gives for one of them. Raises UserError, with the first weight that differs, for another network.
    """
    own = network.state_dict()
    for name in dict.fromkeys([*own, *weights]):
        if name.endswith(_COUNTER):  # of BatchNorm; older files have none
            continue
        wanted, given = (list(x.shape) if x is not None else None for x in (own.get(name), weights.get(name)))
        if wanted is not None and len(wanted) == 5:
            wanted = wanted[:2] + wanted[3:]
        if wanted != given:
            raise UserError(f"these weights cannot be inflated: '{name}' is {given or 'absent'} in them, and "
                            f"{wanted or 'absent'} in the 3D network. It takes those of a plain ResNet with "
                            "bottlenecks, of the same depth and width, without classifier")
    network.load_state_dict({name: _over_time(weights.get(name, value), value) for name, value in own.items()})


def _over_time(weight: Tensor, like: Tensor) -> Tensor:
    return weight if weight.ndim == like.ndim else weight.unsqueeze(2).expand_as(like) / like.shape[2]
