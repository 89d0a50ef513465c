"""What is a norm: torch's and timm's kinds by their classes, everybody else's by name and form."""

from __future__ import annotations

import pytest
import timm
import torch
from timm import layers
from timm.layers.grn import GlobalResponseNorm
from torch import nn
from torchvision.ops import Conv2dNormActivation

from unlabeled.config.base.optim import Optim
from unlabeled.engine.optim.optimizer import build_optimizer
from unlabeled.evaluation.dense.detection_train import _groups
from unlabeled.methods.base import Method
from unlabeled.ops.norms import is_norm, norm_parameters, statistics, tracking_batchnorms


class MyNorm(nn.Module):
    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(shape))


class NormLinear(nn.Linear):
    """A classifier on the unit sphere, as metric learning has it."""


class NormedWeights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 5))


NORMS = [
    nn.BatchNorm1d(4), nn.BatchNorm3d(4), nn.SyncBatchNorm(4), nn.InstanceNorm2d(4, affine=True),
    nn.LayerNorm((4, 3, 3)),
    nn.GroupNorm(2, 4), nn.RMSNorm((4, 3)), layers.BatchNormAct2d(4, act_layer="prelu"), layers.GroupNormAct(4, 2),
    layers.LayerNormAct(4), layers.LayerNorm2d(4), layers.RmsNorm(4), layers.EvoNorm2dB0(4), layers.EvoNorm2dS0(4),
    layers.FilterResponseNormTlu2d(4), layers.FilterResponseNormAct2d(4), GlobalResponseNorm(4), MyNorm((4,)),
    MyNorm((1, 4, 1, 1)), MyNorm(()), nn.LazyBatchNorm2d(),
]  # fmt: skip
OTHERS = [
    layers.ConvNormAct(3, 4, 1), Conv2dNormActivation(3, 4), NormLinear(4, 1), NormedWeights(), nn.Linear(4, 1),
    layers.GlobalResponseNormMlp(4), nn.PReLU(4), layers.LayerScale(4) if hasattr(layers, "LayerScale") else nn.ReLU(),
]  # fmt: skip


@pytest.mark.parametrize("module", NORMS, ids=lambda m: type(m).__name__)
def test_norms_are_norms(module: nn.Module) -> None:
    assert is_norm(module)
    assert norm_parameters(module).keys() == {name for name, _ in module.named_parameters(recurse=False)}


@pytest.mark.parametrize("module", OTHERS, ids=lambda m: type(m).__name__)
def test_blocks_and_weights_that_are_named_so_are_none(module: nn.Module) -> None:
    assert not is_norm(module)


@pytest.mark.parametrize("name", ["efficientnet_b0", "regnety_002", "resnetv2_50d_gn", "convnext_atto", "levit_128s",
                                  "nf_regnet_b0", "repvit_m0_9"])  # fmt: skip
def test_in_timms_networks_norms_are_vectors_and_convolutions_are_none(name: str) -> None:
    with torch.device("meta"):
        network = timm.create_model(name, num_classes=0)
    norms = norm_parameters(network)
    weights = {id(p) for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear) for p in m.parameters(False)}
    assert bool(norms) == (name != "nf_regnet_b0")
    assert all(p.numel() == max(p.shape) and id(p) not in weights for p in norms.values())
    wanted = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
    assert {id(p) for m in network.modules() if isinstance(m, wanted) for p in m.parameters(False)} <= {
        id(p) for p in norms.values()
    }


class Toy(Method):
    def __init__(self) -> None:
        super().__init__()
        self.block = layers.ConvNormAct(3, 4, 1, act_layer="prelu")
        self.odd, self.last = NormLinear(4, 1), layers.FilterResponseNormTlu2d(4)


def test_the_optimizer_and_detection_leave_the_same_parameters_undecayed() -> None:
    toy = Toy()
    names = {id(p): name for name, p in toy.named_parameters()}
    optim = Optim.model_validate({"name": "sgd", "lr": {"base": 1.0}, "weight_decay": 0.1, "exclude_decay": ["norm"]})
    for groups in (build_optimizer(toy, optim).param_groups, _groups(toy, 0.1)):
        free = {names[id(p)] for group in groups if group["weight_decay"] == 0 for p in group["params"]}
        assert free == {"block.bn.weight", "block.bn.bias", "last.weight", "last.bias", "last.tau"}


def test_fused_norms_get_precise_statistics_too() -> None:
    network = nn.Sequential(nn.BatchNorm2d(4), layers.BatchNormAct2d(4), nn.InstanceNorm2d(4, track_running_stats=True),
                            nn.BatchNorm2d(4, track_running_stats=False))
    assert tracking_batchnorms(network) == [network[0], network[1]]


def test_statistics_are_those_of_every_norm_that_keeps_some() -> None:
    """What a dropped update must restore: also of norms that are no BatchNorm."""
    kept = {"batch": nn.BatchNorm2d(4), "instance": nn.InstanceNorm2d(4, track_running_stats=True),
            "evo": layers.EvoNorm2dB0(4)}
    network = nn.ModuleDict({**kept, "group": nn.GroupNorm(2, 4), "plain": nn.InstanceNorm2d(4)})
    found = {id(buffer) for buffer in statistics(network)}
    assert found == {id(buffer) for module in kept.values() for buffer in module.buffers()}
