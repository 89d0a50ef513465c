"""Rendered videos: what moves, how, and that they are kept."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.data import toy_videos  # skips where there is no PyAV

from unlabeled.config.card import Card, MovingShapes
from unlabeled.data.sources.open import open_source
from unlabeled.data.sources.shapes import Scenes, render
from unlabeled.data.sources.video.moving import MOTIONS, scenes
from unlabeled.data.sources.video.source import VideoSource

RULE = MovingShapes(kind="moving-shapes")
assert toy_videos


def moving(samples: int = 9, **rule: object) -> VideoSource:
    source = open_source(Card.model_validate({
        "name": "moving", "source": {"kind": "moving-shapes", **rule}, "splits": {"train": {"samples": samples}}}),
        "train")
    assert isinstance(source, VideoSource)
    return source


def test_videos_are_rendered_once_and_decoded_as_any_other() -> None:
    source = moving(frames=20)
    assert (len(source), source.length(0), source.rate(0)) == (9, 20, 25.0)
    assert source.labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 0]
    assert source.classes == list(MOTIONS)
    rule = MovingShapes(kind="moving-shapes", frames=20)
    expected = render(scenes(rule, "train", 3), 32)[0]
    assert np.abs(source.clip(3, np.arange(20)).astype(int) - expected).mean() < 8  # colours at half the resolution
    (folder,) = (Path(os.environ["XDG_CACHE_HOME"]) / "unlabeled" / "moving-shapes").iterdir()
    before = [(file.name, file.stat().st_mtime_ns) for file in sorted(folder.iterdir())]
    assert len(before) == 9
    again = moving(frames=20)
    assert np.array_equal(again.clip(3, np.arange(20)), source.clip(3, np.arange(20)))
    assert [(file.name, file.stat().st_mtime_ns) for file in sorted(folder.iterdir())] == before
    assert again.fingerprint() == source.fingerprint()


def test_the_same_frames_are_the_same_file_whatever_memory_holds(tmp_path: Path) -> None:
    code = ("import sys; from pathlib import Path; import numpy as np; from unlabeled.data.sources.video.frames import "
            "write; write(Path(sys.argv[1]), np.load(sys.argv[2]), 25)")
    np.save(tmp_path / "frames.npy", np.concatenate([render(scenes(RULE, "train", i), 32)[0] for i in range(4)]))
    for fill in ("1", "77", "200"):  # with which glibc fills memory that it hands out
        subprocess.run([sys.executable, "-c", code, tmp_path / f"{fill}.mp4", tmp_path / "frames.npy"], check=True,
                       env={**os.environ, "MALLOC_PERTURB_": fill, "PYTHONPATH": os.pathsep.join(sys.path)})
    assert len({(tmp_path / f"{fill}.mp4").read_bytes() for fill in ("1", "77", "200")}) == 1


def looks(one: Scenes) -> np.ndarray:
    return np.column_stack([one.kinds, one.looks[:, 0], one.ground])


@pytest.mark.parametrize(("appearance", "changes"), [("changing", 4), ("constant", 0)])
def test_looks_change_every_twelve_frames_and_motion_goes_on(appearance: str, changes: int) -> None:
    rule = RULE.model_copy(update={"appearance": appearance})
    for index in range(8):
        one = scenes(rule, "train", index)
        different = (np.diff(looks(one), axis=0) != 0).any(1)
        assert np.flatnonzero(different).tolist() == [12 * i - 1 for i in range(1, changes + 1)]
        if MOTIONS[index] != "jump":
            assert np.abs(np.diff(one.centres[:, 0], axis=0)).max() < 0.15


def test_each_motion_moves_what_its_name_says() -> None:
    for index in range(32):
        one = scenes(RULE, "train", index)
        across, down = one.centres[:, 0].std(0) > 0.01
        moves = (bool(across), bool(down), bool(one.radii.std() > 0.01), bool(one.angles.std() > 0.1))
        assert moves == {
            "sideways": (True, False, False, False), "up-and-down": (False, True, False, False),
            "diagonal": (True, True, False, False), "circle": (True, True, False, False),
            "pulse": (False, False, True, False), "spin": (False, False, False, True),
            "jump": (True, True, False, False), "rest": (False, False, False, False)}[MOTIONS[index % 8]]
        assert one.centres.min() > 0.1 and one.centres.max() < 0.9


def test_the_object_is_brighter_than_the_ground() -> None:
    for index in range(16):
        images, objects = render(scenes(RULE, "val", index), 32)
        value = images.max(3)
        assert value[objects == 1].mean() > 1.5 * value[objects == 0].mean()


def test_splits_and_seeds_differ() -> None:
    first = scenes(RULE, "train", 3)
    for other in (scenes(RULE, "val", 3), scenes(RULE.model_copy(update={"seed": 1}), "train", 3),
                  scenes(RULE, "train", 11)):
        assert not np.array_equal(first.centres, other.centres)
        assert not np.array_equal(looks(first), looks(other))
