"""The precision that features are computed in: what it changes, what it leaves alone, and where it is told."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.evaluation.fakes import FakeRuns
from torch import nn

from unlabeled.augment.geometry import EvalCrop
from unlabeled.backbones.build import build_backbone
from unlabeled.cli.main import main
from unlabeled.config.look import LookSettings
from unlabeled.config.read import read_card
from unlabeled.config.recipe import Backbone
from unlabeled.data.sources.open import open_source
from unlabeled.data.sources.subset import Part
from unlabeled.engine import launch
from unlabeled.engine.launch import pick_precision
from unlabeled.engine.passes.features import Embedder, extract, network_embedder, refuse_nonfinite
from unlabeled.errors import UserError
from unlabeled.evaluation import evaluate as module
from unlabeled.evaluation import export_features as exporting
from unlabeled.evaluation.dense.look import look
from unlabeled.evaluation.evaluate import evaluate, evaluate_many
from unlabeled.methods.base import Export, Input

CPU = torch.device("cpu")
VIT = {"name": "vit_tiny_patch16_224", "options": {"img_size": 32, "patch_size": 8, "depth": 3}}


@pytest.fixture
def runs(monkeypatch, tmp_path) -> FakeRuns:
    fake = FakeRuns("digits", tmp_path / "run")
    for each in (module, exporting):
        monkeypatch.setattr(each, "load_run", fake)
    return fake


@pytest.mark.parametrize(("device", "amx", "wanted", "given"), [
    ("cuda", False, "auto", "bf16"), ("cpu", True, "auto", "bf16"), ("cpu", False, "auto", "fp32"),
    ("mps", True, "auto", "fp32"), ("cuda", False, "fp16", "fp16"), ("cpu", False, "bf16", "bf16"),
    ("cuda", True, "fp32", "fp32"),
])  # fmt: skip
def test_automatic_is_as_in_training(monkeypatch, device, amx, wanted, given):
    monkeypatch.setattr(launch, "_has_amx", lambda: amx)
    assert pick_precision(wanted, device) == given


def features(backbone, precision: str) -> torch.Tensor:
    torch.manual_seed(0)
    network = build_backbone(Backbone(**backbone)).eval()
    digits = open_source(read_card("digits"), "train")
    part = Part(digits, np.arange(200))
    embedder = network_embedder(Export(lambda: network, "vector", Input(32, (0.3,) * 3, (0.3,) * 3)), CPU, precision)
    return extract({"n": embedder}, part, batch=64, workers=0, device=CPU, max_corrupt=0)["n"].x


@pytest.mark.parametrize("backbone", [{"name": "resnet18", "width": 0.25, "stem": "cifar"}, VIT], ids=["resnet", "vit"])
def test_half_precision_gives_nearly_the_features_of_float32(backbone):
    exact, half = features(backbone, "fp32"), features(backbone, "bf16")
    assert half.dtype == torch.float32 and not torch.equal(exact, half)
    assert float(F.cosine_similarity(exact, half).min()) > 0.999


class Told(nn.Module):
    """Gives back its input, and remembers the type of a product."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.product = self.linear(x.mean(1).flatten(1)[:, :4])
        return self.product


@pytest.mark.parametrize(("precision", "kind"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_products_run_in_it_and_what_surrounds_does_not_matter(precision, kind):
    network = Told()
    embedder = network_embedder(Export(lambda: network, "vector", Input(8)), CPU, precision)
    digits = Part(open_source(read_card("digits"), "train"), np.arange(3))
    with torch.autocast("cpu", torch.bfloat16):
        extract({"n": embedder}, digits, batch=4, workers=0, device=CPU, max_corrupt=0)
    assert network.product.dtype == kind and network.linear.weight.dtype == torch.float32


def test_it_stands_in_report_table_and_name(runs, capsys, monkeypatch):
    half = evaluate("knn", runs.run, ["workers=0", "precision=bf16"])
    assert "seed 0, precision bf16" in capsys.readouterr().out
    saved = json.loads((runs.run / "eval" / "knn-precision=bf16-update00000012.json").read_text())
    assert half.precision == saved["precision"] == "bf16" and saved["settings"]["precision"] == "bf16"
    monkeypatch.setattr(launch, "_has_amx", lambda: True)
    automatic = evaluate("knn", runs.run, ["workers=0"])
    assert automatic.precision == "bf16" and automatic.numbers == half.numbers
    monkeypatch.setattr(launch, "_has_amx", lambda: False)
    exact = evaluate("knn", runs.run, ["workers=0"])
    assert exact.precision == "fp32" and "precision fp32" in capsys.readouterr().out
    # 500 images count 0.2 each; pixels never change
    for a, b in zip(half.numbers, exact.numbers, strict=True):
        assert abs(a.network["value"] - b.network["value"]) <= 0.4 and a.raw_pixels == b.raw_pixels


def test_protocols_of_two_precisions_share_no_features(runs, tmp_path):
    (tmp_path / "exact.yaml").write_text("protocol: knn\nprecision: fp32\n")
    (tmp_path / "half.yaml").write_text("protocol: knn\nprecision: bf16\n")
    reports = evaluate_many([tmp_path / "exact.yaml", tmp_path / "half.yaml"], runs.run, ["workers=0"])
    assert [report.precision for report in reports] == ["fp32", "bf16"]
    assert reports[0].health["network"] != reports[1].health["network"]


def test_float16_on_a_cpu_is_refused_before_anything_is_computed(runs, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(module, "extract", None)
    for protocol in ("knn", "classify", "finetune"):
        with pytest.raises(UserError, match=r"^precision fp16 needs a GPU; use bf16 or fp32 here$"):
            evaluate(protocol, runs.run, ["workers=0", "precision=fp16"])
    with pytest.raises(UserError, match="precision fp16 needs a GPU"):
        exporting.export_features(runs.run, tmp_path, tmp_path / "x.npy", precision="fp16")
    with pytest.raises(UserError, match="precision fp16 needs a GPU"):
        look(runs.run, [], LookSettings(precision="fp16"))
    with pytest.raises(UserError, match="'precision' is 'bf61'; allowed: auto, bf16, fp16, fp32"):
        evaluate("knn", runs.run, ["precision=bf61"])
    with pytest.raises(UserError, match="'precision' is 'bf16'; allowed: fp32"):
        evaluate("correspondence", runs.run, ["precision=bf16"])
    runs.run.mkdir()
    assert main(["features", str(runs.run), str(tmp_path), "precision=half"]) != 0
    assert "'precision' is 'half'; allowed: auto, bf16, fp16, fp32" in capsys.readouterr().err


def test_what_float16_cannot_hold_is_told_with_its_cure():
    x = torch.tensor([[1.0, float("inf")]])
    with pytest.raises(UserError, match=r"network: the features of 1 images .* so take precision=bf16 or fp32"):
        refuse_nonfinite("network", x, CPU, "fp16")
    with pytest.raises(UserError, match="has diverged"):
        refuse_nonfinite("network", x, CPU)
    embedder = Embedder((EvalCrop(8),), lambda crops: torch.full((len(crops), 4), float("inf")), precision="fp16")
    with pytest.raises(UserError, match="precision=bf16"):
        extract({"network": embedder}, open_source(read_card("digits"), "val"), batch=500, workers=0, device=CPU,
                max_corrupt=0)
