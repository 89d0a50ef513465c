"""Networks of fixed size and others that do not take the crops: one line with the cure, wherever they meet images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import tiny_recipe

from unlabeled.backbones.build import build_backbone
from unlabeled.backbones.sizes import own_size, try_image
from unlabeled.config.recipe import Backbone
from unlabeled.data.streams import open_streams
from unlabeled.engine import build
from unlabeled.engine.maps import last_map
from unlabeled.engine.method import build_method
from unlabeled.engine.passes.features import network_embedder
from unlabeled.engine.train import train
from unlabeled.errors import UserError
from unlabeled.evaluation.evaluate import evaluate
from unlabeled.methods.base import Export, Input, Method

VIT = "patch_size: 4, depth: 1, embed_dim: 8, num_heads: 1"
SWIN = "embed_dim: 8, depths: [1, 1, 1, 1], num_heads: [1, 1, 1, 1]"
CPU = torch.device("cpu")


def vit(options: str) -> str:
    return f"backbone={{name: vit_tiny_patch16_224, options: {{{VIT}{options}}}}}"


def method_of(method: str, variant: str, *overrides: str) -> Method:
    recipe = tiny_recipe(method, variant, overrides)
    return build_method(recipe, build.make_info(recipe, open_streams(recipe)))


@pytest.mark.parametrize(("method", "variant", "overrides", "message"), [
    ("simclrv2", "plain", [vit("")],
     r"^method.crop.size is 12, but vit_tiny_patch16_224 takes no images of 12 x 12: its own are 224 x 224; set "
     r"backbone.options.img_size=12, or method.crop.size=224$"),
    ("finetune", "plain", [vit(", img_size: 16")], r"crop.size is 8, .* its own are 16 x 16; .*options.img_size=8"),
    ("rotnet", "one", [vit("")], r"crop.size is 12, .*options.img_size=12"),
    ("probe", "heads", [vit("")], r"crop.size is 8, .*options.img_size=8"),
    ("distil", "plain", [vit("")], r"crop.size is 8, .*options.img_size=8"),
    ("pixpro", "plain", [f"backbone={{name: swin_tiny_patch4_window7_224, options: {{{SWIN}}}}}"],
     r"crop.size is 32, but swin_tiny\w* takes no .*options.img_size=32"),
    ("simmatchv2", "multicrop", [vit(", img_size: 12")],
     r"method.strong.1.size is 10, .*own are 12 x 12; set backbone.options.dynamic_img_size=true"),
    ("simmatchv2", "multicrop", [vit(", img_size: 12, dynamic_img_size: true")],
     r"method.strong.1.size is 10, .* divisible by patch size .*; take others, such as method.strong.1.size=20"),
    ("simclrv2", "plain", ["backbone={name: gcvit_xxtiny}", "method.crop.size=32"],
     r"gcvit_xxtiny takes no .*own are 224 x 224; set backbone.options.img_size=32, or method.crop.size=224$"),
    ("simclrv2", "plain", ["backbone={name: levit_128s}", "method.crop.size=32"],
     r"levit_128s takes no .*; take others, such as method.crop.size=224$"),
    ("simclrv2", "plain", ["backbone={name: alexnet_bn}"],
     r"alexnet_bn takes no .*too small; take others, such as method.crop.size=224$"),
    ("simclrv2", "plain", [vit(", img_size: 12, global_pool: ''")],
     r"'vit_tiny_patch16_224' gives \[1, 10, 8\] for one image and no vector of 8 numbers"),
], ids=lambda x: x if isinstance(x, str) and " " not in x else "")  # fmt: skip
def test_pretraining_refuses_them_at_the_start(method: str, variant: str, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        method_of(method, variant, *overrides)
    assert len(str(caught.value).splitlines()) == 1


def test_the_cure_cures() -> None:
    method_of("simclrv2", "plain", vit(", img_size: 12"))
    method_of("simmatchv2", "multicrop", vit(", img_size: 12, dynamic_img_size: true, dynamic_img_pad: true"))
    method_of("pixpro", "plain", f"backbone={{name: swin_tiny_patch4_window7_224, options: {{img_size: 128, {SWIN}}}}}",
              "method.crop.size=128")


def test_trying_an_image_changes_nothing() -> None:
    network = build_backbone(Backbone(name="mobilenetv3_small_050")).train()
    network.bn1.eval()
    modes, state = [m.training for m in network.modules()], {k: v.clone() for k, v in network.state_dict().items()}
    random = torch.get_rng_state()
    assert try_image(network, 32)[0].shape == (1, network.num_features) and own_size(network) is None
    assert modes == [m.training for m in network.modules()] and torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


def test_evaluation_at_another_size_is_one_line(tmp_path: Path) -> None:
    recipe = tiny_recipe("finetune", "plain", [vit(", img_size: 8"), "train.updates=1", "data.train.batch=4"])
    run = tmp_path / "run"
    assert train(recipe, run).finished
    with pytest.raises(UserError, match=r"size is 16, but .* takes no images of 16 x 16: its own are 8 x 8; set "
                                        r"size=8, or train it with backbone.options.img_size=16") as caught:
        evaluate("knn", run, ["size=16", "export=backbone"])
    assert len(str(caught.value).splitlines()) == 1
    again = tiny_recipe("finetune", "plain", [f"backbone={{init: '{run}:backbone'}}",
                                              "method.crop={kind: resized, size: 16}"])
    with pytest.raises(UserError, match=r"crop.size is 16, but '.*run:backbone' takes .*; set method.crop.size=8, or"):
        train(again, tmp_path / "again")


def test_features_and_maps_name_the_setting() -> None:
    options = {"img_size": 8, "patch_size": 4, "depth": 1}
    network = build_backbone(Backbone(name="vit_tiny_patch16_224", options=options))
    export = Export(lambda: network.eval(), "vector", Input(16))
    for ask in (lambda: network_embedder(export, CPU).check(), lambda: last_map("backbone", export, CPU)):
        with pytest.raises(UserError, match="takes no images of 16 x 16: its own are 8 x 8; set size=8, or train"):
            ask()
