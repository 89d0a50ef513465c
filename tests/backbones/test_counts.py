"""Parameters and tensors of every published network; built without memory on torch's meta device."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from unlabeled.backbones.build import build_backbone
from unlabeled.config.recipe import Backbone
from unlabeled.methods.simclrv2 import ProjectionHead
from unlabeled.methods.simclrv2_config import Head

# SimCLRv2, counted by its authors' code: depth, width, selective kernels, parameters at the stem for large images and
# at the one for 32 pixels (None: not counted there), trainable tensors at the stem for large images
SIMCLRV2 = [
    (18, 1, False, 11_180_736, 11_173_056, 63),
    (18, 2, False, 44_684_672, 44_669_312, 63),
    (34, 1, False, 21_288_896, 21_281_216, 111),
    (50, 1, False, 23_508_032, 23_500_352, 159),
    (50, 1, True, 35_215_584, 35_188_672, 229),
    (50, 2, False, 93_907_072, 93_891_712, 159),
    (50, 2, True, 140_306_048, 140_196_928, 229),
    (50, 3, False, 211_197_120, 211_174_080, 159),
    (50, 4, False, 375_378_176, 375_347_456, 159),
    (101, 1, False, 42_500_160, None, 312),
    (101, 1, True, 64_662_304, None, 450),
    (101, 2, False, 169_771_136, None, 312),
    (101, 2, True, 257_132_224, None, 450),
    (152, 1, False, 58_143_808, None, 465),
    (152, 1, True, 88_940_896, None, 671),
    (152, 2, False, 232_253_568, None, 465),
    (152, 2, True, 353_398_528, None, 671),
    (152, 3, False, 522_329_280, None, 465),
    (152, 3, True, 794_704_160, None, 671),
    (200, 2, False, 250_128_512, None, 609),
]


def meta(options: dict) -> nn.Module:
    with torch.device("meta"):
        return build_backbone(Backbone(**options))


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


@pytest.mark.parametrize("depth, width, selective, large, small, tensors", SIMCLRV2)
def test_simclrv2(depth: int, width: int, selective: bool, large: int, small: int | None, tensors: int) -> None:
    options = {"name": f"resnet{depth}", "width": width, "sk_ratio": 0.0625 * selective, "project_first": depth < 50}
    network = meta(options)
    assert count(network) == large
    assert sum(p.requires_grad for p in network.parameters()) == tensors
    assert network.num_features == (512 if depth < 50 else 2048) * width
    if small is not None:
        assert count(meta({**options, "stem": "cifar"})) == small


@pytest.mark.parametrize("width, large", [(1, 11_176_512), (2, 44_684_672 - 4 * 64 * 64 - 4 * 64)])
def test_the_first_projection_is_an_option(width: int, large: int) -> None:
    """Without it the network is timm's: a 1 x 1 convolution and its norm less."""
    assert count(meta({"name": "resnet18", "width": width})) == large


@pytest.mark.parametrize("width, squeezed", [(1, [32, 32, 32, 32]), (2, [32, 32, 32, 64]), (3, [32, 32, 48, 96])])
def test_width_of_the_gate(width: int, squeezed: list[int]) -> None:
    network = meta({"name": "resnet50", "width": width, "sk_ratio": 0.0625})
    stages = [network.layer1, network.layer2, network.layer3, network.layer4]
    assert [[block.conv2.squeeze.out_channels for block in stage] for stage in stages] == [
        [d] * len(stage) for d, stage in zip(squeezed, stages, strict=True)
    ]


@pytest.mark.parametrize(
    "width, parameters",
    [(2048, 8_659_072), (4096, 34_095_232), (6144, 76_308_608), (8192, 135_299_200), (512, 592_000)],
)
def test_projection_head(width: int, parameters: int) -> None:
    with torch.device("meta"):
        assert count(ProjectionHead(width, Head(layers=3, out_dim=128))) == parameters


@pytest.mark.parametrize(
    "options, classes, parameters",
    [
        ({"name": "nin", "blocks": 3}, 4, 1_004_484),
        ({"name": "nin", "blocks": 3}, 10, 1_005_642),
        ({"name": "nin"}, 4, 1_411_140),
        ({"name": "nin", "avg_after_block3": True}, 4, 1_411_140),
        ({"name": "nin", "blocks": 5}, 4, 1_817_796),
        ({"name": "alexnet_bn"}, 4, 57_030_724),
    ],
    ids=str,
)
def test_rotnet(options: dict, classes: int, parameters: int) -> None:
    network = meta(options)
    assert count(network) + count(nn.Linear(network.num_features, classes)) == parameters


@pytest.mark.parametrize(
    "name, convolutions, features, parameters",
    # WRN-28-2 is known to have 1,467,610 parameters with ten logits; here come 2,032 biases of convolutions
    [("wrn28_2", 28, 128, 1_467_610 - 1_290 + 2_032), ("wrn28_8", 28, 512, None), ("wrn37_2", 37, 256, None)],
)
def test_wide_resnets(name: str, convolutions: int, features: int, parameters: int | None) -> None:
    network = meta({"name": name})
    assert sum(isinstance(module, nn.Conv2d) for module in network.modules()) == convolutions
    assert network.num_features == features
    assert parameters is None or count(network) == parameters
