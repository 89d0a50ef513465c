"""What methods that train a classifier share: what they read, the network with its linear layer, what they hand out.
"""

from __future__ import annotations

import copy

from torch import Tensor, nn

from unlabeled.augment import geometry
from unlabeled.config.augment import Clip, Crop
from unlabeled.data.batch import Stream
from unlabeled.data.clips import RandomClip
from unlabeled.methods.base import BackboneModule, Export, Input, width_of


def labelled(crop: Crop, clip: Clip | None) -> Stream:
    """Return the stream of one crop of every image with its label, or of one clip that starts anywhere in a video."""
    return Stream((geometry.build(crop),), labels=True, clips=None if clip is None else RandomClip.of(clip))


class Classifier(nn.Module):
    """Network and linear classifier, which starts at zero: [b, 3, S, S] or [b, 3, T, S, S] -> logits [b, classes].

    dropout: probability with which a number of the features is left out in training.
    """

    def __init__(self, network: BackboneModule, classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.network = network
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(width_of(network), classes)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.linear(self.dropout(self.network(x)))
        return logits

    def exports(self, image: Input) -> dict[str, Export]:
        """Return the classifier, and the network without its linear layer, for images of this kind."""

        def classifier() -> nn.Module:
            return copy.deepcopy(self).eval()

        def network() -> nn.Module:
            return copy.deepcopy(self.network).eval()

        return {"classifier": Export(classifier, "logits", image), "backbone": Export(network, "vector", image)}
