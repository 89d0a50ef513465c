"""Strided 1x1 convolutions of few channels, kept away from a kernel that is broken in oneDNN.

With channels last, its backward pass for the weights writes past its workspace where a vector register holds more
floats than the input has channels: 16 with AVX-512, 8 with AVX2. The gradients are then wrong, or the process dies
(uxlfoundation/oneDNN issue 6035; seen with torch 2.14.1). Narrow ResNets have such a shortcut.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

_VECTOR = 16  # floats in the widest register


class StridedPointwise(nn.Conv2d):
    """A 1x1 convolution that picks its places first and then has no stride: [b, C, H, W] -> [b, D, H/s, W/s]."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the same as Conv2d."""
        down, across = self.stride
        return F.conv2d(x[:, :, ::down, ::across], self.weight, self.bias, groups=self.groups)


def avoid_broken_kernels(model: nn.Module) -> None:
    """Turn the affected convolutions of `model` into `StridedPointwise`, in place; names and weights stay."""
    for module in model.modules():
        if (
            type(module) is nn.Conv2d
            and module.kernel_size == (1, 1)
            and module.padding == (0, 0)
            and max(module.stride) > 1
            and module.in_channels // module.groups < _VECTOR
        ):
            module.__class__ = StridedPointwise
