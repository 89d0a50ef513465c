"""What may change between a start and its resume, and which names of runs mean the same networks."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.tiny import tiny_recipe

from unlabeled.config.marks import Mark, covers, marked
from unlabeled.config.recipe import Recipe
from unlabeled.config.sources import copy_of
from unlabeled.engine.run.same_recipe import as_begun, differences, flat, replaced_sources, same
from unlabeled.engine.run.sources import adopt, digests, export_problem


def dumped(*overrides: str) -> dict[str, Any]:
    return tiny_recipe("simclrv2", "plain", overrides).model_dump(mode="json")


@pytest.mark.parametrize("override", [
    "train.nonfinite=skip", "data.workers=3", "data.max_corrupt=0.5", "train.processes=2", "train.patience=9",
    "train.checkpoint_every=7", "train.keep=5", "train.log_every=3", "train.sinks=[tensorboard]",
    "train.allow_changed_data=true", "eval.every=2", "eval.bank=9", "eval.at_end=[knn]", "data.train.root=elsewhere",
])  # fmt: skip
def test_where_and_how_a_run_is_done_may_change(override: str, tmp_path: Path) -> None:
    assert dumped() != dumped(override) and differences(dumped(), dumped(override), tmp_path) == []


@pytest.mark.parametrize(("override", "key"), [
    ("train.seed=1", "train.seed"), ("train.updates=9", "train.updates"), ("train.schedule_scale=2",) * 2,
    ("train.precision=bf16", "train.precision"), ("train.sync_bn=false", "train.sync_bn"),
    ("train.channels_last=false", "train.channels_last"), ("train.compile=true", "train.compile"),
    ("train.deterministic=true", "train.deterministic"), ("data.train.batch=12", "data.train.batch"),
    ("data.train.split=val", "data.train.split"), ("data.train.subset={per_class: 3}", "data.train.subset"),
    ("backbone.width=0.25", "backbone.width"), ("optim.lr.base=0.7", "optim.lr.base"),
    ("method.temperature=0.9", "method.temperature"),
])  # fmt: skip
def test_what_is_learned_may_not_change(override: str, key: str, tmp_path: Path) -> None:
    (line, *others) = differences(dumped(), dumped(override), tmp_path)
    assert line.startswith(f"  {key.partition('=')[0]}") and (not others or "subset" in key)
    assert len(differences(dumped(override), dumped(), tmp_path)) == 1 + len(others)


def changed(tree: Any, key: str) -> Any:
    """Return nested blocks with another value at a dotted key."""
    first, _, rest = key.partition(".")
    return {**tree, first: changed(tree[first], rest) if rest else f"{tree[first]}, changed"}


def test_every_setting_is_marked_or_stands_in_the_way_of_a_resume(tmp_path: Path) -> None:
    for method in ("simclrv2", "simmatchv2"):
        recipe = tiny_recipe(method, "plain").model_dump(mode="json")
        assert differences(recipe, recipe, tmp_path) == []
        reported = set()
        for key in flat(recipe):
            found = [line.split(":")[0].strip() for line in differences(recipe, changed(recipe, key), tmp_path)]
            assert found == ([] if covers(marked(Recipe, Mark.FREE), key) else [key])
            reported |= set(found)
        assert "train.seed" in reported and "optim.weight_decay" in reported
        assert not {"eval.every", "data.workers", "train.keep"} & reported


def finished(run: Path, content: bytes, *, hashed: bool = True, done: bool = True) -> Path:
    """Write what a finished run leaves, as far as it counts here; earlier versions kept no hash."""
    (run / "export").mkdir(parents=True)
    for name in ("recipe.yaml", "run.json"):
        (run / name).write_text("{}")
    if done:
        (run / "DONE").write_text("6\nbackbone\n")
    (run / "export" / "backbone.safetensors").write_bytes(content)
    about = {"sha256": hashlib.sha256(content).hexdigest()} if hashed else {}
    (run / "export" / "backbone.json").write_text(json.dumps(about))
    return run


@pytest.mark.parametrize("hashed", [True, False])
def test_runs_are_the_same_if_their_networks_are(tmp_path: Path, hashed: bool) -> None:
    a, b, c = (finished(tmp_path / name, content, hashed=hashed)
               for name, content in (("a", b"weights"), ("b", b"weights"), ("c", b"others")))
    run = tmp_path / "run"
    assert same(str(a), str(b), run) and not same(str(a), str(c), run)
    assert same(f"{a}:backbone", f"{b}:backbone", run)
    assert not same(f"{a}:backbone", f"{b}:head", run) and not same(str(a), f"{b}:backbone", run)
    assert not same(str(a), str(tmp_path / "nowhere"), run) and not same(str(a), "", run)
    link = tmp_path / "link"
    link.symlink_to(c)
    assert same(str(c), str(link), run) and same(str(c), f"{c}/", run)
    assert digests(a) == digests(b) != digests(c) and digests(tmp_path / "nowhere") is None


def test_a_run_that_is_gone_is_known_by_its_copy_and_named_as_it_was(tmp_path: Path) -> None:
    run, a = tmp_path / "run", finished(tmp_path / "a", b"weights")
    assert adopt(f"{a}:backbone", run) == f"{copy_of(f'{a}:backbone', run)}:backbone"
    b, other = a.rename(tmp_path / "b"), finished(tmp_path / "c", b"others")
    assert same(f"{a}:backbone", f"{b}:backbone", run) and not same(f"{a}:backbone", f"{other}:backbone", run)
    recipe = tiny_recipe("simclrv2", "plain")
    moved, stored = (recipe.model_copy(update={"backbone": recipe.backbone.model_copy(update={"init": init})})
                     for init in (f"{b}:backbone", f"{a}:backbone"))
    begun = as_begun(moved, stored.model_dump(mode="json"), run)
    assert begun == stored, "its copy is found by the name under which it was made"
    elsewhere = as_begun(moved, stored.model_dump(mode="json"), tmp_path / "another")
    assert elsewhere == moved, "that run has no copy"


def test_a_run_that_was_trained_anew_is_told_from_its_copy(tmp_path: Path) -> None:
    run, a = tmp_path / "run", finished(tmp_path / "a", b"weights")
    recipe = tiny_recipe("simclrv2", "plain")
    begun = recipe.model_copy(update={"backbone": recipe.backbone.model_copy(update={"init": f"{a}:backbone"})})
    assert replaced_sources(begun, run) == [], "there is no copy"
    adopt(f"{a}:backbone", run)
    assert replaced_sources(begun, run) == []
    shutil.rmtree(a)
    assert replaced_sources(begun, run) == []
    finished(a, b"others")
    assert replaced_sources(begun, run) == [f"{a}:backbone"] and replaced_sources(recipe, run) == []


def test_only_finished_runs_are_copied_and_good_copies_are_left_alone(tmp_path: Path) -> None:
    run, unfinished = tmp_path / "run", finished(tmp_path / "a", b"weights", done=False)
    assert adopt(f"{unfinished}:backbone", run) == f"{unfinished}:backbone" and not (run / "sources").exists()
    (unfinished / "DONE").write_text("6\n")
    (unfinished / "sources" / "older-0").mkdir(parents=True)
    (unfinished / "sources" / "older-0" / "run.json").write_text("{}")
    copy = Path(adopt(str(unfinished), run))
    assert copy != unfinished and (copy / "sources" / "older-0" / "run.json").is_file()
    times = {file: file.stat().st_mtime_ns for file in copy.rglob("*")}
    assert adopt(str(unfinished), run) == str(copy)
    assert {file: file.stat().st_mtime_ns for file in copy.rglob("*")} == times


def test_what_is_wrong_with_an_export_is_said(tmp_path: Path) -> None:
    run = finished(tmp_path / "a", b"weights")
    file = run / "export" / "backbone.safetensors"
    assert export_problem(run, "backbone") is None
    assert export_problem(run, "head") == f"{run / 'export' / 'head.safetensors'} is missing"
    file.write_bytes(b"weighty")
    assert export_problem(run, "backbone") == f"{file} is damaged: its hash differs from the one in backbone.json"
    (run / "export" / "backbone.json").write_text("[]")
    assert export_problem(run, "backbone") == f"{file} cannot be read: backbone.json holds something else"
    (run / "export" / "backbone.json").write_text("{}")
    assert export_problem(run, "backbone") == f"{file} is damaged: it ends too early, or begins with something else"
