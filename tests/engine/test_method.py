"""Starting from an earlier run: inherited backbones, copies of sources, frozen networks, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from unlabeled.config.read import read_recipe
from unlabeled.data.streams import open_streams
from unlabeled.engine import method as module
from unlabeled.engine.build import make_info
from unlabeled.engine.method import build_method, load_export
from unlabeled.engine.restore import load_run
from unlabeled.engine.train import train
from unlabeled.errors import UserError
from unlabeled.methods.base import Export
from unlabeled.ops.frozen import Frozen

SMALL = ["backbone.width=0.125", "train.epochs=null", "train.updates=2", "data.train.batch=16", "eval.every=0",
         "eval.at_end=[]", "optim.warmup_epochs=0", "optim.lr.base=0.01"]
DIGITS = ["data.train.card=digits", "data.train.batch=16", "train.updates=3", "eval.every=0", "optim.warmup_epochs=0",
          "data.workers=0"]
FINETUNE = "method={name: finetune, crop: {kind: affine, size: 16}}"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "pretrained"
    assert train(read_recipe("demo/simclrv2", SMALL), run).finished
    return run


def recipe(init: str, *more: str):
    return read_recipe("cifar10/rotnet-cpu", [*DIGITS, FINETUNE, f"backbone={{init: '{init}'}}", *more])


def test_a_recipe_inherits_the_backbone_of_its_source(source: Path) -> None:
    inherited = recipe(str(source)).backbone
    assert inherited.model_dump(exclude={"init"}) == read_recipe(source / "recipe.yaml").backbone.model_dump(
        exclude={"init"}
    )
    assert not inherited.grad_checkpointing  # which does not change the network, so it is free
    assert recipe(str(source), "backbone.grad_checkpointing=true").backbone.grad_checkpointing
    with pytest.raises(UserError, match=r"backbone.width is 1, but .*pretrained has 0.125"):
        read_recipe("cifar10/rotnet-cpu", [*DIGITS, f"backbone={{init: '{source}', width: 1}}"], check_files=True)
    with pytest.raises(UserError, match="is no run"):
        recipe(str(source.parent / "nowhere"))


@pytest.mark.parametrize("export", ["backbone", "backbone+head1"])
def test_training_starts_from_the_exported_weights(source: Path, tmp_path: Path, export: str) -> None:
    weights = load_file(source / "export" / f"{export}.safetensors")
    network = load_export(f"{source}:{export}").build()
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())
    run = tmp_path / "finetuned"
    assert train(recipe(f"{source}:{export}", "optim.lr.base=1.0e-12"), run).finished
    tuned = load_run(run).method.classifier.network
    held = dict(tuned.named_parameters())
    assert held and all(torch.allclose(p, weights[name], atol=1e-6) for name, p in held.items())
    random = tmp_path / "random"
    train(recipe(f"{source}:{export}", "optim.lr.base=1.0e-12", "backbone.init_weights=false"), random)
    other = dict(load_run(random).method.classifier.network.named_parameters())
    convolutions = [name for name, p in held.items() if p.ndim == 4]
    assert not all(torch.allclose(other[name], weights[name], atol=1e-6) for name in convolutions)


def test_what_follows_a_network_does_not_depend_on_how_it_was_made(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = recipe(str(source))
    info = make_info(settings, open_streams(settings))

    def drawing(*args: Any, **options: Any) -> Export:
        export = load_export(*args, **options)
        torch.rand(7)  # as a network with other layers does
        return export

    following = []
    for make in (load_export, drawing):
        monkeypatch.setattr(module, "load_export", make)
        build_method(settings, info)
        following.append(torch.rand(3))
    assert torch.equal(*following)


def test_a_run_stands_without_its_source(source: Path, tmp_path: Path) -> None:
    moved = tmp_path / "pretrained"
    shutil.copytree(source, moved)
    run = tmp_path / "finetuned"
    train(recipe(str(moved)), run)
    before = load_run(run).method.state_dict()
    assert not load_run(run).method.training
    shutil.rmtree(moved)
    after = load_run(run).method.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    fresh = load_run(run, random_init=True).method.state_dict()
    exported = load_file(source / "export" / "backbone+head1.safetensors")["backbone.conv1.weight"]
    for known in (before["classifier.network.conv1.weight"], exported):  # nor the weights that it started from
        assert not torch.equal(fresh["classifier.network.conv1.weight"], known)


def test_an_unfinished_source_and_an_unknown_export_are_refused(source: Path, tmp_path: Path) -> None:
    unfinished = tmp_path / "unfinished"
    shutil.copytree(source, unfinished, ignore=shutil.ignore_patterns("export"))
    with pytest.raises(UserError, match="has not finished"):
        load_export(str(unfinished))
    with pytest.raises(UserError, match=r"no export 'backbon'.*Did you mean 'backbone'"):
        load_export(f"{source}:backbon")
    with pytest.raises(UserError, match="gives map and no vectors; name another export"):
        train(recipe(f"{source}:backbone.layer2"), tmp_path / "map")
    with pytest.raises(UserError, match="no module 'layer7'"):
        load_export(f"{source}:backbone.layer7").build()


def test_a_frozen_network_is_no_part_of_the_state_but_its_hash_is() -> None:
    torch.manual_seed(0)
    frozen = Frozen(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), "runs/a")
    x = torch.rand(4, 3, requires_grad=True)
    before = frozen(x)
    frozen.train()
    assert torch.equal(frozen(x), before) and not before.requires_grad
    assert list(frozen.state_dict()) == ["digest"] and not list(frozen.parameters())
    frozen.load_state_dict(frozen.state_dict())
    other = Frozen(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), "runs/a")
    with pytest.raises(UserError, match="other weights of the frozen network 'runs/a'"):
        other.load_state_dict(frozen.state_dict())


def test_a_frozen_network_moves_with_its_owner() -> None:
    owner = nn.ModuleDict({"teacher": Frozen(nn.Linear(3, 2), "x")}).double()
    assert owner["teacher"](torch.rand(1, 3, dtype=torch.float64)).dtype == torch.float64
