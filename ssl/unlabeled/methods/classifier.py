"""What methods that train a classifier share: the network with its linear layer, and what they hand out of it."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from unlabeled.methods.base import BackboneModule, Export, Input, width_of


class Classifier(nn.Module):
    """Network and linear classifier, which starts at zero: [b, 3, S, S] -> logits [b, classes]."""

    def __init__(self, network: BackboneModule, classes: int) -> None:
        super().__init__()
        self.network = network
        self.linear = nn.Linear(width_of(network), classes)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.linear(self.network(x))
        return logits

    def exports(self, image: Input) -> dict[str, Export]:
        """Return the classifier, and the network without its linear layer, for images of this kind."""

        def classifier() -> nn.Module:
            return copy.deepcopy(self).eval()

        def network() -> nn.Module:
            return copy.deepcopy(self.network).eval()

        return {"classifier": Export(classifier, "logits", image), "backbone": Export(network, "vector", image)}
