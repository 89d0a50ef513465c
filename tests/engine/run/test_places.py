"""A run that was begun with relative paths is found, measured and gone on with from any other folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.data.sources.test_folder import write

from unlabeled.cli.main import main
from unlabeled.config.read import read_recipe
from unlabeled.data.sources.files.lists import read_lines
from unlabeled.data.sources.open import open_source
from unlabeled.data.streams import open_streams

SETTINGS = ["data.train.card=card.yaml", "data.train.root=photos", "data.train.batch=8", "data.workers=0",
            "train.updates=2",
            "train.epochs=null", "optim.warmup_epochs=0", "backbone.width=0.125", "method.crop.size=16", "eval.every=0",
            "eval.at_end=[]", "train.checkpoint_every=1"]


@pytest.mark.slow
def test_later_commands_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                            capsys: pytest.CaptureFixture[str]) -> None:
    first, other = tmp_path / "first", tmp_path / "other"
    names = [f"{split}/{name}/{i}.jpg" for split in ("train", "val") for name in ("cat", "dog\nx") for i in range(8)]
    write(first / "photos", *names)
    (first / "card.yaml").write_text("name: mine\nsource: {kind: classfolder}\nsplits: {train: {}, val: {}}\n")
    other.mkdir()
    monkeypatch.chdir(first)
    assert main(["pretrain", "demo/simclrv2-shapes", *SETTINGS, "run=photos/runs/x"]) == 0
    run = first / "photos" / "runs" / "x"
    stream = read_recipe(run / "recipe.yaml").data.train
    assert stream is not None and (stream.card, stream.root) == (str(first / "card.yaml"), str(first / "photos"))
    monkeypatch.chdir(other)
    write(other / "photos", "train/cat/0.jpg")  # another set under the same relative name
    assert len(open_streams(read_recipe(run / "recipe.yaml"))["train"].source) == 16
    assert main(["evaluate", "knn", str(run), "k=[3]", "workers=0"]) == 0
    assert main(["features", str(run), str(first / "photos"), "out=x.npy"]) == 0
    keys = read_lines((other / "x.txt").read_bytes())
    assert keys == sorted(names)  # and no picture of the run
    monkeypatch.chdir(first)
    for done in (*run.glob("checkpoints/update-00000002*"), run / "DONE"):
        done.unlink()
    capsys.readouterr()
    assert main(["pretrain", "demo/simclrv2-shapes", *SETTINGS, "run=photos/runs/x"]) == 0
    assert "going on from update 1" in capsys.readouterr().out
    card = open_streams(read_recipe(run / "recipe.yaml"))["train"].card
    assert len(open_source(card, "val", str(first / "photos"))) == 16
