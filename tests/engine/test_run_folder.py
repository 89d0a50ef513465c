"""What a run knows of itself: checkpoints that vanish, recipes, starts, data, exports that are not what they were."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny import tiny_recipe

from unlabeled.config.recipe import Recipe
from unlabeled.engine import run_folder
from unlabeled.engine import train as training
from unlabeled.engine.checkpoint import Checkpoints
from unlabeled.engine.method import load_export
from unlabeled.engine.restore import load_run
from unlabeled.engine.run_folder import RunFolder
from unlabeled.engine.run_record import read_record
from unlabeled.engine.train import train
from unlabeled.errors import UserError

SHORT = ["train.checkpoint_every=2", "train.log_every=1"]


def rotnet(*more: str) -> Recipe:
    return tiny_recipe("rotnet", "all", [*SHORT, *more])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "finished"
    assert train(rotnet(), run).finished
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A run of six updates that ended after four."""
    cut = tmp_path / "run"
    shutil.copytree(finished, cut, ignore=shutil.ignore_patterns("DONE", "export", "update-00000006.*", "lock"))
    (cut / "SAVED").write_text("4\n")
    shutil.copy(cut / "checkpoints" / "update-00000004.pt", cut / "kept.pt")
    return cut


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_run(run).method.state_dict()


def assert_same(run: Path, finished: Path) -> None:
    assert (run / "DONE").exists()
    a, b = weights(run), weights(finished)
    assert all(torch.equal(a[name], b[name]) for name in b)
    lines = [json.loads(line)["update"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines == list(range(6))


def older(run: Path) -> None:
    """Make the folder one of a version that kept neither starts nor recipes with its checkpoints."""
    (run / "SAVED").unlink()
    record = read_record(run)
    (run / "run.json").write_text(json.dumps({**record["starts"][0], "info": record["info"]}))
    for file in (run / "checkpoints").glob("*.json"):
        about = json.loads(file.read_text())
        file.write_text(json.dumps({"update": about["update"], "sha256": about["sha256"]}))


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


def a_folder_per_checkpoint(run: Path) -> None:
    for file in list((run / "checkpoints").glob("*.pt")):
        file.unlink()
        file.mkdir()


@pytest.mark.parametrize("old", [False, True], ids=["new", "old"])
@pytest.mark.parametrize(
    "damage",
    [folder_gone, folder_emptied, pt_gone, json_gone, json_is_a_list, json_without_hash, empty, a_file_in_its_place,
     a_link_to_nowhere, a_folder_per_checkpoint],
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


# ---- exports


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


# ---- data


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


def test_checkpoints_by_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = training.SaveClock(None)
    now = [100.0]
    monkeypatch.setattr("unlabeled.engine.checkpoint.time", types.SimpleNamespace(monotonic=lambda: now[0]))
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
    assert dataclasses.is_dataclass(training.Result)
