"""RotNet's AlexNet with BatchNorm for 224-pixel images (arXiv 1803.07728 section 4.2, its code).

One column, 64-192-384-256-256 channels, no dropout, no local response normalisation. `convK` ends in its ReLU: the
paper's conv K features are taken there, before the pool that follows.
"""

from __future__ import annotations

from torch import Tensor, nn

from unlabeled.config.recipe import Backbone
from unlabeled.errors import UserError


class AlexNetBN(nn.Module):
    """Five convolutions and two hidden layers: [b, 3, 224, 224] -> [b, 4096]."""

    def __init__(self) -> None:
        super().__init__()
        self.num_features = 4096
        self.conv1 = _unit(3, 64, 11, stride=4, padding=2)
        self.pool1 = nn.MaxPool2d(3, 2)
        self.conv2 = _unit(64, 192, 5, padding=2)
        self.pool2 = nn.MaxPool2d(3, 2)
        self.conv3 = _unit(192, 384, 3, padding=1)
        self.conv4 = _unit(384, 256, 3, padding=1)
        self.conv5 = _unit(256, 256, 3, padding=1)
        self.pool5 = nn.MaxPool2d(3, 2)
        self.fc_block = nn.Sequential(nn.Flatten(), *_hidden(256 * 6 * 6, 4096), *_hidden(4096, 4096))
        channels, reductions = (64, 192, 384, 256, 256), (4, 8, 16, 16, 16)
        self.feature_info = [
            {"num_chs": c, "reduction": r, "module": f"conv{number}"}
            for number, (c, r) in enumerate(zip(channels, reductions, strict=True), 1)
        ]

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the map of conv5: [b, 3, 224, 224] -> [b, 256, 13, 13]."""
        x = self.conv2(self.pool1(self.conv1(x)))
        return self.conv5(self.conv4(self.conv3(self.pool2(x))))

    def forward(self, x: Tensor) -> Tensor:
        """Return the second hidden layer: [b, 4096]. Raises UserError for images of another size."""
        pooled = self.pool5(self.forward_features(x))
        if pooled.shape[2:] != (6, 6):
            raise UserError(f"backbone 'alexnet_bn' takes images of 223 to 254 pixels, given {tuple(x.shape[2:])}")
        return self.fc_block(pooled)


def build_alexnet(cfg: Backbone) -> AlexNetBN:
    """Build the network with torch's own initial weights, which the published code uses."""
    return AlexNetBN()


def _unit(channels: int, filters: int, kernel: int, stride: int = 1, padding: int = 0) -> nn.Sequential:
    convolution = nn.Conv2d(channels, filters, kernel, stride, padding)
    return nn.Sequential(convolution, nn.BatchNorm2d(filters), nn.ReLU(inplace=True))


def _hidden(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU(inplace=True)
