"""Runs that move, their probes and the copies of what they started from: nothing is trained again, nothing mistaken."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from tests.tiny import tiny_recipe

from unlabeled.config.read import read_recipe
from unlabeled.config.sources import copy_of
from unlabeled.engine.restore import load_run
from unlabeled.engine.run.sources import adopt
from unlabeled.engine.train import train
from unlabeled.engine.updater import Updater
from unlabeled.errors import UserError
from unlabeled.evaluation.evaluate import evaluate
from unlabeled.report.report import Report

QUICK = ["workers=0", "data.batch=400", "epochs=2", "optim.lr.base=0.5", "random_init=false",
         "method.crop={kind: affine, size: 8}"]
FINETUNE = ["data.train.card=digits", "data.train.batch=16", "eval.every=0", "optim.warmup_epochs=0", "data.workers=0",
            "train.checkpoint_every=2", "train.updates=4", "method={name: finetune, crop: {kind: affine, size: 8}}"]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "pretrained"
    assert train(tiny_recipe("rotnet", "all"), run).finished
    return run


@pytest.fixture(scope="module")
def probed(pretrained: Path) -> Report:
    report = evaluate("linear-sgd", pretrained, [*QUICK, "export=backbone"])
    assert report is not None
    return report


@pytest.fixture
def run(probed: Report, pretrained: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "here" / "pretrained"
    shutil.copytree(pretrained, copy)
    return copy


def probe_of(run: Path) -> Path:
    return next(path for path in (run / "eval").iterdir() if path.is_dir())


def cut_short(run: Path) -> Path:
    """Take the end of a run away, as if it had been killed before."""
    newest = sorted((run / "checkpoints").glob("*.pt"))[-1]
    for file in (newest, newest.with_suffix(".json"), run / "DONE"):
        file.unlink()
    shutil.rmtree(run / "export")
    (run / "SAVED").write_text(str(int(sorted((run / "checkpoints").glob("*.pt"))[-1].stem[7:])))
    return run


@pytest.mark.parametrize("way", ["moved", "link", "relative", "slash"])
def test_a_probe_of_a_moved_run_is_neither_refused_nor_trained_again(
    run: Path, probed: Report, tmp_path: Path, way: str, capsys, monkeypatch
) -> None:
    there = run  # a copy of the run that the probe was trained on: moved, if the first one is gone
    if way == "link":
        there = tmp_path / "link"
        there.symlink_to(run)
    elif way == "relative":
        monkeypatch.chdir(run.parent)
        there = Path(run.name)
    again = evaluate("linear-sgd", f"{there}/" if way == "slash" else there, [*QUICK, "export=backbone"])
    assert again.numbers == probed.numbers and "is finished" in capsys.readouterr().out
    assert len(list((probe_of(run) / "sources").iterdir())) == 1, "no second copy"


def test_a_probe_that_was_cut_short_goes_on_after_a_move_and_then_stands_without_its_first_place(
    pretrained: Path, tmp_path: Path, capsys
) -> None:
    first = tmp_path / "first"
    shutil.copytree(pretrained, first, ignore=shutil.ignore_patterns("eval"))
    settings = [*QUICK, "export=backbone", "checkpoint_every=2"]
    expected = evaluate("linear-sgd", first, settings)
    cut_short(probe_of(first))
    run = first.rename(tmp_path / "second")
    capsys.readouterr()
    report = evaluate("linear-sgd", run, settings)
    assert "going on from update 4" in capsys.readouterr().out
    assert report.numbers == expected.numbers
    moved = run.rename(tmp_path / "third")
    assert load_run(probe_of(moved)).update == 6


def test_a_probe_upon_other_weights_is_refused_with_advice_that_the_command_takes(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    assert train(tiny_recipe("rotnet", "all", ["train.seed=1"]), other).finished
    shutil.copytree(run / "eval", other / "eval")
    with pytest.raises(UserError, match=r"backbone.init: (.*\n)*.*move .*eval/.* away to start anew") as said:
        evaluate("linear-sgd", other, [*QUICK, "export=backbone"])
    assert "fresh=true" not in str(said.value) and "run=" not in str(said.value)


def test_sources_of_sources_move_along(pretrained: Path, tmp_path: Path) -> None:
    a = tmp_path / "a"
    shutil.copytree(pretrained, a, ignore=shutil.ignore_patterns("eval"))
    tuned = tmp_path / "tuned"
    assert train(read_recipe("cifar10/rotnet-cpu", [*FINETUNE, f"backbone={{init: '{a}:backbone'}}"]), tuned).finished
    b, c = tuned.rename(tmp_path / "b"), a.rename(tmp_path / "c")
    further = tmp_path / "further"
    assert train(read_recipe("cifar10/rotnet-cpu", [*FINETUNE, f"backbone={{init: '{b}:backbone'}}"]), further).finished
    before = load_run(further).method.state_dict()
    cut_short(further)
    b, c = b.rename(tmp_path / "d"), c.rename(tmp_path / "e")
    assert train(read_recipe("cifar10/rotnet-cpu", [*FINETUNE, f"backbone={{init: '{b}:backbone'}}"]), further).finished
    shutil.rmtree(b)
    shutil.rmtree(c)
    after = load_run(further.rename(tmp_path / "elsewhere")).method.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_command_goes_on_when_what_it_started_from_is_gone_or_another(pretrained: Path, tmp_path: Path) -> None:
    a, tuned = tmp_path / "a", tmp_path / "tuned"
    shutil.copytree(pretrained, a, ignore=shutil.ignore_patterns("eval"))

    overrides = [*FINETUNE, f"backbone={{init: '{a}:backbone'}}"]

    def begin() -> None:
        recipe = read_recipe("cifar10/rotnet-cpu", overrides, check_files=True, run_of=lambda seed: tuned)
        assert recipe.backbone.width == 0.125 and train(recipe, tuned).finished

    begin()
    before = load_run(tuned).method.state_dict()
    shutil.rmtree(a)
    begin()  # it is finished
    cut_short(tuned)
    begin()
    (a / "export").mkdir(parents=True)
    (a / "recipe.yaml").write_text((pretrained / "recipe.yaml").read_text().replace("width: 0.125", "width: 0.5"))
    cut_short(tuned)
    begin()
    assert read_recipe("cifar10/rotnet-cpu", overrides).backbone.width == 0.5, "a fresh start takes what is there now"
    after = load_run(tuned).method.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    shutil.rmtree(a)
    shutil.rmtree(tuned / "sources")
    with pytest.raises(UserError, match=r"is no run: .*recipe\.yaml is missing"):
        begin()


@pytest.mark.parametrize("there", ["file", "link"])
def test_what_stands_in_the_place_of_a_copy_is_replaced(pretrained: Path, tmp_path: Path, there: str) -> None:
    source = f"{pretrained}:backbone"
    copy = copy_of(source, tmp_path)
    copy.parent.mkdir()
    copy.write_text("") if there == "file" else copy.symlink_to(tmp_path / "nowhere")
    assert adopt(source, tmp_path) == f"{copy}:backbone" and (copy / "SHA256SUMS").is_file()


def test_a_damaged_copy_of_a_source_is_made_anew_or_refused(pretrained: Path, tmp_path: Path) -> None:
    a = tmp_path / "a"
    shutil.copytree(pretrained, a, ignore=shutil.ignore_patterns("eval"))
    tuned = tmp_path / "tuned"
    recipe = read_recipe("cifar10/rotnet-cpu", [*FINETUNE, f"backbone={{init: '{a}:backbone'}}"])
    assert train(recipe, tuned).finished
    copy = next((tuned / "sources").iterdir())
    for damage in ("export/backbone.safetensors", "recipe.yaml", "run.json", "export/backbone.json"):
        content = (copy / damage).read_bytes()
        (copy / damage).write_bytes(content[:-3])
        load_run(tuned)
        assert (copy / damage).read_bytes() == content
    shutil.rmtree(copy / "export")
    load_run(tuned)
    content = (copy / "export" / "backbone.safetensors").read_bytes()
    (copy / "export" / "backbone.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    aside = a.rename(tmp_path / "aside")
    with pytest.raises(UserError, match=r"the copy .*tuned/sources/a-.* is incomplete or damaged"):
        load_run(tuned)
    aside.rename(a)
    file = a / "export" / "backbone.safetensors"
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match=r"safetensors is damaged: its hash differs .*command of that run again"):
        load_run(tuned)
    with pytest.raises(UserError, match=r"backbone.safetensors is damaged"):
        train(recipe, tmp_path / "new")


def test_three_kills_of_a_probe_lose_little(run: Path, monkeypatch, capsys) -> None:
    class Kill(BaseException):
        pass

    real, ends = Updater.update, [3, 5, 7]

    def update(self, number, *args, **options):
        if ends and number == ends[0]:
            raise Kill
        return real(self, number, *args, **options)

    monkeypatch.setattr(Updater, "update", update)
    settings = ["epochs=3", *[text for text in QUICK if "epochs" not in text], "export=backbone", "checkpoint_every=1"]
    while ends:
        with pytest.raises(Kill):
            evaluate("linear-sgd", run, settings)
        ends.pop(0)
    assert evaluate("linear-sgd", run, settings) is not None
    said = capsys.readouterr().out
    assert all(f"going on from update {update}" in said for update in (3, 5, 7))
