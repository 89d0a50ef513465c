"""Sizes of elastic networks: what they cost, which is nearest, and how an export of one is named."""

from __future__ import annotations

import pytest
import torch

from unlabeled.backbones.build import build_backbone, loading_lines
from unlabeled.backbones.elastic.sizes import Size, size_of
from unlabeled.backbones.intermediate import Intermediate
from unlabeled.config.recipe import Backbone
from unlabeled.config.sources import Sized, sized
from unlabeled.config.tables import BACKBONE_OPTIONS
from unlabeled.engine.exports.networks import find_export, inner
from unlabeled.engine.exports.sizes import Cost, cost, costs, nearest, on_meta
from unlabeled.errors import UserError
from unlabeled.methods.base import Export, Input

TINY = Backbone(name="elastic_vit_tiny", options={"widths": [4, 12, 4], "depths": [2, 4], "head_width": 4,
                                                  "patch_size": 2, "img_size": 8})


@pytest.fixture(scope="module")
def network():
    return build_backbone(TINY)


@pytest.fixture
def exports(network):
    plain = torch.nn.Linear(3, 2)
    return {"head": Export(lambda: plain, "vector", Input(8)), "teacher": Export(lambda: network, "vector", Input(8)),
            "student": Export(lambda: network, "vector", Input(8))}


@pytest.mark.parametrize(("width", "depth", "side"), [(4, 2, 8), (8, 3, 8), (12, 4, 6)])
def test_the_cost_of_a_vit_is_what_its_formula_says(network, width: int, depth: int, side: int) -> None:
    places, tokens, inside = 16, (side // 2) ** 2, 3 * 2 * 2
    params = inside * width + width + (1 + places + 1) * width + depth * (12 * width**2 + 15 * width) + 2 * width
    flops = tokens * inside * width + depth * ((tokens + 1) * 12 * width**2 + 2 * (tokens + 1) ** 2 * width)
    flops += tokens * places * width * (side != 8)  # positions are resized
    assert cost(on_meta(network), Size(width, (depth,)), side) == Cost(params, flops)


@pytest.mark.parametrize("name", ["tiny", *(name for name in BACKBONE_OPTIONS["size"] if name.endswith("_tiny"))])
def test_the_costs_of_all_sizes_are_those_of_each(network, name: str) -> None:
    blank = on_meta(network if name == "tiny" else build_backbone(Backbone(name=name)))
    known = costs(blank, 32)
    assert list(known) == blank.grid.sizes
    few = blank.grid.sizes[1 :: max(1, len(known) // 2)]
    assert {size: known[size] for size in few} == {size: cost(blank, size, 32) for size in few}


def test_vit_s_of_16_pixels_has_the_published_cost() -> None:
    with torch.device("meta"):
        network = build_backbone(Backbone(name="elastic_vit_s"))
    found = cost(network, network.grid.full, 224)
    assert round(found.params / 1e6) == 22 and round(found.flops / 1e9, 1) == 4.6


def test_the_nearest_size_is_the_one_with_the_least_difference() -> None:
    known = {Size(4, (1,)): Cost(10, 100), Size(4, (2,)): Cost(20, 300), Size(8, (1,)): Cost(40, 200)}
    assert [str(nearest(known, "params", value)) for value in (1, 14, 15, 16, 31, 99)] == [
        "4x1", "4x1", "4x1", "4x2", "8x1", "8x1"]
    assert [str(nearest(known, "flops", value)) for value in (160, 260)] == ["8x1", "4x2"]


def test_names_of_sizes_are_told_from_names_of_exports() -> None:
    assert sized("384x12") == Sized(None, "384x12", None)
    assert sized("teacher@64x4-6") == Sized("teacher", "64x4-6", None)
    assert sized("384x12.blocks.3") == Sized(None, "384x12", "blocks.3")
    assert [sized(name) for name in (None, "", "backbone", "backbone.layer3", "384", "384x", "@384x12")] == [None] * 7


def test_a_size_is_taken_of_the_first_elastic_export_or_of_the_one_that_is_named(exports, network) -> None:
    assert find_export(exports, None)[0] == "head" and find_export(exports, "8x3")[0] == "teacher"
    name, inside, whole = find_export(exports, "student@8x3")
    assert name == "student" and inside is not None
    x = torch.rand(2, 3, 8, 8)
    small = inner(whole, inside).build()
    torch.testing.assert_close(small(x), network.features(x, size_of("8x3")).vector, rtol=1e-5, atol=1e-5)
    part = find_export(exports, "8x3.blocks.1")[1]
    assert part is not None
    block = inner(whole, part).build()
    assert isinstance(block, Intermediate) and block(x).shape == (2, 17, 8)


@pytest.mark.parametrize(("name", "message"), [
    ("10x3", "size 10x3 was not trained; the nearest are 12x3, 8x3"),
    ("8x3-3", "size 8x3-3 was not trained"),
    ("head@8x3", "export 'head' is no elastic network, .*; elastic: teacher, student"),
    ("techer@8x3", "no export 'techer'.*Did you mean 'teacher'"),
])
def test_sizes_that_there_are_not_are_refused(exports, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_export(exports, name)
    with pytest.raises(UserError, match=r"no export is an elastic network.*elastic backbones: elastic_vit_l"):
        find_export({"head": exports["head"]}, "8x3")


def test_a_backbone_of_one_size_is_the_plain_network() -> None:
    network = build_backbone(TINY.model_copy(update={"size": "8x3"}))
    assert network.training and (network.num_features, len(network.blocks), network.mask_token) == (8, 3, None)
    with pytest.raises(UserError, match="size 8x5 was not trained"):
        build_backbone(TINY.model_copy(update={"size": "8x5"}))
    with pytest.raises(ValueError, match="'size' has no effect with resnet18; it belongs to elastic_vit_l"):
        Backbone(name="resnet18", size="8x3")
    with pytest.raises(ValueError, match="'size' needs WIDTHxDEPTH, such as 384x12, given 'small'"):
        Backbone(name="elastic_vit_s", size="small")


def test_an_elastic_network_of_ones_own_has_sizes_too() -> None:
    backbone = Backbone(name="unlabeled.backbones.elastic.build:elastic_vit", options=TINY.options, size="8x3")
    network, found = build_backbone(backbone), {}
    assert network.num_features == 8
    exec(loading_lines(backbone, "FILE").rpartition("\n")[0], found)
    assert found["model"].load_state_dict(network.state_dict()) and found["model"].grid.full == Size(8, (3,))
    with pytest.raises(UserError, match="gives a Linear, which is not elastic"):
        build_backbone(Backbone(name="tests.engine.exports.test_sizes:rigid", size="8x3"))


def rigid() -> torch.nn.Module:
    network = torch.nn.Linear(3, 2)
    network.num_features = 2
    return network
