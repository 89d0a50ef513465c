"""Runs that start from public weights: what they take, what they keep of them, and that they stand without them."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from public import network, write
from safetensors.torch import save_file
from tiny import tiny_recipe, tiny_run

from unlabeled.config.read import read_recipe
from unlabeled.config.recipe import Recipe
from unlabeled.engine.exports.names import write_named
from unlabeled.engine.exports.networks import write_exports
from unlabeled.engine.method import load_export, load_teacher
from unlabeled.engine.public import networks
from unlabeled.engine.restore import load_run
from unlabeled.engine.run.folder import RunFolder
from unlabeled.engine.run.same_recipe import differences, replaced_sources
from unlabeled.engine.run.sources import as_given
from unlabeled.engine.train import train
from unlabeled.errors import UserError

TINY = ["data.train.card=digits", "data.train.batch=16", "eval.every=0", "optim.warmup_epochs=0", "data.workers=0",
        "eval.at_end=[]", "train.epochs=null", "optim.lr.base=0.01", "train.precision=fp32"]
FINETUNE = "method={name: finetune, crop: {kind: affine, size: 32}}"
DISTIL = "method={name: distil, teacher: 'TEACHER', crop: {kind: affine, size: 32}}"


def recipe(init: str, updates: int = 2, method: str = FINETUNE, **options: Any) -> Recipe:
    backbone = json.dumps({"init": init, **options})
    return read_recipe("cifar10/rotnet-cpu", [*TINY, f"train.updates={updates}", method, f"backbone={backbone}"],
                       check_files=True)


def cut_short(run: Path) -> None:
    """Take the end of a run away, as if it had been killed before its exports."""
    (run / "DONE").unlink()
    shutil.rmtree(run / "export")


def test_a_run_starts_from_a_file_and_goes_on_without_it(tmp_path: Path) -> None:
    made, file, run = network(), tmp_path / "w.pth", tmp_path / "run"
    write(file, made, "module.")
    first = recipe(f"timm:test_resnet@{file}")
    assert first.backbone.name == "test_resnet"
    assert train(first, run).finished
    (copy,) = (run / "sources").iterdir()
    assert (copy / "weights.pth").read_bytes() == file.read_bytes() and (copy / "SHA256SUMS").is_file()
    mean = json.loads((run / "export" / "backbone.json").read_text())["input"]["mean"]
    assert mean == list(timm.get_pretrained_cfg("test_resnet").mean), "the statistics are the network's"
    found: dict[str, Any] = {}
    file.unlink()
    cut_short(run)
    assert train(first, run).finished, "the copy is enough"
    assert load_export(f"{run}:classifier").names == [str(digit) for digit in range(10)]
    assert load_export(f"{run}:backbone").names is None and load_teacher(str(run)).names is not None
    restored = load_run(run.rename(tmp_path / "moved"))
    lines = write_named(restored.method.exports()["classifier"], first.backbone, "timm", tmp_path / "t.safetensors",
                        ["a"] * 10)
    exec(lines, found)
    teacher, x = f"timm:test_resnet@{tmp_path / 't.safetensors'}", torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(found["model"].eval()(x), load_teacher(teacher).build()(x))
        assert torch.allclose(found["model"].eval()(x), restored.method.exports()["classifier"].build()(x), atol=1e-5)
    assert load_export(teacher).input.size == 32 and load_teacher(teacher).names == ["a"] * 10
    assert list(load_export(teacher).input.mean) == mean
    with pytest.raises(UserError, match="there is no file"):
        recipe(f"timm:test_resnet@{file}")


def test_weights_reach_the_run_and_random_ones_do_not(tmp_path: Path) -> None:
    made = network()
    source = f"timm:test_resnet@{write(tmp_path / 'w.safetensors', made)}"
    held = made.state_dict()
    for weights in (True, False):
        still = recipe(source, init_weights=weights)
        still = still.model_copy(update={"optim": still.optim.model_copy(update={
            "lr": still.optim.lr.model_copy(update={"base": 1e-12}), "weight_decay": 0.0})})
        assert train(still, tmp_path / f"{weights}").finished
        tuned = dict(load_run(tmp_path / f"{weights}").method.classifier.network.named_parameters())
        assert all(torch.allclose(p, held[name], atol=1e-6) for name, p in tuned.items() if p.ndim == 4) == weights


def test_a_published_network_is_kept_by_the_run_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, real, asked = network(classes=1000), timm.create_model, []

    def create_model(name: str, pretrained: bool = False, **options: Any) -> torch.nn.Module:
        asked.append(pretrained)
        return made if pretrained else real(name, **options)

    monkeypatch.setattr(timm, "create_model", create_model)
    first, run = recipe("timm:test_resnet.r160_in1k"), tmp_path / "run"
    assert first.backbone.name == "test_resnet" and train(first, run).finished and any(asked)
    assert (copy := next((run / "sources").iterdir())).name.startswith("timm-test_resnet.r160_in1k-")
    assert (copy / "weights.safetensors").is_file()
    asked.clear()
    cut_short(run)
    assert train(first, run).finished and load_run(run).update == 2 and not any(asked), "the library is not asked again"
    assert load_export(f"{run}:backbone").input.mean == timm.get_pretrained_cfg("test_resnet").mean


def test_a_public_teacher_keeps_its_classifier_and_its_place(tmp_path: Path) -> None:
    file, run = write(tmp_path / "w.safetensors", network()), tmp_path / "run"
    teacher = f"timm:test_resnet@{file}"
    overrides = [*TINY, "train.updates=1", DISTIL.replace("TEACHER", teacher), "backbone={name: test_resnet}"]
    assert train(read_recipe("cifar10/rotnet-cpu", overrides), run).finished
    file.unlink()
    held = load_run(run).method.teacher
    assert held(torch.rand(1, 3, 32, 32)).shape == (1, 10)
    write(file, network(classes=7))
    with pytest.raises(UserError, match="knows 7 classes, the data card 10"):
        train(read_recipe("cifar10/rotnet-cpu", overrides), tmp_path / "other")


def test_a_run_goes_on_with_its_copy_of_a_file_that_was_replaced_and_says_so(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, run = write(tmp_path / "w.pth", network()), tmp_path / "run"
    teacher = f"timm:test_resnet@{file}"
    overrides = [*TINY, "train.updates=2", DISTIL.replace("TEACHER", teacher), "backbone={name: test_resnet}"]
    first = read_recipe("cifar10/rotnet-cpu", overrides)
    assert train(first, run).finished
    digest = load_run(run).method.teacher.digest
    cut_short(run)
    assert train(first, run).finished and "holds other weights" not in capsys.readouterr().out
    next(run.glob("sources/*/weights.pth")).write_bytes(b"damaged")
    assert replaced_sources(first, run) == [], "a damaged copy is made anew of what is there"
    assert load_run(run) and replaced_sources(first, run) == []
    write(file, network(seed=1))
    cut_short(run)
    assert train(first, run).finished
    assert f"'{teacher}' holds other weights by now; the run goes on with its copy" in capsys.readouterr().out
    assert "holds other weights" in json.loads((run / "run.json").read_text())["starts"][-1]["notes"][0]
    assert torch.equal(load_run(run).method.teacher.digest, digest)
    assert train(first, run, fresh=True).finished
    assert not torch.equal(load_run(run).method.teacher.digest, digest)
    file.unlink()
    assert replaced_sources(first, run) == [], "what is gone is not replaced"


def test_a_start_that_saved_nothing_keeps_no_copy_of_a_file_that_was_replaced(tmp_path: Path) -> None:
    file, run = write(tmp_path / "w.pth", network("test_vit")), tmp_path / "run"
    overrides = [*TINY, "train.updates=1", DISTIL.replace("TEACHER", f"timm:test_resnet@{file}"),
                 "backbone={name: test_resnet}"]
    first = read_recipe("cifar10/rotnet-cpu", overrides)
    with pytest.raises(UserError, match=rf"^timm:test_resnet@{file}: none of the 80 tensors of the file"):
        train(first, run)
    write(file, network())
    assert train(first, run).finished


def test_what_is_refused_of_a_copy_is_said_of_the_users_own_file(tmp_path: Path) -> None:
    file, run = tmp_path / "w.pth", tmp_path / "run"
    torch.save({"model": network().state_dict(), "args": argparse.Namespace(lr=1)}, file)
    with pytest.raises(UserError) as said:
        train(recipe(f"timm:test_resnet@{file}"), run)
    text = str(said.value)
    assert text.startswith(f"{file} holds ") and f"open('{tmp_path / 'w.safetensors'}'" in text
    assert "sources" not in text
    copy = run / "sources" / "a-1234"
    assert as_given(f"{copy}:head: {copy}/run.json is damaged", "runs/a:head", f"{copy}:head") == (
        "runs/a:head: runs/a/run.json is damaged")
    assert as_given(f"timm:x@{copy}/weights.safetensors is bad", "timm:x", f"timm:x@{copy}/weights.safetensors") == (
        "timm:x is bad")


def test_the_same_bytes_are_the_same_network(tmp_path: Path) -> None:
    a = write(tmp_path / "a.pth", network())
    same, other = shutil.copy(a, tmp_path / "b.pth"), write(tmp_path / "c.pth", network(seed=1))
    before, run = recipe(f"timm:test_resnet@{a}").model_dump(mode="json"), tmp_path / "run"

    def lines(file: Path | str, name: str = "test_resnet") -> list[str]:
        now = {**before, "backbone": {**before["backbone"], "init": f"timm:{name}@{file}"}}
        return differences(before, now, run)

    assert lines(a) == lines(same) == []
    assert len(lines(other)) == len(lines(tmp_path / "nowhere.pth")) == len(lines(a, "test_vit")) == 1
    assert train(recipe(f"timm:test_resnet@{a}", updates=1), run).finished
    a.unlink()
    assert lines(same) == [] and len(lines(other)) == 1, "a file that is gone is known by its copy"
    begun = train(recipe(f"timm:test_resnet@{same}", updates=1), run)
    assert begun.finished and "a.pth" in (run / "recipe.yaml").read_text()


@pytest.mark.parametrize(("block", "said"), [
    ({"name": "resnet18"}, "backbone.name is 'resnet18', but timm:test_resnet@.* is 'test_resnet'; leave it out"),
    ({"width": 0.5}, "backbone.width is 0.5, but timm:test_resnet@.* is the published network"),
])
def test_what_is_not_the_files_is_refused(block: dict, said: str, tmp_path: Path) -> None:
    file = write(tmp_path / "w.pth", network())
    with pytest.raises(UserError, match=said):
        recipe(f"timm:test_resnet@{file}", **block)
    with pytest.raises(UserError, match=r"write name: resnet18 for random weights, or init: timm:resnet18 for publ"):
        read_recipe("cifar10/rotnet-cpu", [*TINY, "train.updates=1", "backbone={name: 'timm:resnet18'}"])


def test_a_teacher_is_read_once_and_its_classes_reach_the_exports(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words, read = [f"word {number}" for number in range(10)], []
    config = {"architecture": "test_resnet", "num_classes": 10, "label_names": words}
    file = tmp_path / "t.safetensors"
    save_file(timm.create_model("test_resnet", num_classes=10).state_dict(), file,
              metadata={"config": json.dumps(config)})
    real = networks.read_weights
    monkeypatch.setattr(networks, "read_weights", lambda path: (read.append(path), real(path))[1])
    known = tiny_recipe("ssld", "running", [f"method.teacher='timm:test_resnet@{file}'"])
    write_exports(RunFolder(tmp_path / "run"), known, tiny_run(known).updater.method, 1)
    assert json.loads((tmp_path / "run" / "export" / "classifier.json").read_text())["classes"] == words
    assert read == [file]
