"""unlabeled pack on the command line."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unlabeled.cli.main import main
from unlabeled.config.card import Card
from unlabeled.config.read import read_file
from unlabeled.data.sources.open import open_source


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANK", raising=False)
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(6):
        buffer = io.BytesIO()
        pixels = np.random.default_rng(i).integers(0, 256, (20, 30, 3), np.uint8)
        Image.fromarray(pixels).save(buffer, "JPEG")
        (folder / f"{i}.jpg").write_bytes(buffer.getvalue())
    return folder


def test_a_folder_is_packed_ready_to_use(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pack", "photos", "packed", "shard_samples=4", "short_side=10", "jpeg_quality=80", "workers=0"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said == ["train 6 images, without labels", "packed: train 6 images in 2 shards",
                    "use it: data.train.card=packed/card.yaml"]
    source = open_source(read_file(Path("packed/card.yaml"), Card), "train")
    assert len(source) == 6
    assert source.image(0).shape == (10, 15, 3)
    assert main(["pack", "photos", "packed", "shard_samples=4", "short_side=10", "jpeg_quality=80", "workers=0"]) == 0


@pytest.mark.parametrize(("settings", "text"), [
    (["short_sid=256"], "override 'short_sid=256': unknown key 'short_sid'. Did you mean 'short_side'?"),
    (["store=tar"], "override 'store=tar': 'store' is 'tar'; allowed: shards, array"),
    (["short_side=big"], "override 'short_side=big': 'short_side' needs a whole number, given 'big'"),
    (["store=array", "seed=1"], "'seed' has no effect with store=array"),
    (["jpeg_quality=80"], "'jpeg_quality' has no effect without short_side"),
    (["shard_mb=1", "shard_samples=1"], "give either shard_mb or shard_samples"),
    (["short_side"], "'short_side' is not of the form key=value"),
])
def test_wrong_settings_are_answered(
        photos: Path, settings: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pack", "photos", "packed", *settings]) == 2
    said = capsys.readouterr().err
    assert text in said
    assert said.count("\n") == 1
    assert not Path("packed").exists()
