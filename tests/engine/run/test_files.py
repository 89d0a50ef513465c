"""Checkpoints and run folders: nothing half-written, nothing mistaken, nothing lost."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from tiny import tiny_recipe

from unlabeled.config.read import read_recipe
from unlabeled.data.sources.base import CorruptSample, with_reason
from unlabeled.data.streams import open_streams
from unlabeled.engine.run import checkpoint
from unlabeled.engine.run.checkpoint import Checkpoints
from unlabeled.engine.run.chosen import keep_chosen
from unlabeled.engine.run.corrupt import CorruptSamples
from unlabeled.engine.run.folder import RunFolder
from unlabeled.errors import UserError

STATE = {"weights": torch.arange(10.0)}


def saved(folder: Path, *updates: int) -> Checkpoints:
    checkpoints = Checkpoints(folder, keep=2)
    for update in updates:
        checkpoints.save(update, {**STATE, "update": update})
    return checkpoints


def test_the_newest_are_kept_and_found(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 5, 10, 15)
    assert [p.stem for p in checkpoints.complete()] == ["update-00000010", "update-00000015"]
    state, passed = checkpoints.load_newest()
    assert state is not None and state["update"] == 15 and not passed
    assert torch.equal(state["weights"], STATE["weights"])


@pytest.mark.parametrize("damage", ["truncate", "flip", "no hash"])
def test_a_damaged_one_falls_back(tmp_path: Path, damage: str) -> None:
    checkpoints = saved(tmp_path, 5, 10)
    path = tmp_path / "update-00000010.pt"
    data = bytearray(path.read_bytes())
    if damage == "truncate":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "flip":
        data[100] ^= 1
        path.write_bytes(data)
    else:
        path.with_suffix(".json").unlink()
    state, passed = checkpoints.load_newest()
    assert state is not None and state["update"] == 5
    assert len(passed) == (0 if damage == "no hash" else 1), "an unfinished checkpoint is no damage"


def test_all_damaged_is_an_error_and_not_a_silent_restart(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 5)
    (tmp_path / "update-00000005.pt").write_bytes(b"")
    with pytest.raises(UserError, match=r"start anew with fresh=true.*\n.*is damaged"):
        checkpoints.load_newest()


def test_checkpoints_that_vanish_are_missed_by_the_mark_of_the_last_one(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2, marker=tmp_path / "SAVED")
    assert checkpoints.load_newest() == (None, [])
    for update in (5, 10):
        checkpoints.save(update, {**STATE, "update": update})
    assert checkpoints.load_newest()[1] == []
    newest = tmp_path / "checkpoints" / "update-00000010.pt"
    for path in (newest, newest.with_suffix(".json")):
        path.unlink()
    state, passed = checkpoints.load_newest()
    assert state is not None and state["update"] == 5
    assert passed == [f"the checkpoint after update 10 is missing in {tmp_path / 'checkpoints'}"]
    for path in (tmp_path / "checkpoints").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="holds no checkpoint, but one was saved after update 10"):
        checkpoints.load_newest()


def test_a_full_disk_names_the_file_and_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = saved(tmp_path, 5)
    before = sorted(p.name for p in tmp_path.iterdir())

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    with pytest.raises(UserError, match=r"cannot write .*update-00000010.pt: the disk is full; free some space"):
        checkpoints.save(10, {**STATE, "update": 10})
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_metrics_are_cut_back_and_a_torn_last_line_is_dropped(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.append(folder.metrics, [{"update": u, "loss": 1.0} for u in range(6)])
    with open(folder.metrics, "a") as file:
        file.write('{"update": 6, "lo')
    folder.cut_back(4)
    assert [json.loads(line)["update"] for line in folder.metrics.read_text().splitlines()] == [0, 1, 2, 3]


def test_another_recipe_is_refused_but_where_and_how_may_change(tmp_path: Path) -> None:
    run = tmp_path / "run"
    RunFolder(run).open(tiny_recipe("simclrv2", "plain", ["train.seed=9"]), {"info": {}}, fresh=False)
    # a start that failed before its first checkpoint does not stand in the way of the corrected command
    RunFolder(run).open(tiny_recipe("simclrv2", "plain"), {"info": {}}, fresh=False)
    saved(run / "checkpoints", 5)
    free = ["data.workers=3", "train.log_every=1", "data.train.root=elsewhere", "eval.queries=5"]
    RunFolder(run).open(tiny_recipe("simclrv2", "plain", free), {"info": {}}, fresh=False)
    other = tiny_recipe("simclrv2", "plain", ["train.seed=3", "method.temperature=0.7"])
    with pytest.raises(UserError, match=r"method.temperature: 0.2 there, 0.7 now\n  train.seed: 0 there, 3 now"):
        RunFolder(run).open(other, {"info": {}}, fresh=False)
    RunFolder(run).open(other, {"info": {}}, fresh=True)
    assert (tmp_path / "run.replaced-1" / "recipe.yaml").exists()


def test_a_run_goes_on_after_a_new_version_brought_an_option_with_a_default(tmp_path: Path) -> None:
    RunFolder(tmp_path).open(tiny_recipe("simclrv2", "plain"), {"info": {}}, fresh=False)
    saved(tmp_path / "checkpoints", 5)
    lines = (tmp_path / "recipe.yaml").read_text().splitlines(keepends=True)
    older = [line for line in lines if "nonfinite" not in line and "temperature" not in line]
    assert len(older) == len(lines) - 2
    (tmp_path / "recipe.yaml").write_text("".join(older))
    default = tiny_recipe("simclrv2", "plain", ["method.temperature=0.1"])
    RunFolder(tmp_path).open(default, {"info": {}}, fresh=False)
    (tmp_path / "recipe.yaml").write_text("".join([*older, "unheard_of: 1\n"]))
    with pytest.raises(UserError, match="unheard_of: 1 there, absent now"):
        RunFolder(tmp_path).open(default, {"info": {}}, fresh=False)


def test_corrupt_samples_are_named_once_forgiven_in_small_numbers_and_stop_above_the_share(tmp_path: Path) -> None:
    corrupt = CorruptSamples(RunFolder(tmp_path), samples=1000, share=0.02)
    assert corrupt.add(0, ["b", "a", "b"]) == ["a", "b"]
    assert corrupt.add(1, ["a"]) == []
    corrupt.add(2, [f"x{i}" for i in range(18)])
    again = CorruptSamples(RunFolder(tmp_path), samples=1000, share=0.02)
    assert again.seen == corrupt.seen, "a resumed run knows them"
    with pytest.raises(UserError, match=r"21 of 1000 samples cannot be read, more than data.max_corrupt 0.02 allows"):
        again.add(3, ["one more"])


def test_why_samples_are_corrupt_is_kept_and_said(tmp_path: Path) -> None:
    corrupt = CorruptSamples(RunFolder(tmp_path), samples=100, share=0.02)
    (found,) = corrupt.add(0, [CorruptSample("a.tif", "no known black and white").key])
    assert found == "a.tif" and with_reason(found) == "a.tif: no known black and white"
    again = CorruptSamples(RunFolder(tmp_path), samples=100, share=0.02)
    with pytest.raises(UserError, match=r"11 of 100 samples(.|\n)*\n  a.tif: no known black and white\n  b0\n"):
        again.add(1, [f"b{i}" for i in range(10)])


def test_the_chosen_images_are_kept_with_the_run_and_a_changed_set_is_refused(tmp_path: Path) -> None:
    recipe = read_recipe("demo/simmatchv2")
    opened = open_streams(recipe)
    folder = RunFolder(tmp_path)
    keep_chosen(folder, recipe, opened)
    keys = (tmp_path / "subset-labeled.txt").read_text().split()
    source = opened["labeled"].source
    assert keys == [source.key(i) for i in range(40)] and not (tmp_path / "subset-unlabeled.txt").exists()
    saved(folder.checkpoints, 5)
    keep_chosen(folder, recipe, opened)
    other = open_streams(read_recipe("demo/simmatchv2", ["data.labeled.subset.seed=1"]))
    with pytest.raises(UserError, match=r"data\.labeled\.subset chooses other images.*the data has changed"):
        keep_chosen(folder, recipe, other)
    (tmp_path / "subset-labeled.txt").unlink()
    (tmp_path / "subset-labeled.txt").mkdir()
    with pytest.raises(UserError, match=r"subset-labeled.txt cannot be read: Is a directory; remove it"):
        keep_chosen(folder, recipe, opened)
