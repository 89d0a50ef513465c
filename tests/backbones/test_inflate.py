"""Inflation: where the identity with the 2D network holds, on real depths too, and what is refused with which cure."""

from __future__ import annotations

import copy
import math

import pytest
import timm
import torch
from flat import CHANNELS, flat, settled
from torch import nn

from unlabeled.backbones.build import build_backbone
from unlabeled.backbones.video.inflate import inflate, misfit, still
from unlabeled.backbones.video.r3d import R3D
from unlabeled.config.recipe import Backbone
from unlabeled.errors import UserError


def pair() -> tuple[nn.Module, R3D]:
    two, three = flat(), R3D((1, 1, 1, 1), CHANNELS).eval()
    inflate(three, two)
    return two.double(), three.double()


@torch.no_grad()
@pytest.mark.parametrize("frames", [12, 13, 24, 31])
def test_a_still_clip_gives_what_its_frame_gives_at_exactly_the_steps_that_no_end_reaches(frames: int) -> None:
    two, three = pair()
    images = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    maps = three.forward_features(images[:, :, None].expand(-1, -1, frames, -1, -1))
    apart = (maps - two.forward_features(images)[:, :, None]).abs().amax((0, 1, 3, 4)) / maps.abs().max()
    spread = 2  # blocks with kernels over time
    exact = [step for step in range(maps.shape[2]) if 1 + spread <= step <= math.ceil(frames / 2) - 2 - spread]
    assert [step for step, distance in enumerate(apart) if distance < 1e-6] == exact
    assert len(exact) == {12: 0, 13: 1, 24: 6, 31: 10}[frames]


@torch.no_grad()
def test_without_ends_the_whole_network_gives_what_the_flat_one_gives() -> None:
    two, three = pair()
    images = torch.rand(2, 3, 70, 70, dtype=torch.float64)
    torch.testing.assert_close(still(three)(images), two(images), rtol=1e-6, atol=1e-7)
    assert not torch.allclose(three(images), two(images), rtol=0.1), "a clip of one frame is all ends"


def test_kernels_are_spread_evenly_and_norms_are_copied() -> None:
    two, three = pair()
    state, inflated = two.state_dict(), three.state_dict()
    assert inflated["conv1.weight"].shape[2] == 5 and inflated["layer3.0.conv1.weight"].shape[2] == 3
    for name, value in state.items():
        if value.ndim == 4:
            for frame in inflated[name].unbind(2):
                torch.testing.assert_close(frame * inflated[name].shape[2], value)
        else:
            assert torch.equal(inflated[name], value)
    assert inflated.keys() == state.keys()


@torch.no_grad()
def test_timms_resnet50_is_r3d50_on_what_stands_still() -> None:
    two, three = settled(timm.create_model("resnet50", num_classes=0)), build_backbone(Backbone(name="r3d50")).eval()
    inflate(three, two)  # which compares the two itself
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(still(three)(images), two(images), rtol=1e-3, atol=1e-4)


def meta(name: str, **options) -> nn.Module:
    with torch.device("meta"):
        return build_backbone(Backbone(name=name, **options))


TAKERS = "r3d50 takes the weights of a resnet50, r3d101 those of a resnet101, r3d152 those of a resnet152"


@pytest.mark.parametrize(("name", "options", "said"), [
    ("resnet50d", {}, "its deep stem has 3 convolutions, and the 3D network's has one of 7 x 7: take a ResNet with the "
                      "plain stem, such as resnet50 in place of resnet50d"),
    ("resnet50", {"options": {"stem_type": "deep"}}, "its deep stem has 3 convolutions"),
    ("resnet50", {"sk_ratio": 0.0625}, "its deep stem has 3 convolutions"),
    ("resnet50", {"stem": "cifar"}, "its stem is a convolution of 3 x 3 for small images, and the 3D network's is one "
                                    "of 7 x 7: take a run with backbone.stem=imagenet"),
    ("resnet101", {}, "it has 3, 4, 23, 3 blocks in its stages, and the 3D network 3, 4, 6, 3; take r3d101"),
    ("resnet152", {}, "and the 3D network 3, 4, 6, 3; take r3d152"),
    ("resnet200", {}, f"3, 24, 36, 3 blocks in its stages, .*; no 3D network has its depth: {TAKERS}"),
    ("resnet34", {}, f"its blocks have two convolutions, and those of 3D networks three: {TAKERS}"),
    ("resnet50", {"width": 2}, "its stem has 128 channels, and the 3D network's 64; take 2 times the backbone.width"),
    ("wide_resnet50_2", {}, r"'layer1.0.conv1.weight' is \[128, 64, 1, 1\] in it, and \[64, 64, 1, 1\] in the 3D netw"),
    ("resnext50_32x4d", {}, "neither groups nor gates"),
    ("seresnet50", {}, r"'layer1.0.se.fc1.weight' is \[16, 256, 1, 1\] in it, and absent in the 3D network"),
    ("resnet50_gn", {}, "'bn1.running_mean' is absent in it"),
    ("test_vit", {}, f"it is a VisionTransformer, and only ResNets are inflated: {TAKERS}"),
    ("elastic_resnet_tiny", {}, "only ResNets are inflated"),
])
def test_what_does_not_fit_is_named_with_its_cure(name: str, options: dict, said: str) -> None:
    three = meta("r3d50")
    assert isinstance(three, R3D)
    problem = misfit(three, meta(name, **options))
    assert problem is not None and "\n" not in problem
    with pytest.raises(UserError, match=said):
        raise UserError(problem)


def smooth(network: nn.Module) -> None:
    network.maxpool = nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.AvgPool2d(2, 2))


def other_activation(network: nn.Module) -> None:
    network.layer2[0].act1 = nn.SiLU()


def early_stride(network: nn.Module) -> None:
    block = network.layer2[0]  # the first version of the block, in whose 1 x 1 convolution the stride stood
    block.conv1.stride, block.conv2.stride = (2, 2), (1, 1)


def other_eps(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-3


@pytest.mark.parametrize("change", [smooth, other_activation, early_stride, other_eps])
def test_equal_tensors_that_compute_otherwise_are_refused(change) -> None:
    two, three = flat(), R3D((1, 1, 1, 1), CHANNELS)
    inflate(three, copy.deepcopy(two))
    change(two)
    with pytest.raises(UserError, match=r"its features are \S+ apart from the inflated ones: it computes otherwise"):
        inflate(three, two)
