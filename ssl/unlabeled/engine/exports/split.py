"""A classifier network parted into what gives its last map and the linear layer behind the mean of it.

What such a layer says of the mean of a map is the mean of what it says of the cells (arXiv 2101.05022 section 3.1), so
that a network of this form has opinions about places, though it was trained on whole images.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from unlabeled.backbones.maps import maps
from unlabeled.backbones.sizes import own_size, try_image
from unlabeled.errors import UserError
from unlabeled.ops.precision import full_precision

_CLOSE = 1e-4  # of the largest logit
_SIDES = (64, 96, 160, 224)  # of the random images, in pixels: the smallest that the network takes and maps to places
_IMAGES = 3


class Maps(nn.Module):
    """The last map of a network: images [b, 3, S, S] -> [b, D, M, M]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Return the map."""
        return maps(self.network, x)[-1]


def split_classifier(network: nn.Module, *, name: str = "the network") -> tuple[Maps, nn.Linear]:
    """Part a network [b, 3, S, S] -> logits [b, C] into its map [b, D, M, M] and its linear layer D -> C.

    network: of timm, of torchvision, or a classifier on a backbone of this package; it is used, not copied. Checks on
    random images that the mean over the cells of what the layer says of them is the logits. Raises UserError, with the
    reason, for a network of another form; name: what it is called there.
    """
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        with torch.no_grad(), full_precision():
            return _split(network, name)
    finally:
        for module in training:
            module.training = True


def _split(network: nn.Module, name: str) -> tuple[Maps, nn.Linear]:
    x, logits, calls = _traced(network, name)
    last = next((linear for linear, _, output in reversed(calls) if _close(output, logits)), None)
    if last is None:
        raise _other_form(name, "its logits are not what a linear layer gives")
    features = Maps(_with_map(network, name))
    try:
        cells = features(x)
    except UserError as error:
        raise _other_form(name, f"it has no feature map ({error})") from error
    if cells.shape[1] == last.in_features:
        if _close(last(cells.movedim(1, -1)).mean((1, 2)), logits):
            return features, last
        raise _other_form(name, _reason(network))
    between = sum(linear is not last for linear, _, _ in calls)
    raise _other_form(name, f"its map has {cells.shape[1]} channels and its classifier reads {last.in_features} numbers: "
                      + ("other layers stand between them" if not between else "several linear layers follow the map"))


def _traced(network: nn.Module, name: str) -> tuple[Tensor, Tensor, list[tuple[nn.Linear, Tensor, Tensor]]]:
    """Return random images, their logits, and the calls of linear layers on vectors: layer, input, output."""
    own = own_size(network)
    sides = (own,) if own else _SIDES
    side = next((side for side in sides if not try_image(network, side)[1]), None)
    if side is None:
        raise UserError(f"{name} takes no images of {' or '.join(map(str, sides))} pixels: {try_image(network, sides[-1])[1]}")
    like = next(network.parameters())
    x = torch.rand(_IMAGES, 3, side, side, generator=torch.Generator().manual_seed(0)).to(like)
    calls: list[tuple[nn.Linear, Tensor, Tensor]] = []

    def keep(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if inputs[0].ndim == 2:
            calls.append((module, inputs[0], output))

    handles = [module.register_forward_hook(keep) for module in network.modules() if isinstance(module, nn.Linear)]
    try:
        logits = network(x)
    finally:
        for handle in handles:
            handle.remove()
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise _other_form(name, "it gives no logits [b, C]")
    return x, logits, calls


def _with_map(network: nn.Module, name: str) -> nn.Module:
    """Return the outermost module that gives a map of the images: the network, or the backbone of a classifier."""
    inner = [network, *(child for child in network.children() if hasattr(child, "forward_features"))]
    found = next((module for module in inner if hasattr(module, "forward_features")), None)
    if found is None:
        raise _other_form(name, "it has no feature map")
    return found


def _reason(network: nn.Module) -> str:
    pool = getattr(getattr(network, "global_pool", None) or getattr(getattr(network, "head", None), "global_pool", None),
                   "pool_type", "avg")
    if pool != "avg":
        return f"it pools its map by '{pool}' and not by the mean"
    return "what stands between its map and its classifier is more than the mean over places (a norm, an activation)"


def _close(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool((one - other).abs().max() <= _CLOSE * other.abs().max())


def _other_form(name: str, reason: str) -> UserError:
    return UserError(f"{name} cannot tell of places: {reason}. It takes the mean of a map followed by one linear layer, as "
                     "ResNets and DenseNets have")
