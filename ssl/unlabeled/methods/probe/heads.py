"""Classifiers on features, as RotNet's authors use them (arXiv 1803.07728, published code)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlabeled.backbones.nin import WIDTH, third_block
from unlabeled.errors import UserError
from unlabeled.methods.probe.config import ConvHead, LinearHead, MlpHead


class Unit(nn.Module):
    """Vectors [b, C], scaled to length 1 in float32 at least; a vector of zeros stays."""

    def forward(self, x: Tensor) -> Tensor:
        """Return them."""
        return F.normalize(x if x.dtype == torch.float64 else x.float(), dim=1)


def build_head(cfg: LinearHead | MlpHead | ConvHead, shape: tuple[int, ...], classes: int) -> nn.Sequential:
    """Build a classifier for features [b, *shape], shape (C,) or (C, H, W) -> logits [b, classes].

    Raises UserError if it needs a map and the features are vectors.
    """
    if len(shape) == 1 and (cfg.kind == "conv" or (cfg.kind == "mlp" and (cfg.conv or cfg.max_pool))
                            or (cfg.kind == "linear" and cfg.pool)):
        raise UserError(f"a {cfg.kind} head with these options needs a map, but '{cfg.block or 'the output'}' gives "
                        "vectors; name an inner block with 'block'")
    match cfg:
        case LinearHead():
            return linear_head(shape, classes, cfg.pool, cfg.pool_type, norm=cfg.norm, normalize=cfg.normalize)
        case MlpHead():
            return mlp_head(shape, classes, cfg.width, cfg.conv, max_pool=cfg.max_pool)
        case ConvHead():
            return conv_head(shape[0], classes)


def linear_head(
    shape: tuple[int, ...], classes: int, pool: int | None, pool_type: str, *, norm: bool, normalize: bool = False
) -> nn.Sequential:
    """Pool a map to a grid (None: its mean), normalise, flatten, classify. A plain one starts at zero.

    norm: by BatchNorm. normalize: every image's flat features to length 1 (CVRL's linear evaluation, arXiv 2008.03800).
    """
    layers: list[nn.Module] = []
    channels, side = shape[0], 1
    if len(shape) == 3:
        side = pool or 1
        layers.append(nn.AdaptiveMaxPool2d(side) if pool and pool_type == "max" else nn.AdaptiveAvgPool2d(side))
        layers += [nn.BatchNorm2d(channels, affine=False)] if norm else []
    elif norm:
        layers.append(nn.BatchNorm1d(channels, affine=False))
    classifier = nn.Linear(channels * side**2, classes)
    head = nn.Sequential(*layers, nn.Flatten(), *([Unit()] if normalize else []), classifier)
    if pool:
        return initialise(head)
    nn.init.zeros_(classifier.weight)
    nn.init.zeros_(classifier.bias)
    return head


def mlp_head(
    shape: tuple[int, ...], classes: int, width: int | None = None, conv: int | None = None, *, max_pool: bool = False
) -> nn.Sequential:
    """Two hidden layers as wide as 20 per class, at most 2048; before them perhaps a convolution and a max-pool."""
    layers: list[nn.Module] = []
    if conv:
        layers += [nn.Conv2d(shape[0], conv, 3, padding=1), nn.BatchNorm2d(conv), nn.ReLU()]
        shape = (conv, *shape[1:])
    if max_pool:
        layers.append(nn.MaxPool2d(3, 2))
        shape = (shape[0], *((side - 3) // 2 + 1 for side in shape[1:]))
    width = width or min(20 * classes, 2048)
    layers.append(nn.Flatten())
    for inputs in (math.prod(shape), width):
        layers += [nn.Linear(inputs, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()]
    return initialise(nn.Sequential(*layers, nn.Linear(width, classes)))


def conv_head(channels: int, classes: int) -> nn.Sequential:
    """The third block of RotNet's Network in Network (3x3, 1x1, 1x1), global average pool, linear."""
    block = third_block(channels)
    return initialise(nn.Sequential(*block, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, classes)))


def initialise(head: nn.Sequential) -> nn.Sequential:
    """Draw convolutions from N(0, 2 / (k^2 C_out)) and linear weights from N(0, 2 / fan_out), biases of these zero."""
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=math.sqrt(2 / (math.prod(module.kernel_size) * module.out_channels)))
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=math.sqrt(2 / module.out_features))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return head


def feature_shape(features: Tensor) -> tuple[int, ...]:
    """Return (C,) or (C, H, W) of features [b, ...]; tokens [b, T, C] count as (C,), for they are averaged."""
    return (features.shape[2],) if features.ndim == 3 else tuple(features.shape[1:])
