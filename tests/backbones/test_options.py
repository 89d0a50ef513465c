"""Options of timm's constructors: where they go, what is refused, and that the printed lines build the same network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from unlabeled.backbones.build import build_backbone, loading_lines
from unlabeled.config.read import read_recipe
from unlabeled.config.recipe import Backbone
from unlabeled.config.schema import recipe_schema
from unlabeled.config.yaml.write import to_yaml
from unlabeled.engine.exports.names import write_named
from unlabeled.engine.run.folder import RunFolder
from unlabeled.errors import UserError
from unlabeled.methods.base import Export, Input

VIT = {"img_size": 8, "patch_size": 4, "depth": 1, "embed_dim": 8, "num_heads": 1}
FITTING = [
    ("vit_tiny_patch16_224", {**VIT, "drop_path_rate": 0.1, "class_token": False, "global_pool": "avg"}, 8),
    ("swin_tiny_patch4_window7_224", {"img_size": 32, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2]}, 32),
    ("densenet121", {"block_config": [1, 1], "growth_rate": 4}, 32),
    ("resnet18", {"drop_path_rate": 0.2, "block_args": {"attn_layer": "se"}}, 32),
]


@pytest.mark.parametrize(("name", "options", "side"), FITTING, ids=[case[0] for case in FITTING])
def test_the_printed_lines_build_the_network(name: str, options: dict, side: int, tmp_path: Path) -> None:
    cfg = Backbone(name=name, options=options)
    network, x = build_backbone(cfg).eval(), torch.rand(2, 3, side, side)
    save_file(network.state_dict(), tmp_path / "x.safetensors")
    lines = loading_lines(cfg, str(tmp_path / "x.safetensors"))
    found: dict = {}
    exec(lines, found)
    with torch.no_grad():
        assert torch.equal(found["model"].eval()(x), network(x)) and "unlabeled" not in lines
    export = Export(lambda: network, "vector", Input(side))
    assert lines.splitlines()[2] in write_named(export, cfg, "timm", tmp_path / "y.safetensors")


def test_narrow_resnets_keep_their_options_in_the_lines() -> None:
    lines = loading_lines(Backbone(name="resnet18", width=0.25, options={"drop_path_rate": 0.2}), "x")
    assert "stem_width=8, drop_path_rate=0.2)" in lines


def test_random_depth_reaches_the_blocks() -> None:
    network = build_backbone(Backbone(name="resnet18", options={"drop_path_rate": 0.2}))
    assert network.layer4[1].drop_path.drop_prob == pytest.approx(0.2)


def test_the_recipe_shows_them_and_reads_them_back(tmp_path: Path) -> None:
    block = "backbone={name: vit_tiny_patch16_224, options: {img_size: 8, depth: 1}}"
    recipe = read_recipe("demo/simclrv2", [block, "backbone.options.depth=2"])
    assert recipe.backbone.options == {"img_size": 8, "depth": 2}
    (tmp_path / "recipe.yaml").write_text(to_yaml(recipe))
    assert read_recipe(tmp_path / "recipe.yaml") == recipe
    assert "options" not in Backbone(name="nin").model_dump()
    assert recipe_schema()["$defs"]["Backbone"]["properties"]["options"]["type"] == "object"


def test_a_run_goes_on_with_equal_options_only(tmp_path: Path) -> None:
    def recipe(options: str):
        return read_recipe("demo/simclrv2", [f"backbone={{name: vit_tiny_patch16_224{options}}}"])

    given = recipe(", options: {img_size: 8}")
    RunFolder(tmp_path / "run").open(given, {}, False)
    (tmp_path / "run" / "checkpoints").mkdir(exist_ok=True)
    (tmp_path / "run" / "checkpoints" / "update-00000001.json").write_text("{}")
    RunFolder(tmp_path / "run").open(given, {}, False)
    for other, now in ((", options: {img_size: 16}", "16"), ("", "absent")):
        with pytest.raises(UserError, match=f"backbone.options.img_size: 8 there, {now} now"):
            RunFolder(tmp_path / "run").open(recipe(other), {}, False)


@pytest.mark.parametrize(("block", "message"), [
    ("{name: nin, options: {a: 1}}", "'options' has no effect with nin"),
    ("{name: wrn28_2, options: {a: 1}}", "'options' has no effect with wrn28_2"),
    ("{name: resnet50, sk_ratio: 0.0625, options: {drop_path_rate: 0.1}}", "no effect with resnet50 with sk_ratio"),
    *((f"{{name: vit_tiny_patch16_224, options: {{{key}: 1}}}}", f"'options.{key}' is set by the package itself")
      for key in ("num_classes", "pretrained", "in_chans", "features_only", "checkpoint_path", "device")),
    ("{name: resnet18, options: {layers: [1, 1, 1, 1]}}", "'options.layers' is set by the package itself for resnet18"),
    ("{name: resnet18, width: 2, options: {stem_width: 8}}", "'options.stem_width' is set by the package itself"),
    ("{name: vit_tiny_patch16_224, options: {img_size: 0}}", "'options.img_size' of vit_tiny_patch16_224 needs"),
    ("{name: vit_tiny_patch16_224, options: {img_size: [8, 8]}}", "needs a whole number of pixels"),
    ("{name: vit_tiny_patch16_224, options: {img_size: null}}", "'options.img_size' is nothing"),
    ("{name: vit_tiny_patch16_224, options: {drop_path_rate: 1}}", "needs a number from 0 to below 1, given 1"),
    ("{name: vit_tiny_patch16_224, options: {proj_drop_rate: a}}", "needs a number from 0 to below 1, given 'a'"),
    ("{name: vit_tiny_patch16_224, options: 3}", "'backbone.options' needs a block of keys, given 3"),
    ("{name: vit_tiny_patch16_224, option: {img_size: 3}}", "Did you mean 'options'"),
])  # fmt: skip
def test_what_is_not_the_users_is_refused_at_its_place(block: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        read_recipe("demo/simclrv2", [f"backbone={block}"])
    (line,) = str(caught.value).splitlines()
    assert message in line and line.startswith("override 'backbone=")


@pytest.mark.parametrize(("name", "options", "message"), [
    ("vit_tiny_patch16_224", {"depth": 1, "img_sise": 8}, r"options.img_sise: vit_tiny\w* has no such option. Did you "
                                                          "mean 'img_size'"),
    ("mobilenetv3_small_050", {"img_size": 32}, "options.img_size: mobilenetv3_small_050 has no such option"),
    ("vit_tiny_patch16_224", {"depth": "x"}, r"options.depth 'x' does not fit vit_tiny_patch16_224: unsupported"),
    ("vit_tiny_patch16_224", {"depth": 1, "num_heads": 7}, "options.num_heads 7 does not fit vit_tiny_patch16_224"),
    ("vit_tiny_patch16_224", {"embed_dim": 9, "num_heads": 2}, "do not fit vit_tiny_patch16_224 together: dim"),
    ("resnet18", {"block_args": {"a": 1}}, "options.block_args a block of keys does not fit resnet18"),
    ("resnet18", {"act_layer": "x"}, "options.act_layer 'x' does not fit resnet18"),
])  # fmt: skip
def test_what_the_constructor_does_not_take_is_one_line(name: str, options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        build_backbone(Backbone(name=name, options=options))
    assert len(str(caught.value).splitlines()) == 1
