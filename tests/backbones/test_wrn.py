"""Wide residual networks: where they activate, what they give, how their weights load."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from unlabeled.backbones.build import build_backbone, loading_lines
from unlabeled.backbones.intermediate import Intermediate, names
from unlabeled.backbones.wrn import Block
from unlabeled.config.recipe import Backbone


def test_only_a_block_that_changes_the_width_activates_its_shortcut() -> None:
    x = torch.randn(4, 6, 8, 8)
    active = F.leaky_relu(F.batch_norm(x, None, None, training=True, eps=0.001), 0.1)
    for filters, stride in ((6, 1), (10, 2)):
        block = Block(6, filters, stride)
        nn.init.zeros_(block.conv2.weight)
        nn.init.zeros_(block.conv2.bias)
        expected = x if block.shortcut is None else block.shortcut(active)
        torch.testing.assert_close(block(x), expected)
        assert block(x).shape == (4, filters, 8 // stride, 8 // stride)


def test_statistics_are_slow() -> None:
    norms = [m for m in build_backbone(Backbone(name="wrn28_2")).modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(m.momentum, m.eps) for m in norms} == {(0.001, 0.001)} and len(norms) == 25


@pytest.mark.parametrize(("name", "side", "last", "groups"), [("wrn28_2", 32, 8, 3), ("wrn37_2", 96, 6, 4)])
def test_maps_and_vectors(name: str, side: int, last: int, groups: int) -> None:
    network, x = build_backbone(Backbone(name=name)).eval(), torch.rand(1, 3, side, side)
    with torch.no_grad():
        assert network.forward_features(x).shape == (1, network.num_features, last, last)
        assert network(x).shape == (1, network.num_features)
        assert Intermediate(network, "group1")(x).shape[1] == 32
    assert names(network) == [f"group{i}" for i in range(1, groups + 1)]


def test_the_printed_lines_load_the_network(tmp_path: Path) -> None:
    cfg = Backbone(name="wrn28_2")
    network, file = build_backbone(cfg).eval(), tmp_path / "weights.safetensors"
    save_file(network.state_dict(), file)
    found: dict = {}
    exec(loading_lines(cfg, str(file)), found)
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(found["model"].eval()(x), network(x))
