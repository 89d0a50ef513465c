"""unlabeled extract, and RUN:SIZE wherever a network is named."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_recipe

from unlabeled.backbones.elastic.sizes import size_of
from unlabeled.cli.main import main
from unlabeled.config.read import read_recipe
from unlabeled.engine.method import load_export, load_teacher
from unlabeled.engine.restore import load_run
from unlabeled.engine.train import train

DIGITS = ["data.train.card=digits", "data.train.batch=16", "train.updates=1", "eval.every=0", "optim.warmup_epochs=0",
          "data.workers=0", "optim.lr.base=1.0e-12", "train.precision=fp32",
          "method={name: finetune, crop: {kind: affine, size: 8}}"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "poa"
    assert train(tiny_recipe("poa", "sinkhorn", ["train.updates=2"]), folder).finished
    return folder


@pytest.fixture(scope="module")
def rigid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "rigid"
    assert train(tiny_recipe("rotnet", "all", ["train.updates=2"]), folder).finished
    return folder


def said(capsys, *words: str) -> str:
    capsys.readouterr()
    assert main(["extract", *words]) == 0
    return capsys.readouterr().out


def refused(capsys, *words: str) -> str:
    capsys.readouterr()
    assert main([*words]) == 2
    return capsys.readouterr().err.strip()


def loaded(lines: str) -> torch.nn.Module:
    found: dict = {}
    exec(lines, found)
    return found["model"]


def test_the_printed_lines_load_what_the_elastic_network_computes(run: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "networks"
    lines = said(capsys, str(run), "width=8", "depth=2", f"out={out}").partition("\n\n")[2]
    x = torch.rand(2, 3, 8, 8)
    expected = load_export(f"{run}:teacher").build().features(x, size_of("8x2")).vector
    torch.testing.assert_close(loaded(lines)(x), expected, rtol=1e-5, atol=1e-5)
    assert "VisionTransformer(" in lines and "unlabeled" not in lines
    about = json.loads((out / "8x2.json").read_text())
    content = (out / "8x2.safetensors").read_bytes()
    state = load_file(out / "8x2.safetensors")
    assert about["sha256"] == hashlib.sha256(content).hexdigest()
    assert about["parameters"] == sum(value.numel() for value in state.values())
    assert [about[key] for key in ("method", "export", "size", "run", "gives", "update", "seed")] == [
        "poa", "teacher", "8x2", str(run), "vector", 2, 0]
    assert about["input"]["size"] == about["preparation"]["size"] == 8 and about["backbone"]["size"] == "8x2"


@pytest.mark.parametrize(("backbone", "size", "crop", "names"), [
    ("name: elastic_resnet_tiny, options: {widths: [64, 128, 64], depths: [[1, 2], [1, 2]]}", "64x1-2", 16, "timm"),
    ("name: elastic_swin_tiny, options: {widths: [16, 32, 16], depths: [1, 2], window: 2}", "16x2", 32, "unlabeled"),
    ("name: elastic_swin_tiny, options: {widths: [16, 32, 16], depths: [1, 2], window: 2}", "32x2", 32, "timm"),
    ("name: elastic_vit_tiny, options: {widths: [4, 8, 4], depths: [1, 2], head_width: 4, patch_size: 2, img_size: 8}",
     "4x2", 12, "unlabeled"),
], ids=["resnet", "swin", "whole swin", "vit"])
def test_every_family_loads_by_the_printed_lines(backbone: str, size: str, crop: int, names: str, tmp_path: Path,
                                                 capsys) -> None:
    """A ViT for images of another size is no network of timm's, nor is a Swin with a wider patch embedding."""
    run = tmp_path / "run"
    recipe = read_recipe("cifar10/rotnet-cpu", [*DIGITS, f"backbone={{{backbone}}}", f"method.crop.size={crop}"])
    assert train(recipe, run).finished
    width, _, depth = size.partition("x")
    lines = said(capsys, str(run), f"width={width}", f"depth={depth}").partition("\n\n")[2]
    assert json.loads((run / "extract" / f"{size}.json").read_text())["names"] == names
    x = torch.rand(2, 3, crop, crop)
    expected = load_export(f"{run}:backbone").build().features(x, size_of(size)).vector
    torch.testing.assert_close(loaded(lines).eval()(x), expected, rtol=1e-5, atol=1e-5)
    assert said(capsys, str(run), "params=1k").count("is nearest") == 1


