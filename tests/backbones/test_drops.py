"""Networks of timm that drop at random: what is converted, tried on paper and refused."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from timm.layers import set_fused_attn
from torch import nn

from unlabeled.backbones.drops import draw_for_the_global_batch
from unlabeled.errors import UserError
from unlabeled.ops.drop_path import Dropout, FromGlobalBatch, HeadDropout, Rows

VIT = {"img_size": 32, "patch_size": 8, "depth": 1, "embed_dim": 8, "num_heads": 1}
SWIN = {"img_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 1], "window_size": 4}


def built(name: str, sizes: tuple[int, ...] = (32,), **options: object) -> nn.Module:
    network = timm.create_model(name, num_classes=0, **options).train()
    draw_for_the_global_batch(network, [network], sizes, Rows())
    return network


@pytest.fixture
def unfused():
    set_fused_attn(False)
    yield
    set_fused_attn(True)


@pytest.mark.parametrize(("name", "options", "message"), [
    ("vit_tiny_patch16_224", {**VIT, "attn_drop_rate": 0.1},
     r"'blocks.0.attn' \(Attention\) drops attention weights inside a fused .*attn_drop_rate.* TIMM_FUSED_ATTN"),
    ("densenet121", {"block_config": [1], "drop_rate": 0, "proj_drop_rate": 0.1},
     r"module 'features.denseblock1.denselayer1' \(DenseLayer\) draws at random by itself \(bernoulli_\)"),
])  # fmt: skip
def test_what_draws_by_itself_is_refused_with_the_cure(name: str, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        built(name, **options)
    assert len(str(caught.value).splitlines()) == 1 and "number of processes" in str(caught.value)


@pytest.mark.parametrize("layer", [nn.MultiheadAttention(4, 1, dropout=0.1), nn.LSTM(4, 4, 2, dropout=0.1),
                                   nn.TransformerEncoderLayer(4, 1, 4, dropout=0.1)])
def test_layers_of_torch_that_draw_by_themselves_are_refused_in_a_method_too(layer: nn.Module) -> None:
    with pytest.raises(UserError, match=r"drops at random by itself.*set its dropout to 0"):
        draw_for_the_global_batch(nn.Sequential(layer), [], (), Rows())
    draw_for_the_global_batch(nn.MultiheadAttention(4, 1), [], (), Rows())


class Noisy(nn.Module):
    """A network of a user's own that adds noise, or drops by a function."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.stem = kind, nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).mean((2, 3))
        match self.kind:
            case "noise":
                return x + torch.randn_like(x)
            case "function":
                return nn.functional.dropout(x, 0.5, self.training)
            case "idle":
                return torch.native_dropout(x, 0.0, True)[0]  # may draw, but does not
            case _:
                return x + torch.rand(x.shape, generator=torch.Generator()).to(x)


@pytest.mark.parametrize(("kind", "operation"), [("noise", "randn_like"), ("function", "bernoulli_")])
def test_own_functions_that_draw_are_found(kind: str, operation: str) -> None:
    network = Noisy(kind)
    with pytest.raises(UserError, match=f"own forward pass draws at random by itself .{operation}"):
        draw_for_the_global_batch(network, [network], (8,), Rows())


@pytest.mark.parametrize("kind", ["idle", "generator"])
def test_what_draws_nothing_or_from_its_own_generator_is_not_refused(kind: str) -> None:
    network = Noisy(kind)
    draw_for_the_global_batch(network, [network], (8,), Rows())


