"""Runs whose data is not what they were begun with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.engine.tiny_runs import older, rotnet
from tiny import tiny_recipe
from tiny_maps import labelmaps

from unlabeled.config.recipe import Recipe
from unlabeled.engine.run.record import read_record
from unlabeled.engine.train import train
from unlabeled.errors import UserError


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(30):
        Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8)).save(folder / f"{i:03d}.png")
    return folder


def of_photos(folder: Path, *more: str) -> Recipe:
    return rotnet("data.train.card=folder", f"data.train.root={folder}", *more)


def begun(recipe: Recipe, run: Path) -> None:
    """Train to the last checkpoint but one, as a run that was killed then."""
    assert train(recipe, run).finished
    for file in [*(run / "checkpoints").glob("update-00000006.*"), run / "DONE"]:
        file.unlink()
    (run / "SAVED").write_text("4\n")


def test_other_images_are_refused_with_both_counts_and_allowed_on_demand(photos: Path, tmp_path: Path, capsys) -> None:
    run = tmp_path / "run"
    begun(of_photos(photos), run)
    moved = photos.rename(tmp_path / "moved")
    assert train(of_photos(moved), run).finished, "data may move"
    for file in [*(run / "checkpoints").glob("update-00000006.*"), run / "DONE"]:
        file.unlink()
    (moved / "new.png").write_bytes((moved / "000.png").read_bytes())
    (moved / "001.png").unlink()
    (moved / "002.png").rename(moved / "zzz.png")
    with pytest.raises(UserError, match=r"30 samples \(other samples|data.train: 30 samples; other samples") as said:
        train(of_photos(moved), run)
    assert "'new.png' is new" in str(said.value) and "'001.png' is gone" in str(said.value)
    (moved / "more.png").write_bytes((moved / "000.png").read_bytes())
    with pytest.raises(UserError, match=r"30 samples when the run began, 31 now.*(\n.*)*train.allow_changed_data=true"):
        train(of_photos(moved), run)
    capsys.readouterr()
    assert train(of_photos(moved, "train.allow_changed_data=true"), run).finished
    assert "30 samples when the run began, 31 now" in capsys.readouterr().out
    record = read_record(run)
    assert "31 now" in record["starts"][-1]["notes"][0] and record["info"]["streams"]["train"]["samples"] == 31
    (moved / "more.png").unlink()
    assert train(of_photos(moved), run).finished, "a finished run needs no data"


def test_a_replaced_file_and_an_edited_card_are_refused(photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    card = tmp_path / "card.yaml"
    text = "name: mine\nsource: {kind: folder}\nroot: $CARD/photos\nsplits: {train: {path: .}}\n"
    card.write_text(text + "mean: [0.5, 0.5, 0.5]\nstd: [0.2, 0.2, 0.2]\n")
    recipe = rotnet(f"data.train.card={card}")
    begun(recipe, run)
    card.write_text("about: better words\n" + text + "mean: [0.4, 0.5, 0.5]\nstd: [0.2, 0.2, 0.2]\n")
    with pytest.raises(UserError, match=r"card.mean \[0.5, 0.5, 0.5\] when the run began, \[0.4, 0.5, 0.5\] now"):
        train(recipe, run)
    card.write_text("about: better words\n" + text + "mean: [0.5, 0.5, 0.5]\nstd: [0.2, 0.2, 0.2]\n")
    Image.new("RGB", (12, 12)).save(photos / "007.png")
    with pytest.raises(UserError, match=r"30 samples; other images \(sizes of files"):
        train(recipe, run)


def test_another_store_and_other_weights_of_a_mix_are_refused(tmp_path: Path) -> None:
    first, second = (Path(shutil.copytree(labelmaps(), tmp_path / name)) for name in "ab")
    header = json.loads((second / "header.json").read_bytes())
    (second / "header.json").write_text(json.dumps({**header, "about": {**header["about"], "teacher": "another"}}))

    def learning(store: Path) -> Recipe:
        made = tiny_recipe("relabel", "plain", [f"data.train.records={{labelmap: {store}}}", "train.checkpoint_every=2",
                                                "train.updates=6", "eval={every: 0, at_end: []}"])
        return made

    run = tmp_path / "run"
    begun(learning(first), run)
    with pytest.raises(UserError, match=r"data.train: 1297 samples; another store of labelmap rows"):
        train(learning(second), run)
    moved = first.rename(tmp_path / "moved")
    assert train(learning(moved), run).finished, "a store may move"

    def mixed(weight: int) -> Recipe:
        sets = f"[{{card: digits, weight: 1}}, {{card: digits, split: val, weight: {weight}}}]"
        return rotnet(f"data.train={{batch: 24, mix: {sets}}}")

    begun(mixed(1), tmp_path / "mixed")
    with pytest.raises(UserError, match=r"weights \[1.0, 1.0\] when the run began, \[1.0, 2.0\] now"):
        train(mixed(2), tmp_path / "mixed")


def test_runs_that_kept_only_counts_are_held_to_them(photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    begun(of_photos(photos), run)
    older(run)
    (photos / "new.png").write_bytes((photos / "000.png").read_bytes())
    with pytest.raises(UserError, match="30 samples when the run began, 31 now"):
        train(of_photos(photos), run)
    (photos / "new.png").unlink()
    assert train(of_photos(photos), run).finished


def test_a_lost_run_json_does_not_lose_the_fingerprint(photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    begun(of_photos(photos), run)
    (run / "run.json").unlink()
    (photos / "new.png").write_bytes((photos / "000.png").read_bytes())
    with pytest.raises(UserError, match="30 samples when the run began, 31 now"):
        train(of_photos(photos), run)