def test_every_width_is_taken_with_every_depth_and_listed(run: Path, tmp_path: Path, capsys) -> None:
    said(capsys, str(run), "student", "width=4,12", "depth=[2, 3]", f"out={tmp_path}")
    with open(tmp_path / "extract.csv") as file:
        lines = list(csv.reader(file))
    assert lines[0] == ["size", "width", "depth", "parameters", "flops (multiply-adds)"]
    assert [line[:3] for line in lines[1:]] == [
        ["4x2", "4", "2"], ["4x3", "4", "3"], ["12x2", "12", "2"], ["12x3", "12", "3"]]
    for size, _, _, params, flops in lines[1:]:
        about = json.loads((tmp_path / f"{size}.json").read_text())
        assert about["export"] == "student" and [about["parameters"], about["multiply_adds"]] == [
            int(params), int(flops)]
    assert not (tmp_path / "extract.png").exists()
    full, x = load_export(f"{run}:student").build(), torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(load_export(f"{run}:student@12x3").build()(x), full(x))


def test_all_sizes_and_those_nearest_to_a_cost(run: Path, tmp_path: Path, capsys) -> None:
    said(capsys, str(run), "all=true", f"out={tmp_path / 'all'}")
    with open(tmp_path / "all" / "extract.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["size"] for row in rows] == ["4x2", "4x3", "8x2", "8x3", "12x2", "12x3"]
    for key, column in (("params", "parameters"), ("flops", "flops (multiply-adds)")):
        wanted = 1.04 * float(rows[3][column])
        near = min(rows, key=lambda row: abs(float(row[column]) - wanted))["size"]
        text = said(capsys, str(run), f"{key}={wanted / 1e3:.4f}k", f"out={tmp_path / key}")
        assert f": {near} is nearest, with " in text
        assert {path.name for path in (tmp_path / key).iterdir()} == {
            f"{near}.safetensors", f"{near}.json", "extract.csv"}


def test_a_folder_that_cannot_be_is_refused_at_once(run: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "file").write_text("")
    text = refused(capsys, "extract", str(run), "width=4", "depth=2", f"out={tmp_path / 'file' / 'networks'}")
    assert "name a folder elsewhere with out=FOLDER" in text


def test_a_size_that_is_named_twice_is_taken_once(run: Path, tmp_path: Path, capsys) -> None:
    for words in (["width=4,4", "depth=2"], ["params=1,2"]):
        assert "1 network," in said(capsys, str(run), *words, f"out={tmp_path}")


def test_sizes_are_scored_as_evaluate_scores_them(run: Path, tmp_path: Path, capsys) -> None:
    how = ["k=[3]", "workers=0", "precision=fp32"]
    said(capsys, str(run), "width=4,8", "depth=2", f"out={tmp_path}", "knn=true", *how)
    assert (tmp_path / "extract.png").read_bytes().startswith(b"\x89PNG")
    with open(tmp_path / "extract.csv") as file:
        rows = list(csv.DictReader(file))
    assert main(["evaluate", "knn", f"{run}:8x2", *how, "raw_pixels=false"]) == 0
    report = json.loads(next((run / "eval").glob("knn-8x2-*.json")).read_text())
    number = report["numbers"][0]
    assert report["export"] == "8x2" and number["name"] == "knn3@.07"
    assert float(rows[1]["knn3@.07"]) == pytest.approx(number["network"]["value"], abs=1e-3)
    assert float(rows[1]["knn3@.07 random init"]) == pytest.approx(number["random_init"]["value"], abs=1e-3)
    assert rows[0]["knn3@.07"]


def test_a_table_with_scores_and_files_of_another_network_are_kept(run: Path, tmp_path: Path, capsys) -> None:
    how = [str(run), f"out={tmp_path}"]
    said(capsys, *how, "width=4,8", "depth=2", "knn=true", "k=[3]", "workers=0", "random_init=false")
    table = (tmp_path / "extract.csv").read_bytes()
    assert "extract.csv as it was, with its scores" in said(capsys, *how, "width=12", "depth=2")
    assert (tmp_path / "extract.csv").read_bytes() == table and (tmp_path / "12x2.json").exists()
    weights = (tmp_path / "8x2.safetensors").read_bytes()
    text = refused(capsys, "extract", str(run), "student", "width=4,8", "depth=2,3", f"out={tmp_path}")
    assert f"{tmp_path} holds 4x2 of another network, teacher of {run} at update 2; name another folder" in text
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    assert "of another network" in refused(capsys, "extract", str(moved), "width=8", "depth=2", f"out={tmp_path}")
    assert (tmp_path / "8x2.safetensors").read_bytes() == weights and not (tmp_path / "8x3.json").exists()
    said(capsys, str(moved), "width=8", "depth=2")
    again = tmp_path / "again"
    moved.rename(again)
    said(capsys, str(again), "width=8", "depth=2")


def test_the_json_file_of_every_size_holds_the_lines_that_load_it(run: Path, tmp_path: Path, capsys) -> None:
    assert "such as 12x3.json)" in said(capsys, str(run), "width=4,12", "depth=3", f"out={tmp_path}")
    lines = json.loads((tmp_path / "12x3.json").read_text())["load"]
    x = torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(loaded("\n".join(lines)).eval()(x), load_export(f"{run}:12x3").build()(x))


def test_training_starts_from_a_size_also_when_the_elastic_run_is_gone(run: Path, tmp_path: Path, capsys) -> None:
    origin, folder = tmp_path / "origin", tmp_path / "tuned"
    shutil.copytree(run, origin)
    start = load_export(f"{run}:8x2").build().state_dict()
    recipe = read_recipe("cifar10/rotnet-cpu", [*DIGITS, f"backbone={{init: '{origin}:8x2'}}"], check_files=True)
    assert (recipe.backbone.name, recipe.backbone.size) == ("elastic_vit_tiny", "8x2")
    capsys.readouterr()
    assert train(recipe, folder).finished
    lines = capsys.readouterr().out
    shutil.rmtree(origin)
    tuned = load_run(folder).method.exports()["backbone"].build()
    assert tuned.num_features == 8
    for name, value in tuned.state_dict().items():
        torch.testing.assert_close(value, start[name], rtol=0, atol=1e-6)
    x = torch.rand(2, 3, 8, 8)
    again = loaded(lines[lines.index("from safetensors") :].partition("\n\nimport numpy")[0]).eval()
    torch.testing.assert_close(again(x), tuned(x))
    assert torch.equal(load_teacher(f"{folder}:8x2").build()(x), tuned(x))  # the one size that a plain network has
    again = loaded(said(capsys, str(folder), "all=true").partition("\n\n")[2])
    torch.testing.assert_close(again(x), tuned(x))
    assert train(read_recipe(folder / "recipe.yaml", check_files=True, run_of=lambda seed: folder), folder).finished


def test_features_of_a_size(run: Path, tmp_path: Path, capsys) -> None:
    import numpy as np

    assert main(["features", f"{run}:4x2", "digits", f"out={tmp_path / 'f.npy'}", "split=val", "workers=0"]) == 0
    assert np.load(tmp_path / "f.npy").shape == (500, 4)


@pytest.mark.parametrize(("words", "message"), [
    (["width=8"], "'width' needs 'depth' beside it, such as width=384 depth=12"),
    (["depth=2"], "'depth' needs 'width' beside it"),
    ([], "no size is named: give width=384 depth=12, params=22M, flops=4.6G or all=true"),
    (["all=true", "params=3M"], "give one of params and all"),
    (["widht=8"], "unknown key 'widht'. Did you mean 'width'?"),
    (["params=22X"], "numbers above 0 are needed, such as 22M or 22M,86M, given '22X'"),
    (["width=0", "depth=2"], "whole numbers above 0 are needed, such as 384 or 384,512, given '0'"),
    (["width=10", "depth=2"], "size 10x2 was not trained; the nearest are 12x2, 8x2"),
    (["all=true", "k=[3]"], "'k=[3]' has no effect without knn=true"),
    (["all=true", "knn=true", "k=[x]"], "'k[0]' needs a whole number"),
    (["techer", "all=true"], "the method has no export 'techer' (it has: teacher, student). Did you mean 'teacher'?"),
    (["teacher", "student", "all=true"], "one export at a time, given teacher, student"),
])
def test_what_extract_refuses(run: Path, capsys, words: list[str], message: str) -> None:
    said = refused(capsys, "extract", str(run), *words)
    assert message in said and "\n" not in said
    assert not (run / "extract").exists()


def test_runs_of_which_no_size_can_be_taken(run: Path, rigid: Path, tmp_path: Path, capsys) -> None:
    unfinished = tmp_path / "unfinished"
    shutil.copytree(run, unfinished, ignore=shutil.ignore_patterns("export", "DONE"))
    assert "has not finished its exports" in refused(capsys, "extract", str(unfinished), "all=true")
    assert "no export is an elastic network" in refused(capsys, "extract", str(rigid), "all=true")
    assert not (rigid / "extract").exists()
    assert "no export is an elastic network" in refused(capsys, "evaluate", "knn", f"{rigid}:8x2")
    assert "names an export, and so does export=student" in refused(
        capsys, "evaluate", "knn", f"{run}:8x2", "export=student")
    assert "does not exist" in refused(capsys, "extract", str(tmp_path / "nowhere"), "all=true")
    assert "is no folder of a run" in refused(capsys, "extract", str(run / "recipe.yaml"), "all=true")
    text = refused(capsys, "pretrain", "cifar10/rotnet-cpu", *DIGITS, f"backbone={{init: '{rigid}:8x2'}}")
    assert "names a size, but the backbone of that run" in text and "is not elastic" in text
