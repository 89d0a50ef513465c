"""From a run to its report: content, baselines, sharing, refusals, and sets without labels."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from tests.evaluation.fakes import FakeRuns, Projection
from torch import nn

from unlabeled.backbones.build import build_backbone
from unlabeled.config.recipe import Backbone
from unlabeled.data.sources.folder import FolderSource
from unlabeled.engine.exports.networks import open_residuals
from unlabeled.engine.passes.kept_features import LIMIT
from unlabeled.errors import UserError
from unlabeled.evaluation import evaluate as module
from unlabeled.evaluation.evaluate import evaluate, evaluate_many
from unlabeled.methods.base import Export, Input
from unlabeled.report.table import numbers_table, print_reports


@pytest.fixture
def runs(monkeypatch, tmp_path) -> FakeRuns:
    fake = FakeRuns("digits", tmp_path / "run")
    monkeypatch.setattr(module, "load_run", fake)
    return fake


def test_knn_report_holds_all_that_is_needed_to_judge_the_number(runs, capsys):
    report = evaluate("knn", runs.run, ["workers=0"])
    saved = json.loads((runs.run / "eval" / "knn-update00000012.json").read_text())
    number = saved["numbers"][0]
    assert [n["name"] for n in saved["numbers"]] == ["knn20@.07", "knn200@.07"]
    assert number["network"]["value"] == report["knn20@.07"].network["value"] > number["random_init"]["value"]
    assert number["raw_pixels"]["value"] > 90 and number["chance"] == pytest.approx(10, abs=0.5)
    assert saved["update"] == 12 and saved["seed"] == 0 and saved["train_seed"] == 3 and saved["export"] == "backbone"
    assert saved["card"] == "digits" and saved["classes"] == 10 and saved["settings"]["temperature"] == 0.07
    assert saved["train"] == {"split": "train", "n": 1297, "unlabelled": 0, "corrupt": 0, "corrupt_keys": []}
    assert saved["test"]["split"] == "val" and saved["test"]["n"] == 500
    assert set(saved["health"]) == {"network", "random_init"} and saved["health"]["network"]["width"] == 48
    printed = capsys.readouterr().out
    for text in ("knn20@.07", "pretrained", "random init", "raw pixels", "chance", "update 12", "n=1297"):
        assert text in printed
    assert not list((runs.run / "eval").glob(".*"))


def test_batch_size_does_not_change_the_numbers(runs):
    small, large = (evaluate("knn", runs.run, ["workers=0", f"batch={batch}"]) for batch in (64, 999))
    assert small.numbers == large.numbers


def test_several_protocols_share_one_extraction_and_one_table(runs, monkeypatch, tmp_path):
    linear = tmp_path / "quick.yaml"
    linear.write_text("protocol: linear\nlr: [0.03]\nweight_decay: [0.0]\nmin_updates: 50\nraw_pixels: false\n")
    few = tmp_path / "few.yaml"
    few.write_text("protocol: few-labels\ndraws: 4\n")
    calls = []
    monkeypatch.setattr(module, "extract", lambda *a, real=module.extract, **k: calls.append(a) or real(*a, **k))
    reports = evaluate_many(["knn", linear, few], runs.run, ["workers=0"])
    assert len(calls) == 2 and runs.loads == 2  # train and test; the run and its random initialisation
    assert [r.name for r in reports] == ["knn", "quick", "few"]
    assert reports[1]["linear"].raw_pixels is None and reports[1]["linear"].network["details"]["lr"] == 0.03
    four = reports[2]["logistic4@C1"]
    assert four.network["deviation"] > 0 and four.raw_pixels["value"] > four.random_init["value"]
    assert numbers_table(reports).row_count == 5
    console = Console(record=True, width=120)
    print_reports(reports, console)
    assert "±" in console.export_text() and len(list((runs.run / "eval").glob("*.json"))) == 3


def test_another_export_is_evaluated_and_named(runs):
    best, poor = evaluate("knn", runs.run, ["workers=0"]), evaluate("knn", runs.run, ["workers=0", "export=poor"])
    assert best["knn20@.07"].network["value"] > poor["knn20@.07"].network["value"]
    assert (runs.run / "eval" / "knn-poor-update00000012.json").exists()
    with pytest.raises(UserError, match=r"no export 'por'.*Did you mean 'poor'"):
        evaluate("knn", runs.run, ["export=por"])


def test_baselines_can_be_left_out(runs):
    number = evaluate("knn", runs.run, ["workers=0", "random_init=false", "raw_pixels=false"]).numbers[0]
    assert number.random_init is None and number.raw_pixels is None and runs.loads == 1


def test_bad_input_is_refused_before_anything_is_extracted(runs, monkeypatch):
    monkeypatch.setattr(module, "extract", None)
    with pytest.raises(UserError, match=r"k is 2000, but there are 1297 labelled training images; use k=\[20\]"):
        evaluate("knn", runs.run, ["k=[20,2000]"])
    with pytest.raises(UserError, match="900 labels per class are asked, but class '0' has"):
        evaluate("few-labels", runs.run, ["labels_per_class=[900]"])
    with pytest.raises(UserError, match="no split 'tset'"):
        evaluate("knn", runs.run, ["test=tset"])
    with pytest.raises(UserError, match=r"unknown key 'temprature'. Did you mean 'temperature'"):
        evaluate("knn", runs.run, ["temprature=1"])


def photos(folder: Path, count: int, seed: int = 0) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        pixels = np.random.default_rng(seed + number).integers(0, 256, (20, 24, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")


def test_without_labels_there_is_health_and_a_sheet_of_neighbours(runs, tmp_path, capsys):
    photos(tmp_path / "photos", 15)
    (tmp_path / "photos" / "broken.png").write_bytes(b"no image")
    reports = evaluate_many(["knn", "linear"], runs.run, ["card=folder", f"root={tmp_path / 'photos'}", "workers=0"])
    assert [r.name for r in reports] == ["health"] and reports[0].numbers == [] and reports[0].classes is None
    assert reports[0].train.n == reports[0].train.unlabelled == 15
    assert reports[0].train.corrupt_keys == ["broken.png"]
    printed = capsys.readouterr().out
    assert "effective rank" in printed and "nearest neighbours:" in printed
    sheet = Image.open(reports[0].sheet)
    assert sheet.size == (8 * 100 + 12, 12 * 100 + 4)
    saved = json.loads((runs.run / "eval" / "health-update00000012.json").read_text())
    assert saved["health"]["network"]["effective_rank"] > 1


def test_a_test_set_that_lacks_a_class_keeps_the_numbers_of_train(runs, tmp_path):
    for split, classes in (("train", "abc"), ("val", "ac")):
        for name in classes:
            photos(tmp_path / "set" / split / name, 4, seed=100 * ord(name))
    report = evaluate("knn", runs.run, ["card=classfolder", f"root={tmp_path / 'set'}", "workers=0", "k=[1]"])
    number = report["knn1@.07"]  # every test image is also a training image
    assert report.classes == 3 and number.chance == 50 and number.network["value"] == 100


def test_the_untrained_baseline_has_its_residual_branches_open():
    def build() -> nn.Module:
        closed, small = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        nn.init.zeros_(closed.weight)
        nn.init.constant_(small.weight, 0.1)  # as LayerScale starts: nearly closed is not closed
        return nn.Sequential(nn.BatchNorm2d(4), closed, nn.Conv2d(4, 4, 1), small)

    norm, closed, convolution, small = open_residuals(Export(build, "vector", Input(8))).build()
    assert bool((closed.weight == 1).all()) and bool((norm.weight == 1).all())
    assert bool((closed.bias == 0).all()) and convolution.weight.std() < 1 and float(small.weight.detach().max()) < 0.2


@pytest.mark.parametrize("backbone", [
    {"name": "vit_tiny_patch16_224", "options": {"img_size": 8, "patch_size": 4, "depth": 2, "embed_dim": 8,
                                                 "num_heads": 1, "init_values": 1e-5}},
    {"name": "convnext_atto", "options": {"depths": [1, 1, 1, 1], "dims": [8, 8, 8, 8]}},
    {"name": "elastic_vit_tiny", "options": {"widths": [4, 8, 4], "depths": [2, 2], "head_width": 4, "patch_size": 4,
                                             "img_size": 8}},
], ids=lambda backbone: backbone["name"])
@pytest.mark.parametrize("start", [1e-6, 1e-5, 0.1])
def test_the_untrained_baseline_has_its_factors_behind_branches_open(backbone, start):
    def build() -> nn.Module:
        network = build_backbone(Backbone(**backbone))
        for name, p in network.named_parameters():
            if name.endswith("gamma"):
                nn.init.constant_(p, start)
        return network

    opened = {name: p for name, p in open_residuals(Export(build, "vector", Input(8))).build().named_parameters()
              if name.endswith("gamma")}
    expected = 1 if start < 1e-4 else start  # as LayerScale may start too: nearly closed is not closed
    assert len(opened) == 4 and all(torch.equal(p, torch.full_like(p, expected)) for p in opened.values())


def forwards(monkeypatch) -> list[int]:
    """Count the images that any network of the fake runs is asked for."""
    asked = []
    real = Projection.forward
    monkeypatch.setattr(Projection, "forward", lambda self, x: asked.append(len(x)) or real(self, x))
    return asked


def test_a_second_protocol_asks_the_networks_for_nothing(runs, monkeypatch, capsys):
    monkeypatch.setenv(LIMIT, "1")
    asked = forwards(monkeypatch)
    first = evaluate("knn", runs.run, ["workers=0"])
    assert sum(asked) == 2 * (1297 + 500 + 2)  # and a black image for each network and split
    assert "features kept for other protocols: 0.7 MB in" in capsys.readouterr().out
    again, linear = evaluate_many(["knn", "logistic"], runs.run, ["workers=0", "batch=100"])
    evaluate("few-labels", runs.run, ["workers=0", "seed=1", "draws=2"])
    assert sum(asked) == 2 * (1297 + 500 + 2)
    assert again.numbers == first.numbers and again.health == first.health and linear["logistic"].network["value"] > 50
    printed = capsys.readouterr().out
    assert "features of 'train' of 'digits' found again (network, random_init) in" in printed
    evaluate("knn", runs.run, ["workers=0", "keep_features=false", "random_init=false"])
    assert sum(asked) == 3 * (1297 + 500 + 2)


def test_a_second_protocol_reads_no_image_of_a_folder(runs, monkeypatch, tmp_path):
    monkeypatch.setenv(LIMIT, "1")
    for split in ("train", "val"):
        for name in "ab":
            photos(tmp_path / "set" / split / name, 3, seed=ord(name))
    read = []
    real = FolderSource.image
    monkeypatch.setattr(FolderSource, "image", lambda self, i: read.append(i) or real(self, i))
    settings = ["card=classfolder", f"root={tmp_path / 'set'}", "workers=0", "k=[1]"]
    first = evaluate("knn", runs.run, settings)
    assert len(read) == 12 and first.numbers[0].raw_pixels is not None
    assert evaluate("knn", runs.run, settings).numbers == first.numbers and len(read) == 12


def test_clusters_are_of_the_test_images_and_no_training_image_is_read(runs, monkeypatch, capsys):
    read = []
    monkeypatch.setattr(module, "extract", lambda e, source, *a, real=module.extract, **k: read.append(source.split)
                        or real(e, source, *a, **k))
    report = evaluate("clustering", runs.run, ["workers=0", "restarts=2"])
    assert read == ["val"] and report.train == report.test and report.measure == "agreement with the classes"
    assert [number.name for number in report.numbers] == ["ACC", "ARI", "NMI", "FMI"]
    for number in report.numbers:
        assert number.network["value"] > number.random_init["value"] > number.chance
        assert number.raw_pixels["value"] > 2 * number.chance
    assert "agreement with the classes, %" in capsys.readouterr().out
    again = evaluate("clustering", runs.run, ["workers=0", "restarts=2", "test=train"])
    assert again.test.n == 1297 and again.cautions == ["the run itself was trained on test 'train' (data.train)"]
    together = evaluate_many(["knn", "clustering"], runs.run, ["workers=0"])
    assert read[2:] == ["train", "val"] and together[1].train.n == 1297
