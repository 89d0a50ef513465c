"""R3D: counts of parameters, temporal kernels and shapes of the published network; inflation of 2D weights."""

from __future__ import annotations

import math

import pytest
import torch
from timm.models.resnet import Bottleneck, ResNet
from torch import nn

from unlabeled.backbones.build import build_backbone
from unlabeled.backbones.video.inflate import inflate
from unlabeled.backbones.video.r3d import R3D, lecun_normal
from unlabeled.config.recipe import Backbone
from unlabeled.errors import UserError

# the published network at width 1, 2 and 4
COUNTS = [("r3d50", 1, 31_672_128), ("r3d50", 2, 126_488_192), ("r3d50", 4, 505_552_128), ("r3d101", 1, 59_577_152),
          ("r3d152", 1, 82_036_544), ("r3d152", 2, 327_749_248)]  # fmt: skip
STAGES = {"conv1": 47_040, "bn1": 128, "layer1": 215_808, "layer2": 1_219_584, "layer3": 9_981_952,
          "layer4": 20_207_616}  # fmt: skip


def meta(**options) -> nn.Module:
    with torch.device("meta"):
        return build_backbone(Backbone(**options))


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


@pytest.mark.parametrize(("name", "width", "parameters"), COUNTS)
def test_parameters(name, width, parameters):
    network = meta(name=name, width=width)
    assert count(network) == parameters and network.num_features == 2048 * width


def test_stages_of_r3d50():
    network = meta(name="r3d50")
    assert {name: count(getattr(network, name)) for name in STAGES} == STAGES
    layers = [name for name in STAGES if "layer" in name]
    kernels = {name: [block.conv1.kernel_size for block in getattr(network, name)] for name in layers}
    assert network.conv1.kernel_size == (5, 7, 7) and network.conv1.stride == (2, 2, 2)
    assert kernels == {"layer1": [(1, 1, 1)] * 3, "layer2": [(1, 1, 1)] * 4, "layer3": [(3, 1, 1)] * 6,
                       "layer4": [(3, 1, 1)] * 3}
    others = {(m.kernel_size, m.stride[0]) for name, m in network.named_modules()
              if isinstance(m, nn.Conv3d) and not name.endswith("conv1")}
    assert others == {((1, 3, 3), 1), ((1, 1, 1), 1)}  # time is strided in the stem alone
    assert all(m.bias is None for m in network.modules() if isinstance(m, nn.Conv3d))
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm3d)]
    assert all((m.eps, m.momentum) == (1e-5, 0.1) for m in norms)
    tiny = build_backbone(Backbone(name="r3d_tiny"))
    assert all(bool((m.weight == 1).all()) for m in tiny.modules() if isinstance(m, nn.BatchNorm3d))


@pytest.mark.parametrize(("frames", "size", "shape"), [(16, 224, (8, 7, 7)), (32, 256, (16, 8, 8)), (8, 32, (4, 1, 1))])
def test_shapes(frames, size, shape):
    clips = torch.empty(1, 3, frames, size, size, device="meta")
    network = meta(name="r3d50")
    shapes = {}
    for name in ("conv1", "maxpool", "layer1", "layer2", "layer3", "layer4"):
        getattr(network, name).register_forward_hook(
            lambda module, inputs, out, name=name: shapes.update({name: tuple(out.shape[1:])}))
    assert network(clips).shape == (1, 2048)
    assert network.forward_features(clips).shape == (1, 2048, *shape)
    if size == 224:
        assert shapes == {"conv1": (64, 8, 112, 112), "maxpool": (64, 8, 56, 56), "layer1": (256, 8, 56, 56),
                          "layer2": (512, 8, 28, 28), "layer3": (1024, 8, 14, 14), "layer4": (2048, 8, 7, 7)}


def test_an_image_is_a_clip_of_one_frame():
    network = build_backbone(Backbone(name="r3d_tiny")).eval()
    images = torch.rand(2, 3, 40, 40)
    torch.testing.assert_close(network(images), network(images[:, :, None]))


def test_kernels_start_with_variance_one_by_fan_in():
    torch.manual_seed(0)
    weight = torch.empty(512, 64, 3, 3, 3)
    lecun_normal(weight)
    fan_in = 64 * 27
    assert float(weight.var() * fan_in) == pytest.approx(1, abs=0.01)
    assert float(weight.abs().max()) <= 2 / 0.8796 / math.sqrt(fan_in)


def test_recomputed_activations_change_no_gradient():
    torch.manual_seed(0)
    clips, gradients = torch.rand(2, 3, 4, 32, 32), []
    for again in (False, True):
        torch.manual_seed(1)
        network = build_backbone(Backbone(name="r3d_tiny", grad_checkpointing=again))
        network(clips).square().sum().backward()
        gradients.append([p.grad for p in network.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_a_width_that_gives_no_whole_channels_is_refused():
    with pytest.raises(UserError, match=r"width 0.3 gives 19.2 channels in the stem of r3d50; use a multiple"):
        build_backbone(Backbone(name="r3d50", width=0.3))


def flat(channels: int = 4) -> ResNet:
    torch.manual_seed(0)
    network = ResNet(Bottleneck, (1, 1, 1, 1), num_classes=0, channels=tuple(channels << i for i in range(4)))
    network.conv1 = nn.Conv2d(3, channels, 7, 2, 3, bias=False)
    network.bn1 = nn.BatchNorm2d(channels)
    network.layer1[0].conv1 = nn.Conv2d(channels, channels, 1, bias=False)
    network.layer1[0].downsample[0] = nn.Conv2d(channels, 4 * channels, 1, bias=False)
    network.train()
    for _ in range(3):  # so that the norms have statistics
        network(torch.rand(8, 3, 64, 64))
    return network.eval()


def test_an_inflated_network_gives_of_a_still_clip_what_the_flat_one_gives_of_its_frame():
    two, three = flat(), R3D((1, 1, 1, 1), 4).eval()
    inflate(three, two.state_dict())
    images = torch.rand(2, 3, 64, 64)
    clip = images[:, :, None].expand(-1, -1, 24, -1, -1)
    middle = three.forward_features(clip)[:, :, 6]  # away from both ends
    torch.testing.assert_close(middle, two.forward_features(images), rtol=1e-4, atol=1e-5)


def test_weights_of_other_networks_are_not_inflated():
    with pytest.raises(UserError, match=r"'layer1.0.bn1.weight' is \[4\] in them, and \[8\] in the 3D network"):
        state = flat().state_dict() | {"conv1.weight": torch.zeros(8, 3, 7, 7)} | {
            f"bn1.{name}": torch.zeros(8) for name in ("weight", "bias", "running_mean", "running_var")}
        state["layer1.0.conv1.weight"] = torch.zeros(8, 8, 1, 1)
        inflate(R3D((1, 1, 1, 1), 8), state)
    with pytest.raises(UserError, match=r"'layer1.1.conv1.weight' is \[4, 16, 1, 1\] in them, and absent in the 3D"):
        inflate(R3D((1, 1, 1, 1), 4), flat().state_dict() | {"layer1.1.conv1.weight": torch.zeros(4, 16, 1, 1)})
