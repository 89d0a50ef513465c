"""unlabeled export, on a run."""

from __future__ import annotations

from pathlib import Path

import torch
from tiny import tiny_recipe

from unlabeled.cli.main import main
from unlabeled.engine.restore import load_run
from unlabeled.engine.train import train


def test_a_runs_backbone_loads_into_timm_and_is_refused_by_torchvision(tmp_path: Path, capsys) -> None:
    run = tmp_path / "run"
    assert train(tiny_recipe("simclrv2", "plain", ["train.updates=2"]), run).finished
    out = tmp_path / "new" / "weights.safetensors"
    capsys.readouterr()
    assert main(["export", str(run), "--format", "timm", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "export backbone, update 2" in said
    found: dict = {}
    exec(said.partition("\n\n")[2], found)
    x = torch.rand(2, 3, 24, 24)
    with torch.no_grad():
        assert torch.equal(found["model"].eval()(x), load_run(run).method.exports()["backbone"].build()(x))
    assert main(["export", str(run), "--format", "torchvision", "--out", str(tmp_path / "x.pth")]) == 2
    assert "torchvision's class cannot hold this network: 'conv1.weight'" in capsys.readouterr().err
    assert main(["export", str(run), "--format", "timm", "--export", "bakbone", "--out", str(out)]) == 2
    assert "Did you mean 'backbone'" in capsys.readouterr().err
    assert main(["export", str(run), "--format", "timm", "--export", "backbone.layer1", "--out", str(out)]) == 2
    assert "timm's class cannot hold this network" in capsys.readouterr().err
    assert main(["export", str(run), "--format", "caffe", "--out", str(out)]) == 2
    assert "invalid choice: 'caffe'" in capsys.readouterr().err
