"""Commands on public networks: where results go, the baseline, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
from public import network, write

from unlabeled.cli.main import main

QUICK = ["card=digits", "size=32", "workers=0"]


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return f"timm:test_resnet@{write(Path('w.safetensors'), network())}"


def test_a_public_network_is_measured_beside_its_random_twin(source: str, capsys, tmp_path: Path) -> None:
    assert main(["evaluate", "knn", source, *QUICK, "k=[20]"]) == 0
    said = capsys.readouterr().out
    assert f"{source}  timm, export backbone\n" in said and "train seed" not in said
    (folder,) = Path("evaluations").iterdir()
    assert folder.name.startswith("timm-test_resnet-")
    (file,) = (folder / "eval").glob("*.json")
    first = json.loads(file.read_text())
    assert first["run"] == source and first["train_seed"] is None and first["numbers"][0]["random_init"]
    again = ["evaluate", "knn", source, *QUICK, "k=[20]", "keep_features=false", "out=there"]
    assert main(again) == 0
    second = json.loads(next(Path("there/eval").glob("*.json")).read_text())
    assert second["numbers"] == first["numbers"], "random weights are the same ones in every process"
    write(Path("w.safetensors"), network(seed=1))
    assert main(["evaluate", "knn", source, *QUICK, "k=[20]", "random_init=false", "raw_pixels=false"]) == 0
    assert len(list(Path("evaluations").iterdir())) == 2, "other weights have another folder"


def test_features_maps_and_classifiers_of_a_public_network(source: str, capsys) -> None:
    from PIL import Image

    Path("photos").mkdir()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)).save("photos/a.png")
    assert main(["features", source, "photos", "out=f.npy"]) == 0
    assert np.load("f.npy").shape == (1, 96) and "of export backbone, computed" in capsys.readouterr().out
    assert main(["look", source, "photos/a.png", "size=64"]) == 0
    assert list(Path("evaluations").glob("*/look/*/*.png"))
    assert main(["evaluate", "classify", source, *QUICK]) == 0
    write(Path("w.safetensors"), network(classes=7))
    assert main(["evaluate", "classify", source, *QUICK]) == 2
    assert "knows 7 classes, but data card 'digits' has 10" in capsys.readouterr().err


def test_imagenets_resnet50_is_measured_as_a_network_for_clips_without_training(source: str, capsys) -> None:
    from data.toy_videos import write_classes

    write(Path("r50.safetensors"), timm.create_model("resnet50"))
    write_classes(Path("set"), each=1)
    common = ["card=classvideos", "root=set", "size=32", "workers=0", "k=[1]", "raw_pixels=false"]
    alone = [*common, "random_init=false"]
    assert main(["evaluate", "knn", "torchvision:resnet50@r50.safetensors", *alone, "inflate=r3d50"]) == 0
    assert "torchvision, export backbone inflated to r3d50" in capsys.readouterr().out
    (report,) = (json.loads(file.read_text()) for file in Path("evaluations").glob("*/eval/*.json"))
    assert report["health"]["network"]["width"] == 2048 and report["settings"]["inflate"] == "r3d50"
    assert main(["evaluate", "knn", source, *common, "inflate=r3d50"]) == 2
    error = capsys.readouterr().err
    assert f"'{source}' cannot be inflated into r3d50: its blocks have two convolutions" in error


@pytest.mark.parametrize(("arguments", "said"), [
    (["SOURCE"], "belongs to no data that is known here; name a set to evaluate on, such as card=imagenet"),
    (["timm:test_resnet@v.safetensors", "card=digits"], "'v.safetensors' does not exist. Did you mean 'w.saf"),
    (["timm:test_resnett", "card=digits"], "Did you mean 'test_resnet'"),
    (["runs/none", "card=digits", "out=there"], "'runs/none' does not exist"),
])
def test_bad_input_is_one_line_with_its_cure(source: str, arguments: list[str], said: str, capsys) -> None:
    assert main(["evaluate", "knn", *(text.replace("SOURCE", source) for text in arguments)]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
