"""Sweeps: a folder per run, parts, going on, and one table over seeds."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from rich.console import Console

from unlabeled.config.jobs.sweep import read_sweep
from unlabeled.config.passes.shared import Part
from unlabeled.engine.restore import load_run
from unlabeled.engine.train import Result
from unlabeled.errors import UserError
from unlabeled.evaluation import kept
from unlabeled.evaluation import sweep as module
from unlabeled.evaluation.sweep import run_sweep
from unlabeled.report.report import read_report
from unlabeled.report.sweep import Row, print_sweep

TINY = ["backbone={name: resnet18, width: 0.125, stem: cifar}", "train.epochs=null", "train.updates=2",
        "data.train.batch=16", "data.workers=0", "eval.every=0", "eval.at_end=[knn]", "optim.warmup_epochs=0"]
SETTINGS = [*TINY, "optim.lr.base=[0.1,1]", "train.seed=[0,1]"]
NAMES = ["base-0.1_seed-0", "base-0.1_seed-1", "base-1_seed-0", "base-1_seed-1"]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run a sweep in two parts."""
    folder = tmp_path_factory.mktemp("sweep")
    for number in (1, 2):
        assert run_sweep(read_sweep("demo/simclrv2", SETTINGS), folder, Part(number, 2)) == 0
    return folder


def test_every_run_has_a_folder_and_a_line(swept: Path) -> None:
    assert sorted(path.name for path in swept.iterdir() if path.is_dir()) == NAMES
    assert [load_run(swept / name).recipe.train.seed for name in NAMES] == [0, 1, 0, 1]
    rows = list(csv.DictReader((swept / "sweep.csv").open()))
    assert [(row["run"], row["optim.lr.base"], row["train.seed"]) for row in rows] == [
        (name, base, seed) for name, base, seed in zip(NAMES, ["0.1", "0.1", "1", "1"], "0101", strict=True)]
    report = read_report(swept / NAMES[2] / "eval" / "knn-update00000002.json")
    assert report is not None and report.train_seed == 0
    first = report.numbers[0]
    assert float(rows[2][f"knn {first.name}"]) == first.network["value"]


def test_the_same_command_goes_on_and_trains_and_measures_nothing_twice(
    swept: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "train", lambda *args: pytest.fail("trained again"))
    monkeypatch.setattr(kept, "evaluate_many", lambda *args: pytest.fail("measured again"))
    assert run_sweep(read_sweep("demo/simclrv2", SETTINGS), swept, Part()) == 0
    said = capsys.readouterr().out
    assert "optim.lr.base" in said and " ± " in said and "standard deviation over train.seed" in said
    assert str(swept / "sweep.csv") in said


def test_a_report_by_other_settings_is_measured_again(swept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = swept / NAMES[0] / "eval" / "knn-update00000002.json"
    text = file.read_text()
    assert kept.kept_reports(swept / NAMES[0], ["knn"]) is not None
    assert kept.kept_reports(swept / NAMES[0], ["knn", "linear"]) is None
    try:
        file.write_text(text.replace('"temperature": ', '"temperature": 9'))
        assert kept.kept_reports(swept / NAMES[0], ["knn"]) is None
        file.write_text(text[:100])
        assert kept.kept_reports(swept / NAMES[0], ["knn"]) is None
        monkeypatch.setattr(kept, "evaluate_many", lambda protocols, run: ["anew"])
        assert kept.measured(swept / NAMES[0], ["knn"]) == ["anew"]
    finally:
        file.write_text(text)


def test_what_is_missing_is_said_and_an_interrupted_run_ends_the_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begun: list[str] = []

    def train(recipe, run: Path) -> Result:
        begun.append(run.name)
        (run / "checkpoints").mkdir(parents=True)
        (run / "metrics.jsonl").write_text('{"update": 1, "loss": 2.5}\n')
        (run / "DONE").write_text("2\n")
        return Result(run, 2, finished=len(begun) < 3, exit_code=130)

    monkeypatch.setattr(module, "train", train)
    sweep = read_sweep("demo/simclrv2", [*TINY, "eval.at_end=[]", "train.seed=[0,1,2,3]"])
    assert run_sweep(sweep, tmp_path, Part(1, 2)) == 0
    said = capsys.readouterr().out
    assert "2 of 4 runs are finished" in said and "last loss" in said and "2.5 ± 0" in said
    assert run_sweep(sweep, tmp_path, Part(2, 2)) == 130
    assert begun == ["seed-0", "seed-1", "seed-2"]


def test_a_run_that_diverges_does_not_take_the_others_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(recipe, run: Path) -> Result:
        if run.name == "seed-0":
            raise UserError("loss became nan at update 7\nlast finite update 6")
        run.mkdir()
        (run / "DONE").write_text("2\n")
        return Result(run, 2, finished=True)

    monkeypatch.setattr(module, "train", train)
    sweep = read_sweep("demo/simclrv2", [*TINY, "eval.at_end=[]", "train.seed=[0,1,2]"])
    with pytest.raises(UserError, match=r"^1 of 3 runs ended with an error:\n  seed-0: loss became nan at update 7$"):
        run_sweep(sweep, tmp_path, Part())
    said = capsys.readouterr()
    assert "last finite update 6" in said.err and "2 of 3 runs are finished" in said.out


def test_the_table_counts_seeds_and_shows_deviations() -> None:
    rows = [Row("a", {"lr": "1", "train.seed": "0"}, {"knn k=5": 60.0, "loss": 1.0}),
            Row("b", {"lr": "1", "train.seed": "1"}, {"knn k=5": 64.0, "loss": 1.5}),
            Row("c", {"lr": "2", "train.seed": "0"}, {"knn k=5": 50.0})]
    console = Console(record=True, width=120)
    print_sweep(rows, console)
    text = [line.split("│")[1:-1] for line in console.export_text().splitlines() if "│" in line]
    lines = [[cell.strip() for cell in line] for line in text]
    assert lines == [["1", "62.0 ± 2.8", "1.25 ± 0.354", "2"], ["2", "50.0", "", "1"]]
