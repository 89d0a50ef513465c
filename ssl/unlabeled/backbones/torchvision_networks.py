"""torchvision's classification networks as backbones: without their classifier, with `num_features` and their map."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision import models

from unlabeled.errors import UserError, did_you_mean, nearest

_ODD = {"googlenet": "has classifiers at inner places too", "inception_v3": "has a classifier at an inner place too",
        "squeezenet1_0": "ends in a convolution", "squeezenet1_1": "ends in a convolution"}

# class -> the last map of images, which the network's own forward pools
_MAPS: dict[type[nn.Module], Callable[[Any, Tensor], Tensor]] = {
    models.DenseNet: lambda network, x: F.relu(network.features(x)),
    models.ConvNeXt: lambda network, x: network.features(x),
    models.EfficientNet: lambda network, x: network.features(x),
    models.MobileNetV2: lambda network, x: network.features(x),
    models.MobileNetV3: lambda network, x: network.features(x),
    models.MNASNet: lambda network, x: network.layers(x),
    models.ResNet: lambda network, x: network.layer4(network.layer3(network.layer2(network.layer1(network.maxpool(
        network.relu(network.bn1(network.conv1(x)))))))),
    models.RegNet: lambda network, x: network.trunk_output(network.stem(x)),
    models.SwinTransformer: lambda network, x: network.permute(network.norm(network.features(x))),
    models.ShuffleNetV2: lambda network, x: network.conv5(network.stage4(network.stage3(network.stage2(
        network.maxpool(network.conv1(x)))))),
}  # fmt: skip


def refuse_unknown(name: str) -> None:
    """Raise UserError unless torchvision has a classification network of that name that can be a backbone."""
    known = models.list_models(module=models)
    if name not in known:
        question = did_you_mean(nearest(name, known, 3), "torchvision.models.list_models() names them.")
        raise UserError(f"torchvision has no classification network '{name}'.{question}")
    if name in _ODD:
        raise UserError(f"torchvision's {name} {_ODD[name]}, and is no backbone here; take another network")


def build_torchvision(name: str, options: dict[str, Any], classes: int = 0) -> nn.Module:
    """Build a network with random weights: [b, 3, S, S] -> [b, num_features], or logits [b, classes].

    options: of torchvision's constructor. Raises UserError for an unknown name.
    """
    refuse_unknown(name)
    network = models.get_model(name, weights=None, **options)
    place = classifier_of(network)
    linear = network.get_submodule(place)
    network.num_features = linear.in_features
    bias = linear.bias is not None
    network.set_submodule(place, nn.Linear(linear.in_features, classes, bias) if classes else nn.Identity())
    _leave_out_dropout(network, place, bool(classes))
    give_map(network)
    return network


def give_map(network: Any) -> None:
    """Give a network of torchvision the method `forward_features` of timm's: images [b, 3, S, S] -> [b, C, h, w].

    One that makes no map is left as it is.
    """
    for kind, features in _MAPS.items():
        if isinstance(network, kind) and not hasattr(network, "forward_features"):
            vars(network)["forward_features"] = MethodType(features, network)


def classifier_of(network: nn.Module) -> str:
    """Return the place of the last linear layer, which is the classifier."""
    return [name for name, module in network.named_modules() if isinstance(module, nn.Linear)][-1]


def _leave_out_dropout(network: nn.Module, place: str, classes: bool) -> None:
    """Take away the dropout before a classifier that is not there: features have none."""
    outer, _, last = place.rpartition(".")
    before = f"{outer}.{int(last) - 1}" if last.isdigit() and int(last) else ""
    if before and not classes and isinstance(network.get_submodule(before), nn.Dropout):
        network.set_submodule(before, nn.Identity())


def torchvision_lines(name: str, options: str, loading: str) -> str:
    """Return the Python lines that build the network without its classifier, for a user without this package."""
    with torch.device("meta"):
        place = classifier_of(models.get_model(name, weights=None))
    return (
        f"import torch, torchvision\nfrom safetensors.torch import load_file\n"
        f'model = torchvision.models.get_model("{name}", weights=None{options})\n'
        f'model.set_submodule("{place}", torch.nn.Identity())\n{loading}'
    )
