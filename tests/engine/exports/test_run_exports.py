"""Exports that are missing or damaged, and runs that were killed while they wrote them."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.engine.tiny_runs import assert_same, rotnet

from unlabeled.engine.method import load_export
from unlabeled.engine.run import folder as run_folder
from unlabeled.engine.train import train
from unlabeled.errors import UserError


@pytest.mark.parametrize("damage", ["gone", "truncated", "flipped", "folder gone", "json gone", "no hash, truncated"])
def test_the_same_command_writes_a_damaged_export_again(finished: Path, tmp_path: Path, damage: str, capsys) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    file = run / "export" / "backbone.safetensors"
    content = file.read_bytes()
    if damage == "gone":
        file.unlink()
    elif damage == "folder gone":
        shutil.rmtree(run / "export")
    elif damage == "json gone":
        file.with_suffix(".json").unlink()
    else:
        file.write_bytes(content[:-4] if "truncated" in damage else content[:-1] + bytes([content[-1] ^ 64]))
    if damage == "no hash, truncated":
        about = json.loads(file.with_suffix(".json").read_text())
        del about["sha256"]
        file.with_suffix(".json").write_text(json.dumps(about))
    with pytest.raises(UserError, match="command") as said:
        load_export(f"{run}:backbone")
    assert "Traceback" not in str(said.value)
    capsys.readouterr()
    assert train(rotnet(), run).finished
    assert "it is written again from the last checkpoint" in capsys.readouterr().out
    assert file.read_bytes() == content
    network = load_export(f"{run}:backbone").build().state_dict()
    assert all(torch.equal(value, network[name]) for name, value in load_file(file).items())
    assert train(rotnet(), run).finished and "is finished" in capsys.readouterr().out


def test_an_export_without_a_checkpoint_to_write_it_from_is_refused(finished: Path, tmp_path: Path, capsys) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    shutil.rmtree(run / "checkpoints")
    assert train(rotnet(), run).finished, "checkpoints of a finished run may be deleted to save space"
    (run / "export" / "backbone.safetensors").unlink()
    metrics = (run / "metrics.jsonl").read_bytes()
    for marker in (True, False):
        with pytest.raises(UserError, match="holds no checkpoint, but one was saved after update 6"):
            train(rotnet(), run)
        if marker:
            (run / "SAVED").unlink()
    assert (run / "metrics.jsonl").read_bytes() == metrics


@pytest.mark.parametrize("stage", ["first export", "second export", "DONE"])
def test_a_run_that_was_killed_while_it_finished_finishes(run: Path, finished: Path, stage: str, monkeypatch) -> None:
    names = {"first export": "export/backbone.safetensors", "second export": "export/", "DONE": "DONE"}
    real, calls = run_folder.RunFolder.write_bytes, []

    def killed(self, name, data):
        calls.append(name)
        hit = name.startswith(names[stage]) and (stage != "second export" or sum("export/" in c for c in calls) == 3)
        if hit:
            raise SystemExit(137)
        real(self, name, data)

    monkeypatch.setattr(run_folder.RunFolder, "write_bytes", killed)
    with pytest.raises(SystemExit):
        train(rotnet(), run)
    monkeypatch.undo()
    assert not (run / "DONE").exists()
    assert train(rotnet(), run).finished
    assert_same(run, finished)
    assert [f.read_bytes() for f in sorted((run / "export").glob("*.safetensors"))] == [
        f.read_bytes() for f in sorted((finished / "export").glob("*.safetensors"))]


def test_an_exports_json_says_what_it_is_and_of_which_update(finished: Path) -> None:
    about = json.loads((finished / "export" / "backbone.json").read_text())
    content = (finished / "export" / "backbone.safetensors").read_bytes()
    assert (about["update"], about["method"], about["gives"]) == (6, "rotnet", "vector")
    assert about["sha256"] == hashlib.sha256(content).hexdigest()
    assert about["seed"] == 0 and about["input"]["size"] == about["preparation"]["size"]
