"""What a run knows of itself: checkpoints that vanish, recipes, starts, data, exports that are not what they were."""

from __future__ import annotations

import json
import os
import shutil
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.engine.tiny_runs import SHORT, assert_same, older, rotnet
from tests.tiny import tiny_recipe

from unlabeled.engine import train as training
from unlabeled.engine.restore import load_run
from unlabeled.engine.run.checkpoint import Checkpoints
from unlabeled.engine.run.folder import RunFolder
from unlabeled.engine.run.record import read_record
from unlabeled.engine.train import train
from unlabeled.errors import UserError

# ---- checkpoints that vanish


def folder_gone(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")


def folder_emptied(run: Path) -> None:
    for file in (run / "checkpoints").iterdir():
        file.unlink()


def pt_gone(run: Path) -> None:
    for file in (run / "checkpoints").glob("*.pt"):
        file.unlink()


def json_gone(run: Path) -> None:
    for file in (run / "checkpoints").glob("*.json"):
        file.unlink()


def json_is_a_list(run: Path) -> None:
    for file in (run / "checkpoints").glob("*.json"):
        file.write_text("[1, 2]")


def json_without_hash(run: Path) -> None:
    for file in (run / "checkpoints").glob("*.json"):
        file.write_text('{"update": 4, "sha256": null}')


def empty(run: Path) -> None:
    for file in (run / "checkpoints").iterdir():
        file.write_bytes(b"")


def a_file_in_its_place(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").write_text("")


def a_link_to_nowhere(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").symlink_to(run / "nowhere")


def saved_gone_too(run: Path) -> None:
    folder_gone(run)
    (run / "SAVED").unlink(missing_ok=True)


def a_folder_per_checkpoint(run: Path) -> None:
    for file in list((run / "checkpoints").glob("*.pt")):
        file.unlink()
        file.mkdir()


@pytest.mark.parametrize("old", [False, True], ids=["new", "old"])
@pytest.mark.parametrize(
    "damage",
    [folder_gone, folder_emptied, pt_gone, json_gone, json_is_a_list, json_without_hash, empty, a_file_in_its_place,
     a_link_to_nowhere, a_folder_per_checkpoint, saved_gone_too],
)
def test_a_run_whose_checkpoints_vanished_is_refused_and_nothing_is_cut(
    run: Path, damage: Callable[[Path], None], old: bool
) -> None:
    if old:
        older(run)
        shutil.copy(run / "recipe.yaml", run / "kept.yaml")
    damage(run)
    before = {file: file.read_bytes() for file in run.iterdir() if file.is_file() and file.name != "lock"}
    folder = RunFolder(run)
    with pytest.raises(UserError) as said:
        folder.open(rotnet(), {"info": {}, "data": {}}, fresh=False)
        folder.saved_states().load_newest()
    assert "checkpoints" in str(said.value) and "Error" not in str(said.value)
    assert {file: file.read_bytes() for file in before} == before
    folder.lock.release()


def test_a_folder_of_checkpoints_that_may_not_be_read_is_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.scandir

    def denied(path):
        if Path(path).name == "checkpoints":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(UserError, match=r"checkpoints cannot be read: .*Permission denied"):
        RunFolder(run).open(rotnet(), {"info": {}}, fresh=False)


def test_one_that_vanished_is_missed_and_the_one_before_goes_on(run: Path, finished: Path, capsys) -> None:
    (run / "checkpoints" / "update-00000004.pt").unlink()
    (run / "checkpoints" / "update-00000004.json").unlink()
    shutil.copytree(finished / "checkpoints", run / "checkpoints", dirs_exist_ok=True)
    (run / "SAVED").write_text("6\n")
    for file in (run / "checkpoints").glob("update-00000006.*"):
        file.unlink()
    assert train(rotnet(), run).finished
    said = capsys.readouterr().out
    assert "the checkpoint after update 6 is missing" in said and "going on from update 4" in said
    assert_same(run, finished)


def test_a_saved_one_that_lost_its_hash_is_told_of(run: Path, finished: Path, capsys) -> None:
    shutil.copytree(finished / "checkpoints", run / "checkpoints", dirs_exist_ok=True)
    (run / "SAVED").write_text("6\n")
    (run / "checkpoints" / "update-00000006.json").unlink()
    assert train(rotnet(), run).finished
    said = capsys.readouterr().out
    assert "update-00000006.json: No such file" in said and "going on from update 4" in said
    assert_same(run, finished)


def test_damaged_ones_do_not_count_when_the_oldest_go(tmp_path: Path) -> None:
    state = {"weights": torch.arange(10.0)}
    checkpoints = Checkpoints(tmp_path, keep=4)
    for update in (2, 4, 6, 8):
        checkpoints.save(update, {**state, "update": update})
    for update in (6, 8):
        (tmp_path / f"update-{update:08d}.pt").write_bytes(b"damaged")
    fewer = Checkpoints(tmp_path, keep=2)
    found, passed = fewer.load_newest()
    assert found is not None and found["update"] == 4 and len(passed) == 2
    fewer.save(5, {**state, "update": 5})
    assert [path.stem for path in Checkpoints(tmp_path, 2).complete()] == ["update-00000004", "update-00000005"]
    # an older one that rotted after it was written does not count either
    (tmp_path / "update-00000004.pt").write_bytes(b"damaged")
    third = Checkpoints(tmp_path, keep=2)
    assert third.load_newest()[0]["update"] == 5
    third.save(6, {**state, "update": 6})
    assert Checkpoints(tmp_path, 2).load_newest()[0]["update"] == 6
    (tmp_path / "update-00000006.pt").write_bytes(b"damaged")
    assert Checkpoints(tmp_path, 2).load_newest()[0]["update"] == 5


def test_damaged_checkpoints_stay_until_enough_good_ones_stand(tmp_path: Path) -> None:
    for update in (1, 2):
        Checkpoints(tmp_path, keep=2).save(update, {"update": update}).write_bytes(b"damaged")
    checkpoints = Checkpoints(tmp_path, keep=2)
    checkpoints.save(3, {"update": 3})
    assert len(checkpoints.every()) == 3
    checkpoints.save(4, {"update": 4})
    assert [path.stem for path in checkpoints.every()] == ["update-00000003", "update-00000004"]


def test_a_checkpoint_with_a_good_hash_that_is_none_is_refused(tmp_path: Path) -> None:
    for content in ({"update": "five"}, [1, 2], 3.0):
        checkpoints = Checkpoints(tmp_path, keep=2)
        checkpoints.save(5, content)
        with pytest.raises(UserError, match=r"update-00000005\.pt is none of this program"):
            checkpoints.load_newest()


@pytest.mark.parametrize("damage", ["deleted", "empty", "binary", "a list"])
def test_without_its_recipe_a_run_goes_on_with_that_of_its_checkpoints_alone(
    run: Path, finished: Path, damage: str
) -> None:
    file = run / "recipe.yaml"
    if damage == "deleted":
        file.unlink()
    else:
        file.write_bytes({"empty": b"", "binary": bytes(range(256)), "a list": b"- 1\n"}[damage])
    with pytest.raises(UserError, match=r"is of another recipe:\n  train.seed: 0 there, 3 now"):
        train(rotnet("train.seed=3"), run)
    assert train(rotnet(), run).finished
    assert_same(run, finished)


def test_without_any_recipe_an_older_run_is_refused(run: Path) -> None:
    older(run)
    (run / "recipe.yaml").unlink()
    with pytest.raises(UserError, match=r"recipe.yaml is missing or damaged.*fresh=true"):
        train(rotnet(), run)


def test_checkpoints_of_another_run_are_refused_in_training_and_in_reading(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    assert train(tiny_recipe("simclrv2", "plain", [*SHORT, "train.updates=4"]), other).finished
    shutil.rmtree(run / "checkpoints")
    shutil.copytree(other / "checkpoints", run / "checkpoints")
    with pytest.raises(UserError, match=r"update-00000004.pt is of another recipe:(\n.*)*method.name: simclrv2 there"):
        train(rotnet(), run)
    with pytest.raises(UserError, match=r"is of another recipe than .*recipe.yaml"):
        load_run(run)
    older(run)  # nothing but their content tells those of earlier versions apart
    with pytest.raises(UserError, match="does not fit the method of the run's recipe"):
        load_run(run)
    with pytest.raises(UserError, match="does not fit the method of the run's recipe"):
        train(rotnet(), run)


def test_runs_of_earlier_versions_go_on(run: Path, finished: Path) -> None:
    older(run)
    assert train(rotnet(), run).finished
    assert_same(run, finished)
    record = read_record(run)
    assert [start["update"] for start in record["starts"]] == [0, 4]
    assert record["id"] == run.name, "W&B knows it by this name"


# ---- run.json


def test_starts_are_appended_and_a_finished_run_is_left_alone(run: Path, finished: Path, monkeypatch) -> None:
    first = read_record(run)
    monkeypatch.setattr(sys, "argv", ["unlabeled", "pretrain", "again"])
    assert train(rotnet("data.workers=1"), run).finished
    record = read_record(run)
    assert record["id"] == first["id"] and record["starts"][0] == first["starts"][0]
    assert [(start["update"], start["workers"], start["processes"]) for start in record["starts"]] == [
        (0, 0, 1), (4, 1, 1)]
    assert record["starts"][1]["command"] == ["unlabeled", "pretrain", "again"]
    files = {file: file.read_bytes() for file in (run / "run.json", run / "recipe.yaml", run / "metrics.jsonl")}
    assert train(rotnet("train.log_every=3"), run).finished
    assert {file: file.read_bytes() for file in files} == files


def test_a_change_of_processes_or_of_a_streams_workers_is_said_and_kept(run: Path) -> None:
    folder = RunFolder(run)
    record = read_record(run)
    record["starts"][0] |= {"processes": 2, "workers": 3}
    (run / "run.json").write_text(json.dumps(record))
    notes = folder.begin(rotnet(), {"info": {}, "data": {}}, 4, ["train"], [])
    assert notes[0].startswith("1 process where the run had 2 processes")
    assert "data.train is streamed" in notes[1] and "workers 3 before, 0 now" in notes[1]
    assert read_record(run)["starts"][1]["notes"] == notes
    assert folder.begin(rotnet(), {"info": {}, "data": {}}, 4, ["train"], []) == []
    assert folder.begin(rotnet("data.workers=2"), {"info": {}, "data": {}}, 4, [], []) == []


def test_ids_are_the_runs_own_and_a_fresh_run_gets_another(finished: Path, tmp_path: Path, monkeypatch) -> None:
    begun: list[dict] = []
    fake = types.SimpleNamespace(init=lambda **given: begun.append(given) or types.SimpleNamespace(
        log=lambda values, step: None, finish=lambda: None))
    monkeypatch.setitem(sys.modules, "wandb", fake)
    sinks = "train.sinks=[wandb]"
    for folder in (tmp_path / "a" / "s0", tmp_path / "b" / "s0"):
        assert train(rotnet(sinks, "train.updates=2"), folder).finished
    assert train(rotnet(sinks, "train.updates=2"), tmp_path / "a" / "s0", fresh=True).finished
    ids = [given["id"] for given in begun]
    assert len(set(ids)) == 3 and {given["name"] for given in begun} == {"s0"}
    assert read_record(tmp_path / "a" / "s0")["id"] == ids[2]
    assert read_record(tmp_path / "a" / "s0.replaced-1")["id"] == ids[0]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"info": 3}', '{"info": {}, "starts": 1}', "\0\1", "7",
                                     '{"info": {"classes": 1}}', '{"info": {"streams": [], "classes": 1}}'])
def test_a_run_json_of_another_form_is_one_line_and_the_runs_command_mends_it(
    run: Path, finished: Path, content: str, capsys
) -> None:
    (run / "run.json").write_text(content)
    with pytest.raises(UserError, match=r"run.json is damaged: .*give the run's own command again") as said:
        load_run(run)
    assert "\n" not in str(said.value)
    if "classes" in content:
        return  # known to no one but the method
    assert train(rotnet(), run).finished
    assert_same(run, finished)
    assert "run.json.damaged" in capsys.readouterr().out and (run / "run.json.damaged").read_text() == content


def test_a_missing_run_json_is_written_again_for_a_finished_run_too(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / "recipe.yaml").unlink()
    with pytest.raises(UserError, match=r"recipe.yaml is missing; give the run's own command again"):
        load_run(run)
    (run / "run.json").unlink()
    assert train(rotnet(), run).finished and load_run(run).update == 6
    (run / "run.json").unlink()
    with pytest.raises(UserError, match=r"run\.json cannot be read: No such file"):
        load_run(run)
    assert train(rotnet(), run).finished
    assert load_run(run).update == 6
    (run / "recipe.yaml").write_bytes(bytes(range(256)))
    with pytest.raises(UserError, match=r"recipe\.yaml"):
        load_run(run)


# ---- metrics


def test_a_bad_line_of_metrics_does_not_take_those_after_it(run: Path, finished: Path, capsys) -> None:
    lines = (run / "metrics.jsonl").read_text().splitlines()[:4]
    bad = [lines[0], lines[1][:20], "[1]", lines[2], '{"loss": 1}', '{"update": "x"}', lines[3], '{"update": 4, "lo']
    (run / "metrics.jsonl").write_bytes("\n".join(bad).encode() + b"\xff")
    folder = RunFolder(run)
    assert [line["update"] for line in folder.read_lines(folder.metrics)] == [0, 2, 3]
    assert "4 lines that cannot be read (2, 3, 5, ...) left out" in capsys.readouterr().out
    assert train(rotnet(), run).finished
    kept = [json.loads(line)["update"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert kept == [0, 2, 3, 4, 5] and (run / "metrics.jsonl.damaged").exists()


def test_a_line_cut_off_before_the_first_checkpoint_does_not_spoil_the_next(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.metrics.write_text('{"update": 0, "lo')
    folder.cut_back(0)
    folder.append(folder.metrics, [{"update": 0, "loss": 1.0}])
    assert folder.read_lines(folder.metrics) == [{"update": 0, "loss": 1.0}]


def test_metrics_that_are_a_folder_are_one_line(run: Path) -> None:
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").mkdir()
    with pytest.raises(UserError, match=r"metrics.jsonl cannot be read: Is a directory"):
        train(rotnet(), run)


# ---- leftovers and full disks


def test_what_killed_processes_left_is_removed_and_the_rest_is_not(run: Path) -> None:
    alive = os.getppid()
    gone = ["checkpoints/.update-00000006.pt.999999.tmp", f"checkpoints/.update-00000006.pt.{alive}.tmp",
            "export/.backbone.safetensors.999999.tmp", "eval/.knn.json.999999.tmp", ".run.json.999999.tmp"]
    stays = [f"eval/.knn.json.{alive}.tmp", "eval/.note.tmp", "eval/.knn.json.0123abcd-999999.tmp", "notes.tmp"]
    (run / "sources" / ".x-1234.999999.part").mkdir(parents=True)
    for name in (*gone, *stays):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("")
    folder = RunFolder(run)
    folder.enter()
    folder.lock.release()
    assert not [name for name in gone if (run / name).exists()] and not any((run / "sources").iterdir())
    assert all((run / name).exists() for name in stays)


def test_checkpoints_by_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = training.SaveClock(None)
    now = [100.0]
    monkeypatch.setattr("unlabeled.engine.run.checkpoint.time", types.SimpleNamespace(monotonic=lambda: now[0]))
    clock = training.SaveClock(None)
    assert not clock.due(1)
    now[0] = 105.0
    assert clock.due(2)
    now[0] = 106.0
    clock.saved(105.0)  # it took a second, so the next comes after 50
    now[0] = 155.0
    assert not clock.due(3)
    now[0] = 156.0
    assert clock.due(4)
    assert [u for u in range(1, 7) if training.SaveClock(2).due(u)] == [2, 4, 6]
