"""Embeddings of a user's own folder."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from tests.evaluation.fakes import FakeRuns

from unlabeled.errors import UserError
from unlabeled.evaluation import export_features as module


@pytest.fixture
def folder(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "load_run", FakeRuns("digits", tmp_path / "run"))
    for name in ("b/2.png", "b/1.png", "a.png"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(len(name)).integers(0, 256, (8, 8, 3), np.uint8)).save(path)
    (tmp_path / "photos" / "bad.png").write_bytes(b"no image")
    return tmp_path / "photos"


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
def test_one_row_and_one_line_per_readable_image(folder, tmp_path, suffix, capsys):
    out = tmp_path / "out" / f"mine{suffix}"
    assert module.export_features(tmp_path / "run", folder, out, workers=0) == 3
    x = np.load(out) if suffix == ".npy" else load_file(out)["features"]
    assert x.shape == (3, 48) and x.dtype == np.float32
    assert out.with_suffix(".txt").read_text().splitlines() == ["a.png", "b/1.png", "b/2.png"]
    first = np.asarray(Image.open(folder / "a.png")).transpose(2, 0, 1) / np.float32(255)
    network = FakeRuns("digits", tmp_path)(tmp_path).method.exports()["backbone"].build()
    np.testing.assert_allclose(x[0], network(torch.from_numpy(first)[None])[0].numpy(), rtol=1e-4, atol=1e-4)
    printed = capsys.readouterr().out
    assert "left out, cannot be read: bad.png" in printed and "3 x 48" in printed


def test_other_endings_and_missing_folders_are_refused(folder, tmp_path):
    with pytest.raises(UserError, match=r"must end in .npy or .safetensors"):
        module.export_features(tmp_path / "run", folder, tmp_path / "out.csv")
    with pytest.raises(UserError, match="is not a folder"):
        module.export_features(tmp_path / "run", tmp_path / "none", tmp_path / "out.npy")
