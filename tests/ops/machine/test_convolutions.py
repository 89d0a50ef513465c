import pytest
import torch
from torch import nn

from unlabeled.backbones.build import build_backbone
from unlabeled.config.recipe import Backbone
from unlabeled.ops.machine.convolutions import StridedPointwise, avoid_broken_kernels


@pytest.mark.parametrize(("channels", "side"), [(4, 56), (8, 56), (8, 57), (3, 24)])
def test_gradients_of_narrow_strided_convolutions_are_right_with_channels_last(channels: int, side: int) -> None:
    # plain nn.Conv2d: wrong numbers or a dead process, on processors with AVX-512
    torch.manual_seed(0)
    narrow = nn.Sequential(nn.Conv2d(channels, 16, 1, stride=2, bias=True))
    avoid_broken_kernels(narrow)
    narrow.to(memory_format=torch.channels_last)
    x = torch.randn(4, channels, side, side).contiguous(memory_format=torch.channels_last)
    exact = nn.Conv2d(channels, 16, 1, stride=2).double()
    exact.load_state_dict(narrow[0].state_dict())
    for network, images in ((narrow, x), (exact, x.double())):
        for _ in range(3):
            network.zero_grad()
            network(images).square().mean().backward()
    torch.testing.assert_close(narrow(x).double(), exact(x.double()), rtol=1e-5, atol=1e-5)
    for name, parameter in exact.named_parameters():
        torch.testing.assert_close(narrow[0].get_parameter(name).grad.double(), parameter.grad, rtol=1e-4, atol=1e-6)


def test_only_what_is_affected_is_turned() -> None:
    model = nn.Sequential(
        nn.Conv2d(16, 32, 1, stride=2),
        nn.Conv2d(8, 16, 3, stride=2),
        nn.Conv2d(8, 16, 1),
        nn.Conv2d(32, 32, 1, stride=2, groups=4),
    )
    avoid_broken_kernels(model)
    assert [type(module) for module in model] == [nn.Conv2d] * 3 + [StridedPointwise]


def test_narrow_backbones_are_built_without_them() -> None:
    def turned(width: float) -> list[str]:
        model = build_backbone(Backbone(name="resnet18", width=width, stem="cifar"))
        return [name for name, module in model.named_modules() if isinstance(module, StridedPointwise)]

    assert turned(0.125) == ["layer2.0.downsample.0"]
    assert turned(0.25) == []
