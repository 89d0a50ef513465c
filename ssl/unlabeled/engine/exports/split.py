"""A classifier network parted into what gives its last map and the linear layer behind the mean of it.

What such a layer says of the mean of a map is the mean of what it says of the cells (arXiv 2101.05022 section 3.1), so
that a network of this form has opinions about places, though it was trained on whole images.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from unlabeled.backbones.maps import maps
from unlabeled.backbones.sizes import own_size, try_image
from unlabeled.backbones.torchvision_networks import give_map
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

    network: of timm, of torchvision, or a classifier on such a backbone; it is used, not copied. Checks on
    random images that the mean over the cells of what the layer says of them is the logits. Raises UserError, with the
    reason, for a network of another form; name: what it is called there.
    """
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        with torch.no_grad(), full_precision(next(network.parameters()).device):
            return _split(network, name)
    finally:
        for module in training:
            module.training = True


def _split(network: nn.Module, name: str) -> tuple[Maps, nn.Linear]:
    features = Maps(_with_map(network, name))
    x, cells = _cells(network, features, name)
    logits, last = last_linear(network, x)
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise _other_form(name, "it gives no logits [b, C]")
    if last is None:
        raise _other_form(name, "its logits are not what one linear layer gives")
    wide = f"its map has {cells.shape[1]} channels, its classifier reads {last.linear.in_features} numbers"
    if cells.shape[1] != last.linear.in_features:
        raise _other_form(name, f"further layers stand between its map and its classifier ({wide})")
    of_cells = last.linear(cells.movedim(1, -1)).mean((1, 2))
    if not (_close(cells.mean((2, 3)), last.vectors) and _close(of_cells, logits)):
        raise _other_form(name, _between(network))
    return features, last.linear


class Call(NamedTuple):
    """A linear layer as it was called: vectors [b, D] -> output [b, C]."""

    linear: nn.Linear
    vectors: Tensor
    output: Tensor


def _cells(network: nn.Module, features: Maps, name: str) -> tuple[Tensor, Tensor]:
    """Return random images and their maps, of more than one cell: the mean of one is also its largest."""
    own, problem = own_size(network), ""
    like = next(network.parameters())
    for side in (own,) if own else _SIDES:
        if not (problem := try_image(network, side)[1]):
            x = torch.rand(_IMAGES, 3, side, side, generator=torch.Generator().manual_seed(0)).to(like)
            try:
                cells: Tensor = features(x)
            except UserError as error:
                raise _other_form(name, "it gives tokens and no map of places") from error
            if cells.shape[2] * cells.shape[3] > 1:
                return x, cells
            problem = "its map has one cell"
    raise _other_form(name, problem)


def last_linear(network: nn.Module, x: Tensor) -> tuple[Any, Call | None]:
    """Return what the network gives for images x [b, 3, S, S], and its last linear layer as it was called.

    None for the layer if none, on one vector per image, gives what the network gives.
    """
    calls: list[Call] = []

    def keep(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if inputs[0].ndim == 2:
            calls.append(Call(module, inputs[0], output))

    handles = [module.register_forward_hook(keep) for module in network.modules() if isinstance(module, nn.Linear)]
    try:
        given = network(x)
    finally:
        for handle in handles:
            handle.remove()
    found = (call for call in reversed(calls) if isinstance(given, Tensor) and _close(call.output, given))
    return given, next(found, None)


def _with_map(network: nn.Module, name: str) -> nn.Module:
    """Return the outermost module that gives a map of the images: the network, or the backbone of a classifier."""
    inner = [network, *network.children()]
    for module in inner:
        give_map(module)
    found = next((module for module in inner if hasattr(module, "forward_features")), None)
    if found is None:
        raise _other_form(name, "it has no feature map")
    return found


def _between(network: nn.Module) -> str:
    pool = next((module.pool_type for module in network.modules() if hasattr(module, "pool_type")), "avg")
    if pool != "avg":
        return f"it pools its map by '{pool}' and not by the mean"
    return "what stands between its map and its classifier is more than the mean over places (a norm, an activation)"


def _close(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool((one - other).abs().max() <= _CLOSE * other.abs().max())


def _other_form(name: str, reason: str) -> UserError:
    return UserError(f"{name} cannot tell of places: {reason}. It takes the mean of a map followed by one linear "
                     "layer, as ResNets and DenseNets have")
