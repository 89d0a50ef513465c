"""`run.json`: starts of all versions, who may be told apart, and what a start says of the one before."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from tests.tiny import tiny_recipe

from unlabeled.config.yaml.write import to_yaml
from unlabeled.engine.run import record
from unlabeled.engine.run.folder import RunFolder
from unlabeled.engine.run.record import new_id, read_record, this_start, what_changed
from unlabeled.errors import UserError


def test_a_start_says_where_and_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "world", lambda: 3)
    monkeypatch.setattr(sys, "argv", ["unlabeled", "pretrain", "x"])
    start = this_start(40, 2)
    assert (start["update"], start["processes"], start["workers"]) == (40, 3, 2)
    assert start["command"] == ["unlabeled", "pretrain", "x"] and start["versions"]["torch"] != "absent"
    assert json.loads(json.dumps(start)) == start
    assert len({new_id() for _ in range(50)}) == 50


@pytest.mark.parametrize(("before", "now", "streamed", "said"), [
    ({"processes": 2, "workers": 4}, {"processes": 2, "workers": 4}, ["train"], []),
    ({"processes": 2, "workers": 4}, {"processes": 2, "workers": 1}, [], []),
    ({"processes": 2, "workers": 4}, {"processes": 1, "workers": 4}, [], ["1 process where the run had 2 processes"]),
    ({"processes": 2, "workers": 4}, {"processes": 2, "workers": 1}, ["train"], ["data.train is streamed"]),
    ({"processes": 1, "workers": 4}, {"processes": 2, "workers": 4}, ["a", "b"],
     ["2 processes where the run had 1 process", "data.a and data.b is streamed"]),
    ({}, {"processes": 2, "workers": 4}, ["train"], []),
], ids=["same", "workers", "processes", "streamed", "both", "unknown"])  # fmt: skip
def test_what_changes_bits_is_said_and_nothing_else(before, now, streamed, said) -> None:
    lines = what_changed(before, now, streamed)
    assert len(lines) == len(said) and all(line.startswith(start) for line, start in zip(lines, said, strict=True))


def test_records_of_all_versions_are_read(tmp_path: Path) -> None:
    def read(content: object) -> dict:
        (tmp_path / "run.json").write_text(json.dumps(content))
        return read_record(tmp_path)

    info = {"classes": 3}
    assert read({"info": info}) == {"id": None, "info": info, "data": None, "starts": []}
    assert read({"info": info, "host": "a", "data": {"train": {}}})["starts"] == [{"host": "a", "update": 0}]
    whole = {"id": "x", "info": info, "data": {"train": {"n": 3}}, "starts": [{"update": 0}, {"update": 4}]}
    assert read(whole) == whole
    for wrong, said in (({"starts": {}}, "'starts'"), ({"starts": [1]}, "'starts'"), ({"id": 3}, "'id' is 3"),
                        ({"data": []}, r"'data' is \[\]"), ({"info": None}, "'info' is missing")):
        with pytest.raises(UserError, match=said):
            read({**whole, **wrong})


def test_a_run_that_saved_nothing_keeps_its_id_and_starts_unless_its_recipe_changes(tmp_path: Path) -> None:
    recipe, folder = tiny_recipe("rotnet", "all"), RunFolder(tmp_path)
    info = {"info": {}, "data": {}}
    folder.open(recipe, info, fresh=False)
    first = read_record(tmp_path)
    folder.begin(recipe, info, 0, [], [])
    folder.open(recipe, info, fresh=False)
    again = read_record(tmp_path)
    assert again["id"] == first["id"] is not None and [start["update"] for start in again["starts"]] == [0]
    folder.open(tiny_recipe("rotnet", "all", ["train.seed=1"]), info, fresh=False)
    other = read_record(tmp_path)
    assert other["id"] != first["id"] and other["starts"] == []
    folder.lock.release()


def test_starts_are_added_and_what_differs_from_the_one_before_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, folder = tiny_recipe("rotnet", "all"), RunFolder(tmp_path)
    info = {"info": {}, "data": {}}
    folder.open(recipe, info, fresh=False)
    assert folder.begin(recipe, info, 0, [], []) == []
    monkeypatch.setattr(record, "world", lambda: 2)
    (note,) = folder.begin(recipe, info, 4, [], [])
    assert note.startswith("2 processes where the run had 1 process")
    starts = read_record(tmp_path)["starts"]
    assert [(start["update"], start["processes"], start.get("notes")) for start in starts] == [
        (0, 1, None), (4, 2, [note])]
    folder.lock.release()


def test_setting_aside_never_takes_the_place_of_an_earlier_one(tmp_path: Path) -> None:
    for number in range(3):
        folder = RunFolder(tmp_path / "run")
        folder.open(tiny_recipe("rotnet", "all", [f"train.seed={number}"]), {"info": {}}, fresh=True)
        folder.lock.release()
    aside = [tmp_path / f"run.replaced-{number}" / "recipe.yaml" for number in (1, 2)]
    assert ["seed: 0" in aside[0].read_text(), "seed: 1" in aside[1].read_text()] == [True, True]


def test_only_an_unfinished_last_line_of_metrics_is_passed_over_in_silence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunFolder(tmp_path)
    folder.metrics.write_text('{"update": 1}\n{"update": 2, "lo')
    assert folder.read_lines(folder.metrics) == [{"update": 1}] and capsys.readouterr().out == ""
    folder.metrics.write_text('{"update": 1}\n{"upd\n[]\n{"update": 3}\n')
    assert [line["update"] for line in folder.read_lines(folder.metrics)] == [1, 3]
    assert "2 lines that cannot be read (2, 3) left out" in capsys.readouterr().out


def test_metrics_tell_of_a_checkpoint_only_from_its_update_on(tmp_path: Path) -> None:
    """Earlier versions kept no marker: whether one has vanished is known from how far the metrics go."""
    folder = RunFolder(tmp_path)
    (tmp_path / "recipe.yaml").write_text(to_yaml(tiny_recipe("rotnet", "all", ["train.checkpoint_every=100"])))
    folder.append(folder.metrics, [{"update": update} for update in range(0, 100, 10)])
    assert not folder.goes_on()
    folder.append(folder.metrics, [{"update": update} for update in range(100, 260, 10)])
    with pytest.raises(UserError, match="holds no checkpoint, but one was saved after update 200"):
        folder.goes_on()
