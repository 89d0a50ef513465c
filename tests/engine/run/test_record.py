"""`run.json`: starts of all versions, who may be told apart, and what a start says of the one before."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from unlabeled.engine.run import record
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
