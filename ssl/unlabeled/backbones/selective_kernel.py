"""SimCLRv2's ResNet with selective kernels and ResNet-D stem and shortcuts (arXiv 2006.10029 section 3, its code).

Differs from timm's `skresnet50d` and from arXiv 1903.06586: both streams are 3x3 without dilation and see all input
channels. The poolings have TensorFlow's padding, so that the published numbers are met.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from timm.models.resnet import Bottleneck, ResNet
from torch import Tensor, nn


class SelectiveKernel(nn.Module):
    """Two 3x3 streams mixed by a gate per image and channel: [b, C, H, W] -> [b, filters, H / stride, W / stride].

    The streams are one convolution: LARS scales a tensor as a whole, and the published one is whole.
    """

    def __init__(self, channels: int, filters: int, stride: int, ratio: float) -> None:
        super().__init__()
        squeezed = max(int(filters * ratio), 32)
        self.streams = nn.Conv2d(channels, 2 * filters, 3, stride, 1, bias=False)
        self.streams_bn = nn.BatchNorm2d(2 * filters)
        self.squeeze = nn.Conv2d(filters, squeezed, 1, bias=False)
        self.squeeze_bn = nn.BatchNorm2d(squeezed)
        self.select = nn.Conv2d(squeezed, 2 * filters, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the streams' weighted sum; the two weights of a channel add up to 1."""
        a, b = F.relu(self.streams_bn(self.streams(x)), inplace=True).chunk(2, 1)
        gate = (a + b).mean((2, 3), keepdim=True)
        gate = self.select(F.relu(self.squeeze_bn(self.squeeze(gate)), inplace=True))
        # on a GPU autocast gives the softmax in float32; the large maps stay in their own type
        mix_a, mix_b = gate.unflatten(1, (2, -1)).softmax(1).to(a.dtype).unbind(1)
        return a * mix_a + b * mix_b


class ShortcutPool(nn.Module):
    """2x2 average pool before a shortcut's 1x1 convolution; [b, C, H, W] -> the same with H and W / stride, rounded up.

    stride 1: windows at the bottom and right edge average what lies inside. stride 2: they divide by 4 all the same.
    """

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Return the pooled map."""
        if self.stride == 1:  # torch pads all sides; without the first row and column only bottom and right are left
            return F.avg_pool2d(x, 2, 1, padding=1, count_include_pad=False)[:, :, 1:, 1:]
        return F.avg_pool2d(x, 2, self.stride, ceil_mode=True, divisor_override=4)


class MaxPoolSame(nn.Module):
    """3x3 max-pool of stride 2 with TensorFlow's SAME padding: even sides are padded at the bottom and right only."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the pooled map: [b, C, H, W] -> [b, C, H / 2, W / 2], rounded up."""
        odd = (x.shape[2] % 2, x.shape[3] % 2)
        return F.max_pool2d(x, 3, 2, padding=odd, ceil_mode=True)


class SelectiveKernelBottleneck(Bottleneck):
    """timm's bottleneck with a selective kernel as its 3x3 and without norm and activation behind it."""

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Sequential | None = None,
        *,
        sk_ratio: float,
        **options: Any,
    ) -> None:
        if downsample is not None:
            downsample[0] = ShortcutPool(stride)
        super().__init__(inplanes, planes, stride, downsample, **options)
        self.conv2 = SelectiveKernel(planes, planes, stride, sk_ratio)
        self.bn2, self.act2 = nn.Identity(), nn.Identity()


def selective_kernel_resnet(layers: tuple[int, ...], channels: tuple[int, ...], ratio: float) -> ResNet:
    """Build a ResNet of `layers` blocks with `channels` filters per stage: [b, 3, S, S] -> [b, 4 channels[-1]]."""
    model = ResNet(
        SelectiveKernelBottleneck,
        layers,
        num_classes=0,
        channels=channels,
        stem_type="deep",
        stem_width=channels[0] // 2,
        avg_down=True,
        block_args={"sk_ratio": ratio},
    )
    model.maxpool = MaxPoolSame()
    return model
