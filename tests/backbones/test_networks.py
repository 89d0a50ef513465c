"""How the networks are built: shapes, initial values, options that are refused, printed lines that load them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm import create_model
from torch import nn

from unlabeled.backbones.build import build_backbone, loading_lines
from unlabeled.backbones.intermediate import Intermediate, names
from unlabeled.backbones.selective_kernel import SelectiveKernel
from unlabeled.config.read import read_recipe
from unlabeled.config.recipe import Backbone
from unlabeled.errors import UserError

NARROW_SK = {"name": "resnet50", "width": 0.125, "sk_ratio": 0.0625}
NARROW_18 = {"name": "resnet18", "width": 0.125, "project_first": True}


# ---- shapes


def shapes(options: dict, side: int) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        network, x = build_backbone(Backbone(**options)).eval(), torch.empty(2, 3, side, side)
    found = {name: tuple(Intermediate(network, name)(x).shape) for name in names(network)}
    info = {entry["module"]: (entry["num_chs"], side // entry["reduction"]) for entry in network.feature_info}
    if options["name"] == "nin":  # AlexNet pads too little for its maps to be whole parts of the side
        assert {name: shape[1:3] for name, shape in found.items()} == info
    assert tuple(network.forward_features(x).shape) == found[names(network)[-1]]
    assert tuple(network(x).shape) == (2, network.num_features)
    return found


@pytest.mark.parametrize("blocks, pool", [(3, False), (4, False), (4, True), (5, False), (5, True)])
def test_shapes_of_the_nin(blocks: int, pool: bool) -> None:
    deep = 4 if pool else 8
    found = shapes({"name": "nin", "blocks": blocks, "avg_after_block3": pool}, 32)
    expected = {"conv1": (2, 96, 16, 16), "conv2": (2, 192, 8, 8)}
    assert found == expected | {f"conv{k}": (2, 192, deep, deep) for k in range(3, blocks + 1)}


def test_shapes_of_alexnet() -> None:
    assert shapes({"name": "alexnet_bn"}, 224) == {
        "conv1": (2, 64, 55, 55),
        "conv2": (2, 192, 27, 27),
        "conv3": (2, 384, 13, 13),
        "conv4": (2, 256, 13, 13),
        "conv5": (2, 256, 13, 13),
    }


def test_alexnet_says_which_images_it_takes() -> None:
    with torch.device("meta"):
        network = build_backbone(Backbone(name="alexnet_bn")).eval()
        assert [network(torch.empty(1, 3, side, side)).shape[1] for side in (223, 254)] == [4096, 4096]
        for side in (222, 255):
            with pytest.raises(UserError, match="223 to 254 pixels, given"):
                network(torch.empty(1, 3, side, side))


@pytest.mark.parametrize("stem, side", [("imagenet", 2), ("cifar", 8)])
def test_shapes_of_selective_kernels(stem: str, side: int) -> None:
    network = build_backbone(Backbone(**NARROW_SK, stem=stem)).eval()
    x = torch.rand(2, 3, 64, 64)
    assert network.forward_features(x).shape == (2, 256, side, side)
    assert network(x).shape == (2, network.num_features) == (2, 256)


# ---- initial values and the gate


@pytest.mark.parametrize("options", [NARROW_SK, NARROW_18], ids=lambda o: o["name"])
def test_residual_branches_start_closed(options: dict) -> None:
    """Every block is at first the ReLU of its shortcut (SimCLRv2's and timm's initialisation)."""
    network = build_backbone(Backbone(**options)).eval()
    x = torch.rand(2, 8, 9, 9)
    for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
        for block in stage:
            shortcut = x if block.downsample is None else block.downsample(x)
            x = block(x)
            assert torch.equal(x, F.relu(shortcut))


@pytest.mark.parametrize("options", [NARROW_SK, NARROW_18], ids=lambda o: o["name"])
def test_convolutions_start_as_timms(options: dict) -> None:
    """Normal by fan-out; every convolution that this package adds, too."""
    torch.manual_seed(0)
    wide = build_backbone(Backbone(**{**options, "width": 0.5}))
    for name, module in wide.named_modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            spread = module.weight.std().item() / (2 / fan_out) ** 0.5
            assert abs(spread - 1) < 5 / (2 * module.weight.numel()) ** 0.5, name


def test_equal_streams_pass_the_gate_unchanged() -> None:
    """The two weights of a channel add up to one, so two equal streams give what one alone does."""
    kernel = SelectiveKernel(5, 6, 1, 0.0625).eval()
    with torch.no_grad():
        kernel.streams.weight[6:] = kernel.streams.weight[:6]
    x = torch.randn(3, 5, 7, 7)
    alone = F.relu(F.conv2d(x, kernel.streams.weight[:6], padding=1) / (1 + kernel.streams_bn.eps) ** 0.5)
    assert torch.allclose(kernel(x), alone, atol=1e-6)


def test_large_maps_stay_in_half_precision() -> None:
    kernel = SelectiveKernel(5, 6, 2, 0.0625)
    kernel.select.register_forward_hook(lambda module, inputs, gate: gate.float())  # as autocast does on a GPU
    with torch.autocast("cpu", torch.bfloat16):
        assert kernel(torch.randn(3, 5, 8, 8)).dtype == torch.bfloat16


def test_without_options_the_network_is_timms() -> None:
    ours, theirs = build_backbone(Backbone(name="resnet18")), create_model("resnet18", num_classes=0)
    assert {key: v.shape for key, v in ours.state_dict().items()} == {
        key: v.shape for key, v in theirs.state_dict().items()
    }


# ---- options


@pytest.mark.parametrize(
    "block, message",
    [
        ("{name: resnet18, sk_ratio: 0.0625}",
         "'sk_ratio' has no effect with resnet18; it belongs to resnet50, resnet101, resnet152, resnet200"),
        ("{name: resnet50, project_first: true}",
         "'project_first' has no effect with resnet50; it belongs to resnet18, resnet34"),
        ("{name: nin, stem: cifar}", "'stem' has no effect with nin; it belongs to resnet18, resnet34, resnet50"),
        ("{name: alexnet_bn, width: 2}", "'width' has no effect with alexnet_bn; it belongs to resnet18"),
        ("{name: mobilenetv3_small_050, width: 2}", "'width' has no effect with mobilenetv3_small_050; it belongs to"),
        ("{name: resnet18, blocks: 3}", "'blocks' has no effect with resnet18; it belongs to nin"),
        ("{name: nin, blocks: 3, avg_after_block3: true}", "'avg_after_block3' has no effect with 3 blocks"),
    ],
)  # fmt: skip
def test_options_that_the_network_lacks_are_refused(block: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        read_recipe("demo/simclrv2", [f"backbone={block}"])
    (line,) = str(caught.value).splitlines()
    assert message in line


@pytest.mark.parametrize("name", ["nin", "alexnet_bn", "vgg11"])
def test_recomputing_is_refused_where_it_is_not_offered(name: str) -> None:
    with pytest.raises(UserError, match=f"grad_checkpointing: '{name}' cannot recompute"), torch.device("meta"):
        build_backbone(Backbone(name=name, grad_checkpointing=True))


def test_recipes_show_the_options_of_their_network_only() -> None:
    for options, shown in {
        "resnet34": {"width", "stem", "project_first"},
        "resnet50": {"width", "stem", "sk_ratio"},
        "nin": {"blocks", "avg_after_block3"},
        "alexnet_bn": set(),
        "vit_tiny_patch16_224": set(),
    }.items():
        cfg = Backbone(name=options)
        hidden = {"width", "stem", "sk_ratio", "project_first", "blocks", "avg_after_block3"} - shown
        assert shown <= set(cfg.model_dump()) and not hidden & set(cfg.model_dump())
        assert Backbone(**cfg.model_dump()) == cfg


# ---- exports


@pytest.mark.parametrize(
    "options, side",
    [
        (NARROW_SK, 64),
        ({**NARROW_SK, "stem": "cifar", "grad_checkpointing": True}, 32),
        (NARROW_18, 64),
        ({**NARROW_18, "stem": "cifar"}, 32),
        ({"name": "resnet34", "project_first": True}, 32),
        ({"name": "nin", "blocks": 5, "avg_after_block3": True}, 32),
        ({"name": "alexnet_bn"}, 224),
    ],
    ids=str,
)
def test_the_printed_lines_load_the_network(options: dict, side: int, tmp_path: Path) -> None:
    cfg = Backbone(**options)
    network = build_backbone(cfg).eval()
    for p in network.parameters():
        if p.ndim == 1:  # branches are closed at the start, and would hide wrong weights
            nn.init.uniform_(p, 0.5, 1)
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    lines = loading_lines(cfg, str(tmp_path / "weights.safetensors"))
    found: dict = {}
    exec(lines, found)
    (tmp_path / "weights.safetensors").unlink()
    x = torch.rand(2, 3, side, side)
    assert torch.equal(found["model"].eval()(x), network(x))
    assert "grad_checkpointing" not in lines
    assert ("unlabeled" in lines) == (options["name"] in ("nin", "alexnet_bn") or "sk_ratio" in options)
