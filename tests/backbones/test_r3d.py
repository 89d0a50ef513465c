"""R3D: counts of parameters, temporal kernels, shapes and cost of the published network."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from unlabeled.backbones.build import build_backbone
from unlabeled.backbones.video.r3d import lecun_normal
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


@pytest.mark.parametrize(("name", "depths"), [("r3d50", (3, 4, 6, 3)), ("r3d101", (3, 4, 23, 3)),
                                              ("r3d152", (3, 8, 36, 3))])
def test_blocks_of_all_depths(name, depths):
    network = meta(name=name)
    stages = [network.layer1, network.layer2, network.layer3, network.layer4]
    assert tuple(map(len, stages)) == depths
    assert (network.maxpool.kernel_size, network.maxpool.stride) == ((1, 3, 3), (1, 2, 2))
    for number, stage in enumerate(stages):
        for place, block in enumerate(stage):
            stride = (1, 2, 2) if number and not place else (1, 1, 1)
            assert block.conv1.kernel_size == ((3, 1, 1) if number > 1 else (1, 1, 1))  # of every block
            assert block.conv1.stride == block.conv3.stride == (1, 1, 1) and block.conv2.stride == stride
            assert (block.downsample is None) == bool(place)
            assert place or (block.downsample[0].kernel_size, block.downsample[0].stride) == ((1, 1, 1), stride)


@pytest.mark.parametrize(("frames", "size", "cost"), [(16, 224, 45.5), (32, 224, 91.0), (32, 256, 118.9)])
def test_cost_of_r3d50_in_billions_of_multiply_adds(frames, size, cost):
    with FlopCounterMode(display=False) as counter:
        meta(name="r3d50")(torch.empty(1, 3, frames, size, size, device="meta"))
    assert counter.get_total_flops() / 2e9 == pytest.approx(cost, abs=0.06)


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
