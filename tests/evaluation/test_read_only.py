"""A place that takes no files costs no results: they are shown first, or it is refused before they are computed."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.evaluation.dense.fakes import Blocks, MapRuns
from tests.evaluation.fakes import FakeRuns

from unlabeled.config.look import LookSettings
from unlabeled.errors import UserError
from unlabeled.evaluation import evaluate as evaluating
from unlabeled.evaluation import export_features as exporting
from unlabeled.evaluation.dense import look as looking


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeRuns:
    fake = FakeRuns("digits", tmp_path / "run")
    for module in (evaluating, exporting):
        monkeypatch.setattr(module, "load_run", fake)
    return fake


def full(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_evaluate_prints_its_table_and_then_says_that_it_is_not_kept(
    runs: FakeRuns, monkeypatch: pytest.MonkeyPatch, capsys, number: int
) -> None:
    full(monkeypatch, number)
    with pytest.raises(UserError, match=r"the results above are not kept: cannot write .*knn-update00000012\.json"):
        evaluating.evaluate("knn", runs.run, ["workers=0", "random_init=false", "raw_pixels=false"])
    assert "knn20@.07" in capsys.readouterr().out
    assert not list((runs.run / "eval").iterdir())


def test_without_labels_the_health_is_printed_although_no_picture_can_be_written(
    runs: FakeRuns, tmp_path: Path, capsys
) -> None:
    runs.run.mkdir()
    (runs.run / "eval").write_text("")  # a file where the folder should be
    photos(tmp_path / "photos")
    settings = ["card=folder", f"root={tmp_path / 'photos'}", "workers=0", "random_init=false"]
    with pytest.raises(UserError, match="the results above are not kept"):
        evaluating.evaluate("knn", runs.run, settings)
    said = capsys.readouterr().out
    assert "effective rank" in said and "no picture of nearest neighbours: cannot write" in said


def photos(folder: Path) -> None:
    folder.mkdir()
    for i in range(4):
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")


def test_features_are_refused_before_they_are_computed(runs: FakeRuns, tmp_path: Path) -> None:
    photos(tmp_path / "photos")
    runs.run.mkdir()
    (runs.run / "features").write_text("")
    out = runs.run / "features" / "photos.npy"
    with pytest.raises(UserError, match=r"cannot write .*photos\.npy: .*; name a file elsewhere with out=FILE"):
        exporting.export_features(runs.run, tmp_path / "photos", out, workers=0)
    assert runs.loads == 0
    assert exporting.export_features(runs.run, tmp_path / "photos", tmp_path / "new" / "x.npy", workers=0) == 4


def test_pictures_are_refused_before_they_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = MapRuns(tmp_path / "run", Blocks(4))
    monkeypatch.setattr(looking, "load_run", fake)
    fake.write_card(tmp_path / "scenes.yaml", train=3, val=3)
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "run" / "look").write_text("")
    settings = {"card": str(tmp_path / "scenes.yaml"), "count": 2}
    with pytest.raises(UserError, match=r"cannot write .*; name a folder elsewhere with out=FOLDER"):
        looking.look(tmp_path / "run", [], LookSettings(**settings))
    assert looking.look(tmp_path / "run", [], LookSettings(**settings, out=str(tmp_path / "new")))
