"""Recipes that start a network for clips from one for images, and runs that start from one for clips."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from flat import settled
from tiny import tiny_recipe
from torch import nn

from unlabeled.backbones.build import build_backbone
from unlabeled.backbones.video.inflate import still
from unlabeled.backbones.video.r3d import R3D
from unlabeled.config.read import read_recipe
from unlabeled.config.recipe import Backbone, Recipe
from unlabeled.engine import build
from unlabeled.engine.exports.inflated import inflated
from unlabeled.engine.exports.networks import write_exports
from unlabeled.engine.method import build_method, load_export
from unlabeled.engine.restore import load_run
from unlabeled.engine.run.folder import RunFolder
from unlabeled.engine.train import train
from unlabeled.errors import UserError
from unlabeled.methods.base import Export, Input, Method

WIDTH = 0.125


def begun(recipe: Recipe) -> Method:
    """Return the recipe's method as it starts."""
    return build_method(recipe, build.make_info(recipe, build.open_data(recipe)))


def handed_out(recipe: Recipe, run: Path) -> Path:
    """Write what a finished run of the recipe leaves for others, with statistics in its norms; return its folder."""
    info = build.make_info(recipe, build.open_data(recipe))
    method = build_method(recipe, info)
    settled(method)
    run.mkdir()
    (run / "recipe.yaml").write_text(json.dumps(recipe.model_dump(mode="json")))
    (run / "run.json").write_text(json.dumps({"info": build.info_record(info)}))
    write_exports(RunFolder(run), recipe, method, 0, info.names)
    (run / "DONE").touch()
    return run


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on digits, which have a mean and a deviation, of a ResNet-50."""
    recipe = tiny_recipe("finetune", "plain", [f"backbone={{name: resnet50, width: {WIDTH}}}"])
    return handed_out(recipe, tmp_path_factory.mktemp("runs") / "images")


def clips(init: str, **backbone: Any) -> Recipe:
    block = json.dumps({"init": init, **backbone})
    return tiny_recipe("cvrl", "plain", [f"backbone={block}"])


def test_cvrl_starts_from_an_inflated_network_on_the_inputs_that_it_was_trained_with(images: Path) -> None:
    recipe = clips(f"{images}:backbone", name="r3d50")
    assert recipe.backbone.width == WIDTH, "the width is that of the 2D network"
    method, flat = begun(recipe), load_export(f"{images}:backbone")
    assert isinstance(method.backbone, R3D) and method.backbone.training
    assert all(p.requires_grad for p in method.backbone.parameters())
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(still(method.backbone).eval()(x), flat.build()(x), rtol=1e-4, atol=1e-5)
    export = method.exports()["backbone"]
    assert export.input.mean == flat.input.mean is not None and export.input.std == flat.input.std
    assert export.input.size == recipe.method.crop.size and export.input.clip.frames == recipe.method.clip.frames


def test_without_weights_it_is_the_3d_networks_own_start(images: Path) -> None:
    one, other = (begun(clips(f"{images}:backbone", name="r3d50", init_weights=weights)).backbone
                  for weights in (True, False))
    assert one.input == other.input
    kernel = other.layer3[0].conv1.weight
    assert not torch.equal(kernel[:, :, 0], kernel[:, :, 1]), "drawn, not spread over time"
    spread = one.layer3[0].conv1.weight
    assert torch.equal(spread[:, :, 0], spread[:, :, 1])


def test_a_run_stands_without_the_network_that_it_was_inflated_from(images: Path, tmp_path: Path) -> None:
    source = images.rename(tmp_path / "source")
    try:
        recipe, run = clips(f"{source}:backbone", name="r3d50"), tmp_path / "run"
        recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"updates": 1})})
        assert train(recipe, run).finished
    finally:
        source.rename(images)
    restored = load_run(run).method.exports()["backbone"]
    assert restored.input.mean is not None
    state = restored.build().state_dict()
    assert all(torch.equal(value, state[name]) for name, value in load_export(str(run)).build().state_dict().items())
    after = begun(clips(str(run)))  # the same class, as any other start
    assert type(after.backbone) is R3D and after.input == restored.input


@pytest.mark.parametrize(("export", "block", "said"), [
    (":backbone", {"name": "r3d101"}, "images:backbone' cannot be inflated into r3d101: it has 3, 4, 6, 3 blocks in "
                                      "its stages, and the 3D network 3, 4, 23, 3; take r3d50"),
    (":backbone", {"name": "r3d_tiny"}, "3D network 1, 1, 1, 1; take r3d50"),
    (":classifier", {"name": "r3d50"}, "gives logits, and r3d50 is inflated from what gives vectors; name another"),
    ("", {"name": "r3d50"}, "gives logits.*as in RUN:backbone"),
])
def test_what_cannot_be_inflated_is_refused_at_the_start(images: Path, export: str, block: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        begun(clips(f"{images}{export}", **block))
    with pytest.raises(UserError, match=said):
        begun(clips(f"{images}{export}", init_weights=False, **block))


def test_what_the_recipe_says_otherwise_is_refused_where_it_stands(images: Path, tmp_path: Path) -> None:
    video = handed_out(tiny_recipe("cvrl", "plain"), tmp_path / "video")
    for method, init, block, said in (
        ("demo/cvrl", images, "name: r3d50, width: 2", "backbone.width is 2, but .*images:backbone has 0.125; leave"),
        ("demo/simclrv2", video, "name: resnet50", "backbone.name is 'resnet50', but .*video:backbone has 'r3d_tiny', "
                                                   "a network for clips, whose kernels over time no network for im"),
        ("demo/cvrl", video, "name: r3d50", "backbone.name is 'r3d50', but .* has 'r3d_tiny'; leave it out to take"),
        ("demo/cvrl", images, "grad_checkpointing: true", "method 'cvrl' needs a video backbone; 'resnet50' offers"),
    ):
        with pytest.raises(UserError, match=said):
            read_recipe(method, [f"backbone={{init: '{init}:backbone', {block}}}"], check_files=True)
    with pytest.raises(UserError, match=r"backbone.name is 'resnet50', but timm:resnet18 is 'resnet18'"):
        read_recipe("demo/simclrv2", ["backbone={init: 'timm:resnet18', name: resnet50}"], check_files=True)


def test_what_is_3d_already_is_left_as_it_is() -> None:
    network = build_backbone(Backbone(name="r3d_tiny"))
    for whole, gives in ((network, "vector"), (nn.Sequential(network, nn.Linear(256, 2)), "logits")):
        export = Export(lambda whole=whole: whole, gives, Input(32))
        assert inflated(export, Backbone(name="r3d_tiny"), "it") is export
    flat = Export(lambda: network, "vector", Input(32))
    assert inflated(flat, Backbone(name="resnet50"), "it") is flat


def test_a_network_for_clips_is_fine_tuned_on_single_frames(tmp_path: Path) -> None:
    video, run = handed_out(tiny_recipe("cvrl", "plain"), tmp_path / "video"), tmp_path / "run"
    recipe = tiny_recipe("finetune", "plain", [f"backbone={{init: '{video}'}}", "train.updates=1"])
    assert recipe.backbone.name == "r3d_tiny" and recipe.backbone.width == 0.5
    first = begun(recipe)
    expected = load_export(str(video)).build().state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in first.classifier.network.state_dict().items())
    assert first.input == Input(recipe.method.crop.size), "in [0, 1], as CVRL saw them; single frames"
    assert train(recipe, run).finished and load_run(run).update == 1


def test_the_lines_of_an_export_load_it_in_a_fresh_process(images: Path, tmp_path: Path) -> None:
    recipe = clips(f"{images}:backbone", name="r3d50")
    info = build.make_info(recipe, build.open_data(recipe))
    method = build_method(recipe, info)
    lines = write_exports(RunFolder(tmp_path / "run"), recipe, method, 0).partition("\n\n")[0]
    torch.manual_seed(3)
    clip = torch.rand(2, 3, 4, 32, 32)
    with torch.no_grad():
        torch.save((clip, method.exports()["backbone"].build()(clip)), tmp_path / "wanted.pt")
    check = (f"import torch\nclip, wanted = torch.load({str(tmp_path / 'wanted.pt')!r})\n"
             "with torch.no_grad():\n    assert torch.allclose(model.eval()(clip), wanted, atol=1e-6)")
    subprocess.run([sys.executable, "-c", f"{lines}\n{check}"], check=True)
