"""Features of inner modules: the same as in a whole pass, and nothing behind them runs."""

from __future__ import annotations

import copy
from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

from unlabeled.backbones.build import build_backbone
from unlabeled.backbones.intermediate import Intermediate, names
from unlabeled.config.recipe import Backbone
from unlabeled.errors import UserError

RESNET = {"name": "resnet18", "width": 0.125, "stem": "cifar"}
X = torch.rand(2, 3, 32, 32)


def seen_by_a_hook(network: nn.Module, name: str, x: Tensor) -> Tensor:
    """The output of a module in a whole pass, copied before later layers may change it in place."""
    seen = []
    handle = network.get_submodule(name).register_forward_hook(lambda m, i, output: seen.append(output.clone()))
    network(x)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize(
    "options",
    [RESNET, {"name": "resnet50", "width": 0.125, "sk_ratio": 0.0625}, {"name": "nin"}],
    ids=lambda o: o["name"],
)
def test_the_same_as_in_a_whole_pass(options: dict) -> None:
    network = build_backbone(Backbone(**options)).eval()
    for name in names(network):
        assert torch.equal(Intermediate(network, name)(X), seen_by_a_hook(network, name, X)), name


@pytest.mark.parametrize(
    "name, side, expected",
    [
        ("vit_tiny_patch16_224", 224, {"blocks.0": (2, 197, 192), "blocks.11": (2, 197, 192)}),
        ("swin_tiny_patch4_window7_224", 224, {"layers.0": (2, 96, 56, 56), "layers.3": (2, 768, 7, 7)}),
        ("convnext_atto", 64, {"stages.0": (2, 40, 16, 16), "stages.3": (2, 320, 2, 2)}),
        ("mobilenetv3_small_050", 64, {"blocks.0": (2, 8, 16, 16)}),
        ("regnety_002", 64, {"stem": (2, 32, 32, 32), "s4": (2, 368, 2, 2)}),
        ("vgg11_bn", 64, {"features.2": (2, 64, 64, 64)}),
    ],
)
def test_timms_networks(name: str, side: int, expected: dict) -> None:
    """Maps are [b, C, H, W], tokens [b, T, C]; the names are those of timm's own list."""
    with torch.device("meta"):
        network, x = build_backbone(Backbone(name=name)).eval(), torch.empty(2, 3, side, side)
    listed = names(network)
    assert set(expected) <= set(listed)
    got = {inner: Intermediate(network, inner)(x) for inner in listed}
    assert {inner: tuple(got[inner].shape) for inner in expected} == expected
    channels = {info["module"]: info["num_chs"] for info in network.feature_info}
    assert {inner: output.shape[1 if output.ndim == 4 else 2] for inner, output in got.items()} == channels
    inside = nn.Sequential(OrderedDict(network=network))
    for inner, shape in expected.items():
        assert tuple(Intermediate(inside, f"network.{inner}")(x).shape) == shape


def test_a_pooled_vector() -> None:
    network = build_backbone(Backbone(**RESNET)).eval()
    assert torch.equal(Intermediate(network, "global_pool")(X), network(X))


def test_later_layers_do_not_run() -> None:
    class Never(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError("a later layer ran")

    network = build_backbone(Backbone(**RESNET)).train()
    network.layer3 = Never()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    assert Intermediate(network, "layer2")(X).shape == (2, 16, 16, 16)
    changed = {key.split(".")[0] for key, value in network.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {"bn1", "layer1", "layer2"}, "statistics of the layers that ran, and of no other"


def test_the_backbone_works_as_before() -> None:
    network = build_backbone(Backbone(**RESNET)).eval()
    expected, inner = network(X), Intermediate(network, "layer1")
    first = inner(X)
    with pytest.raises(RuntimeError, match="channels"):
        inner(X[:, :1])
    assert torch.equal(network(X), expected)
    assert torch.equal(inner(X), first)
    assert not any(module._forward_hooks for module in network.modules())


def test_weights_are_shared_and_copies_stand_alone() -> None:
    network = build_backbone(Backbone(**RESNET)).eval()
    inner = Intermediate(network, "layer1")
    alone, before = copy.deepcopy(inner), inner(X)
    with torch.no_grad():
        network.conv1.weight.mul_(2)
    assert not torch.equal(inner(X), before)
    assert torch.equal(alone(X), before)


def test_gradients_reach_the_layers_in_front_only() -> None:
    network = build_backbone(Backbone(**RESNET)).train()
    Intermediate(network, "layer2")(X).square().mean().backward()
    assert {name.split(".")[0] for name, p in network.named_parameters() if p.grad is not None} == {
        "conv1", "bn1", "layer1", "layer2"
    }  # fmt: skip


def test_without_gradient_and_in_half_precision() -> None:
    inner = Intermediate(build_backbone(Backbone(**RESNET)).eval(), "layer2")
    with torch.no_grad():
        plain = inner(X)
        with torch.autocast("cpu", torch.bfloat16):
            half = inner(X)
    assert not plain.requires_grad and half.dtype == torch.bfloat16
    assert torch.allclose(half.float(), plain, atol=0.05)
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("options, name", [(RESNET, "layer2"), ({"name": "convnext_atto"}, "stages.1")], ids=str)
def test_with_recomputed_activations(options: dict, name: str) -> None:
    """There timm calls the blocks of a stage and not the stage; the switch is back where it was afterwards."""
    network = build_backbone(Backbone(**options, grad_checkpointing=True)).train()
    plain = copy.deepcopy(network)
    plain.set_grad_checkpointing(False)
    results = [Intermediate(each, name)(X) for each in (network, plain)]
    assert torch.equal(*results)
    for result in results:
        result.sum().backward()
    assert torch.equal(*(next(each.parameters()).grad for each in (network, plain)))
    assert any(getattr(module, "grad_checkpointing", False) for module in network.modules())


def test_a_compiled_network_is_not_compiled_anew() -> None:
    network, compiled = build_backbone(Backbone(**RESNET)).eval(), []
    expected = Intermediate(network, "layer1")(X)
    network.compile(backend=lambda graph, inputs: compiled.append(graph) or graph.forward)
    assert torch.equal(Intermediate(network, "layer1")(X), expected)
    assert not compiled
    network(X)
    assert compiled


class Odd(nn.Module):
    """A network without a list of features, a part of which is never called and one gives two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.parts = nn.Conv2d(3, 4, 1), nn.ModuleList([nn.Conv2d(4, 4, 1)])
        self.pool = nn.MaxPool2d(2, return_indices=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.parts[0](self.first(x)))[0]


def test_names_that_do_not_work_are_refused() -> None:
    network = Odd()
    assert names(network) == ["first", "parts"]
    with pytest.raises(UserError, match=r"no module 'frist'\. Did you mean 'first'\? Its blocks: first, parts"):
        Intermediate(network, "frist")
    with pytest.raises(UserError, match="no module ''"):
        Intermediate(network, "")
    with pytest.raises(UserError, match="does not call its module 'parts' as a whole"):
        Intermediate(network, "parts")(X)
    with pytest.raises(UserError, match="'pool' gives a tuple and no tensor"):
        Intermediate(network, "pool")(X)
    assert Intermediate(network, "parts.0")(X).shape == (2, 4, 32, 32)
