"""ReaL's labels, by the number in an image's name, images without any skipped; and ImageNetV2's folders."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_recipe

from unlabeled.engine.train import train
from unlabeled.errors import UserError
from unlabeled.evaluation.evaluate import evaluate
from unlabeled.evaluation.real import RealLabels

KEYS = [f"n0{i % 2}/ILSVRC2012_val_{number:08}.JPEG" for i, number in enumerate([4, 1, 2])]


class Keys:
    def __init__(self, keys: list[str]) -> None:
        self.keys = keys

    def __len__(self) -> int:
        return len(self.keys)

    def key(self, index: int) -> str:
        return self.keys[index]


def write(folder: Path, lists: object) -> Path:
    file = folder / "real.json"
    file.write_text(json.dumps(lists))
    return file


def test_right_is_who_names_one_of_the_labels(tmp_path: Path) -> None:
    file = write(tmp_path, [[0, 2], [], [1], [1, 2]])  # of the images 1 to 4
    labels = RealLabels(file, Keys(KEYS), 3)
    assert np.array_equal(labels.seen, [[False, True, True], [True, False, True], [False] * 3])
    score = labels.score(torch.tensor([2, 1, 0]), torch.arange(3))
    assert score.value == 50.0
    assert score.details == {"images": 2, "skipped": 1, "chance": 100.0}
    assert labels.score(torch.tensor([2]), torch.tensor([1])).value == 100.0  # the others could not be read
    with pytest.raises(UserError, match="none of the images that can be read has a label of ReaL's"):
        labels.score(torch.tensor([0]), torch.tensor([2]))


@pytest.mark.parametrize(("lists", "keys", "message"), [
    ([[0]], KEYS, r"real=.*real.json holds the labels of 1 images, not of 'n00/ILSVRC2012_val_00000004.JPEG'"),
    ([[0]], ["a.jpg"], r"image 'a.jpg' has no number of ImageNet's validation set, such as ILSVRC2012_val_00000001"),
    ([[0], [3]], KEYS, r"label 3 of image 2 is no class; allowed: whole numbers from 0 to 2, those of the classifier"),
    ([[True]], KEYS, r"label True of image 1 is no class"),
    ({"0": []}, KEYS, r"holds no list of lists of classes; the published file is real.json of github.com"),
    ([0, 1], KEYS, r"holds no list of lists of classes"),
])  # fmt: skip
def test_other_files_are_refused(tmp_path: Path, lists: object, keys: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        RealLabels(write(tmp_path, lists), Keys(keys), 3)


def test_what_is_no_json_or_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[[0]")
    with pytest.raises(UserError, match=r"a\.json is no JSON"):
        RealLabels(tmp_path / "a.json", Keys(KEYS), 3)
    with pytest.raises(UserError, match=r"b\.json cannot be read: No such file or directory"):
        RealLabels(tmp_path / "b.json", Keys(KEYS), 3)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Twenty images in numbered class folders, named as ImageNet's."""
    from PIL import Image

    random = np.random.default_rng(0)
    for number in range(1, 21):
        place = tmp_path / "set" / str(number % 10) / f"ILSVRC2012_val_{number:08}.JPEG"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 255, (8, 8, 3), np.uint8)).save(place, "PNG")
    return tmp_path / "set"


def test_a_run_is_scored_by_both_on_a_card_of_test_images(folders: Path, tmp_path: Path, capsys) -> None:
    run = tmp_path / "run"
    assert train(tiny_recipe("finetune", "plain"), run).finished
    own = ["workers=0", "card=imagenetv2", f"root={folders}", "precision=fp32"]
    plain = evaluate("classify", run, own)
    every = write(tmp_path, [list(range(10)) if n % 4 else [] for n in range(1, 21)])
    report = evaluate("classify", run, [*own, f"real={every}"])
    assert report["classifier ReaL"].network["value"] == 100.0 == report["classifier ReaL"].chance
    assert report["classifier"] == plain["classifier"] and report["classifier"].chance == 10.0
    assert report.test.n == 20 and report.name != plain.name
    assert "classifier ReaL: images 15, skipped 5\n" in capsys.readouterr().out
    own_label = write(tmp_path, [[n % 10] for n in range(1, 21)])
    same = evaluate("classify", run, [*own, f"real={own_label}"])
    assert same["classifier ReaL"].network["value"] == same["classifier"].network["value"]