def test_attention_that_is_not_fused_drops_for_the_global_batch(unfused: None) -> None:
    network = built("vit_tiny_patch16_224", **VIT, attn_drop_rate=0.1)
    assert type(network.blocks[0].attn.attn_drop) is Dropout


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "efficientnet_b0"])
def test_features_that_a_function_drops_are_dropped_by_a_layer(name: str) -> None:
    plain = timm.create_model(name, num_classes=0, drop_rate=0.5)
    network = copy.deepcopy(plain)
    draw_for_the_global_batch(network, [network], (32,), Rows())
    assert type(network.get_classifier()) is HeadDropout and list(network.state_dict()) == list(plain.state_dict())
    x = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        whole = plain.eval()(x)
        assert torch.equal(network.eval()(x), whole)
        network.get_classifier().train()
        features = network(x)
    kept = features != 0
    assert 0.4 < float(kept.float().mean() / (whole != 0).float().mean()) < 0.6
    torch.testing.assert_close(features[kept], 2 * whole[kept])
    assert type(copy.deepcopy(network).get_classifier()) is nn.Identity


def test_a_trial_leaves_no_trace() -> None:
    network = timm.create_model("resnet18", num_classes=0, drop_path_rate=0.5).train()
    before = {name: x.clone() for name, x in network.state_dict().items()}
    random = torch.get_rng_state()
    draw_for_the_global_batch(network, [network], (32, 48), Rows())
    after = network.state_dict()
    assert all(torch.equal(x, after[name]) for name, x in before.items())
    assert torch.equal(torch.get_rng_state(), random) and FromGlobalBatch.recorded is None


def test_windows_are_counted_per_layer_and_refused_for_crops_of_several_sizes() -> None:
    network = built("swin_tiny_patch4_window7_224", **SWIN, proj_drop_rate=0.1, drop_path_rate=0.1)
    inner = {name: m.inner for name, m in network.named_modules() if "inner" in vars(m)}
    assert inner["layers.0.blocks.0.attn.proj_drop"] == 16 and inner["layers.1.blocks.0.attn.proj_drop"] == 4
    assert inner["layers.0.blocks.0.mlp.drop1"] == 1
    with pytest.raises(UserError, match=r"drops at random among \[4, 16\] rows per image.*crops of one size"):
        built("swin_tiny_patch4_window7_224", (32, 16), **{**SWIN, "dynamic_img_size": True}, proj_drop_rate=0.1)
    built("swin_tiny_patch4_window7_224", (32, 16), **{**SWIN, "dynamic_img_size": True}, drop_path_rate=0.1)


def test_tables_of_the_network_are_dropped_alike_for_all_images() -> None:
    network = built("vit_relpos_small_patch16_224", img_size=32, depth=1, embed_dim=8, num_heads=1)
    layer = network.get_submodule("blocks.0.attn.rel_pos.mlp.drop1")
    assert layer.p > 0 and layer.inner == 0  # timm's own rate for its table of distances
    layer.rows.begin({"x": torch.rand(2, 3, 32, 32)}, 1, 2)
    kept = []
    for part in range(2):
        layer.rows.begin({"x": torch.rand(2, 3, 32, 32)}, part, 2)
        torch.manual_seed(0)
        kept.append(layer(torch.ones(9, 64)) != 0)
    assert torch.equal(*kept) and 0 < float(kept[0].float().mean()) < 1


class TokensFirst(nn.Module):
    """A network whose tokens are the first dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.drop = nn.Conv2d(3, 4, 4, 4), nn.Dropout(0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(self.stem(x).flatten(2).permute(2, 0, 1)).mean(0)


def test_rows_that_are_no_images_are_refused() -> None:
    network = TokensFirst()
    with pytest.raises(UserError, match="'drop' drops at random among rows that are no images"):
        draw_for_the_global_batch(network, [network], (16,), Rows())


class Sparse(nn.Dropout):
    """A dropout of one's own."""


def test_a_kind_of_dropout_of_its_own_is_refused_in_heads_too() -> None:
    head = nn.Sequential(nn.Linear(4, 4), Sparse(0.1))
    with pytest.raises(UserError, match=r"'1' \(Sparse\) is a kind of dropout of its own.*use torch's own class"):
        draw_for_the_global_batch(head, [], (), Rows())
    draw_for_the_global_batch(nn.Sequential(Sparse(0.0), nn.Dropout(0.1)), [], (), Rows())
