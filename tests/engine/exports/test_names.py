"""Backbones in other libraries: names, and the same features after a file was read back in the library's own class."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from unlabeled.backbones.build import build_backbone
from unlabeled.backbones.naming import from_detectron2, to_detectron2
from unlabeled.config.recipe import Backbone
from unlabeled.engine.exports.names import write_named
from unlabeled.errors import UserError
from unlabeled.methods.base import Export, Input

SUFFIX = {"torchvision": ".pth", "timm": ".safetensors", "detectron2": ".pkl"}


def trained(network: nn.Module) -> nn.Module:
    """Give every norm its own scale, shift and statistics, so that none can be left out or exchanged unseen."""
    torch.manual_seed(3)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for value in (module.weight, module.bias, module.running_mean, module.running_var):
                nn.init.uniform_(value, 0.5, 1.5)
    return network.eval()


def export_of(network: nn.Module, size: int = 64) -> Export:
    return Export(lambda: network, "vector", Input(size, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


def differ(one: nn.Module, other: nn.Module, size: int = 64) -> float:
    x = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return float((one(x) - other(x)).abs().max())


@pytest.mark.parametrize(("form", "name"), [("torchvision", "resnet18"), ("torchvision", "resnet50"),
                                            ("torchvision", "resnext50_32x4d"), ("timm", "resnet18")])
def test_features_are_the_same_in_the_librarys_own_class(form: str, name: str, tmp_path: Path) -> None:
    cfg = Backbone(name=name)
    network = trained(build_backbone(cfg))
    lines = write_named(export_of(network), cfg, form, tmp_path / f"weights{SUFFIX[form]}")
    found: dict = {}
    exec(lines, found)
    model = found["model"].eval()
    assert type(model).__module__.startswith(f"{form}.")
    assert differ(network, model) <= 1e-6
    assert "mean [0.485, 0.456, 0.406]" in lines
    assert [path.name for path in tmp_path.iterdir()] == [f"weights{SUFFIX[form]}"]


def test_the_classes_by_name_take_the_files_too(tmp_path: Path) -> None:
    from safetensors.torch import load_file
    from torchvision.models import resnet50

    cfg = Backbone(name="resnet50")
    network = trained(build_backbone(cfg))
    write_named(export_of(network), cfg, "torchvision", tmp_path / "a.pth")
    write_named(export_of(network), cfg, "timm", tmp_path / "a.safetensors")
    theirs = resnet50()
    left = theirs.load_state_dict(torch.load(tmp_path / "a.pth"), strict=False)
    assert left.missing_keys == ["fc.weight", "fc.bias"] and not left.unexpected_keys
    theirs.fc = nn.Identity()
    ours = timm.create_model("resnet50", num_classes=0)
    ours.load_state_dict(load_file(tmp_path / "a.safetensors"))
    assert max(differ(network, other.eval()) for other in (theirs, ours)) <= 1e-6


def test_timm_takes_its_own_networks_and_small_resnets(tmp_path: Path) -> None:
    for cfg, size in ((Backbone(name="mobilenetv3_small_050"), 64), (Backbone(name="vit_tiny_patch16_224"), 224),
                      (Backbone(name="resnet18", width=0.25, stem="cifar"), 32)):
        network = trained(build_backbone(cfg))
        found: dict = {}
        exec(write_named(export_of(network, size), cfg, "timm", tmp_path / "x.safetensors"), found)
        assert differ(network, found["model"].eval(), size) <= 1e-6


# the conversion that section 5 of docs/pixpro's text states, name by name
NAMES = {
    "conv1.weight": "stem.conv1.weight",
    "bn1.running_var": "stem.conv1.norm.running_var",
    "layer1.0.conv1.weight": "res2.0.conv1.weight",
    "layer1.0.bn1.weight": "res2.0.conv1.norm.weight",
    "layer2.1.bn2.bias": "res3.1.conv2.norm.bias",
    "layer3.5.bn3.num_batches_tracked": "res4.5.conv3.norm.num_batches_tracked",
    "layer4.0.downsample.0.weight": "res5.0.shortcut.weight",
    "layer4.0.downsample.1.running_mean": "res5.0.shortcut.norm.running_mean",
}


def test_detectron2_names_and_back() -> None:
    assert {name: to_detectron2(name) for name in NAMES} == NAMES
    for network in ("resnet18", "resnet50"):
        names = list(build_backbone(Backbone(name=network)).state_dict())
        theirs = [to_detectron2(name) for name in names]
        assert [from_detectron2(name) for name in theirs] == names
        assert all(name.startswith(("stem.conv1.", "res2.", "res3.", "res4.", "res5.")) for name in theirs)
        assert not any(part in name for name in theirs for part in ("layer", "bn", "downsample"))


def test_detectron2s_file_has_its_form_and_all_weights(tmp_path: Path) -> None:
    cfg = Backbone(name="resnet50")
    network = trained(build_backbone(cfg))
    lines = write_named(export_of(network), cfg, "detectron2", tmp_path / "x.pkl")
    content = pickle.loads((tmp_path / "x.pkl").read_bytes())
    assert content.keys() == {"model", "__author__", "matching_heuristics"}
    assert content["matching_heuristics"] is True and isinstance(content["__author__"], str)
    state = network.state_dict()
    assert len(content["model"]) == len(state)
    for name, value in content["model"].items():
        assert type(value).__module__ == "numpy"
        assert torch.equal(torch.as_tensor(value), state[from_detectron2(name)])
    for said in ("PIXEL_MEAN: [123.675, 116.28, 103.53]", "PIXEL_STD: [58.395, 57.12, 57.375]", "FORMAT: RGB",
                 "STRIDE_IN_1X1: False", "DEPTH: 50", "FREEZE_AT: 0"):
        assert said in lines


@pytest.mark.parametrize(("form", "backbone", "message"), [
    ("torchvision", {"name": "resnet18", "stem": "cifar"}, r"'conv1.weight' is \(64, 3, 3, 3\) here"),
    ("detectron2", {"name": "resnet50", "width": 0.5}, r"plain 7 x 7 stem of 64 channels"),
    ("torchvision", {"name": "resnet50", "sk_ratio": 0.0625}, "plain ResNet"),
    ("timm", {"name": "resnet50", "sk_ratio": 0.0625}, "defined in this package"),
    ("timm", {"name": "nin"}, "defined in this package"),
    ("torchvision", {"name": "nin"}, "plain ResNet"),
    ("torchvision", {"name": "resnet18", "project_first": True}, "'layer1.0.downsample.0.weight' is"),
    ("torchvision", {"name": "convnext_atto"}, "plain ResNet"),
    ("torchvision", {"name": "resnet26d"}, "'conv1.0.weight' is"),
    ("detectron2", {"name": "resnet26"}, "no ResNet of depth 26"),
], ids=str)
def test_what_a_library_cannot_hold_is_refused(form: str, backbone: dict, message: str, tmp_path: Path) -> None:
    cfg = Backbone(**backbone)
    with pytest.raises(UserError, match=message):
        write_named(export_of(trained(build_backbone(cfg))), cfg, form, tmp_path / f"x{SUFFIX[form]}")
    assert not list(tmp_path.iterdir())


def test_a_network_that_computes_otherwise_is_refused(tmp_path: Path) -> None:
    cfg = Backbone(name="resnet18")
    network = trained(build_backbone(cfg))
    network.maxpool = nn.AvgPool2d(3, 2, 1)
    (tmp_path / "x.pth").write_text("an earlier file")
    with pytest.raises(UserError, match="features are"):
        write_named(export_of(network), cfg, "torchvision", tmp_path / "x.pth")
    assert (tmp_path / "x.pth").read_text() == "an earlier file"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_name_of_another_kind_is_refused(tmp_path: Path) -> None:
    cfg = Backbone(name="resnet18")
    with pytest.raises(UserError, match=r"a file for detectron2 ends in \.pkl"):
        write_named(export_of(build_backbone(cfg)), cfg, "detectron2", tmp_path / "x.pth")
