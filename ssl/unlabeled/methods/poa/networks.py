"""The networks of POA: an elastic backbone and several heads, each with prototypes of its own number.

arXiv 2408.01031 section 3.3.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlabeled.backbones.elastic.layers import Linear
from unlabeled.backbones.elastic.network import ElasticNetwork
from unlabeled.backbones.elastic.random_depth import Depth
from unlabeled.backbones.elastic.sizes import Size
from unlabeled.methods.poa.config import POAConfig
from unlabeled.methods.poa.views import Views, hidden_tokens
from unlabeled.ops.machine.activations import branch
from unlabeled.ops.precision import at_least_float32


class Prototypes(nn.Module):
    """Products with unit vectors, each times a gain: [n, d] -> [n, K]."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.direction = nn.Parameter(torch.empty(count, width))
        self.gain = nn.Parameter(torch.ones(count, 1))
        nn.init.uniform_(self.direction, -(width**-0.5), width**-0.5)  # torch's own of a linear layer

    def forward(self, x: Tensor) -> Tensor:
        """Return the products."""
        return F.linear(x, self.gain * F.normalize(self.direction, dim=1))


class Head(nn.Module):
    """Three layers, a unit vector, and prototypes: [n, D] of a sub-network's width -> logits [n, K]."""

    def __init__(self, width: int, hidden: int, bottleneck: int, prototypes: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            Linear(width, hidden, fixed=True), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(),
            nn.Linear(hidden, bottleneck),
        )  # fmt: skip
        self.prototypes = Prototypes(bottleneck, prototypes)
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.prototypes(F.normalize(at_least_float32(self.mlp(x)), dim=1))
        return logits


class Logits(NamedTuple):
    """Of one head, for what `Views` has: [2 b, K], [V b, K], and of the n hidden patches [n, K]."""

    crops: Tensor
    local: Tensor
    patches: Tensor


class Opinion(NamedTuple):
    """What a student says of views: class tokens of the global crops [2 b, D], and the logits of every head."""

    vectors: Tensor
    heads: list[Logits]


class Network(nn.Module):
    """Backbone and heads."""

    def __init__(self, backbone: ElasticNetwork, cfg: POAConfig) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = nn.ModuleList(
            Head(backbone.num_features, cfg.hidden, cfg.bottleneck, count) for count in cfg.prototypes
        )

    def forward(self, views: Views, size: Size, depth: Callable[[int], Depth | None]) -> Opinion:
        """Return what the sub-network of a size says; depth: draws the random depth of a call of so many images."""
        crops = self.backbone.features(views.crops, size, views.masks, depth(len(views.crops)))
        parts = [crops.vector, crops.vector[:0], hidden_tokens(crops.tokens, views.hidden)]
        if len(views.local):
            parts[1] = self.backbone.features(views.local, size, None, depth(len(views.local))).vector
        rows, lengths = torch.cat(parts), [len(part) for part in parts]
        with branch("heads"):
            return Opinion(crops.vector, [Logits(*head(rows).split(lengths)) for head in self.heads])
