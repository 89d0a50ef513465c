"""Protocols that train on clips of videos, and the folds of a data card."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from data.toy_videos import write_video
from tiny import tiny_recipe

from unlabeled.config.augment import Clip
from unlabeled.config.read import read_card, read_protocol
from unlabeled.data.sources.base import Source
from unlabeled.data.sources.open import open_source
from unlabeled.engine.restore import load_run
from unlabeled.engine.train import train
from unlabeled.errors import UserError
from unlabeled.evaluation.evaluate import evaluate
from unlabeled.evaluation.seeds import evaluate_folds
from unlabeled.evaluation.trained import recipe_on

FOLDS = range(1, 4)
SHORT = ["workers=0", "data.batch=6", "epochs=1", "optim.warmup_epochs=0"]
SMALL = [*SHORT, "size=null", "method.crop.size=16", "clip={frames: 4, stride: 2, count: 2, crops: 3}"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two updates of CVRL, on clips of four frames."""
    folder = tmp_path_factory.mktemp("runs") / "cvrl"
    assert train(tiny_recipe("cvrl", "plain", ["train.updates=2"]), folder).finished
    return folder


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve videos of twelve frames of two actions, with the lists of UCF101's three splits and of HMDB51's."""
    root = tmp_path_factory.mktemp("videos")
    random, lists = np.random.default_rng(0), {name: list[str]() for name in ("train", "test")}
    for action in ("Basketball", "YoYo"):
        for group in range(6):
            name = f"{action}/v_{action}_g{group:02}_c01.avi"
            frames = random.integers(0, 256, (12, 6, 8, 3), np.uint8).repeat(4, 1).repeat(4, 2)
            file = write_video(root / "ucf" / "UCF-101" / name, frames, "mpeg4")
            copy = root / "hmdb" / "videos" / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.symlink_to(file)
            lists["train"].append(name)
    ucf, hmdb = root / "ucf" / "ucfTrainTestlist", root / "hmdb" / "testTrainMulti_7030_splits"
    ucf.mkdir(), hmdb.mkdir()
    for fold in FOLDS:
        held = [name for name in lists["train"] if f"_g{fold:02}_" in name]
        kept = [f"{name} {1 + ('YoYo' in name)}" for name in lists["train"] if name not in held]
        (ucf / f"trainlist{fold:02}.txt").write_text("\n".join(kept) + "\n")
        (ucf / f"testlist{fold:02}.txt").write_text("\n".join(held) + "\n")
        for action in ("Basketball", "YoYo"):
            lines = [f"{Path(name).name} {1 + (name in held)} " for name in lists["train"] if name.startswith(action)]
            (hmdb / f"{action}_test_split{fold}.txt").write_text("\n".join(lines) + "\n")
    return root


def fitted(run: Path, protocol: str, *settings: str):
    videos = Source("videos", "train")
    videos.has_clips = True
    return recipe_on(read_protocol(protocol, list(settings)), load_run(run), videos).method


def test_a_protocol_trains_on_the_clips_of_the_network(run: Path) -> None:
    method = fitted(run, "video-linear-small")
    assert (method.clip, method.crop.size) == (Clip(frames=4, stride=2), 16)
    assert fitted(run, "video-linear-small", "clip.frames=8").clip == Clip(frames=8, stride=2)
    single = fitted(run, "video-linear-small", "clip={frames: 1}")
    assert (single.clip, single.crop.size) == (Clip(frames=1, stride=1), 16)
    assert fitted(run, "video-linear-small", "method.clip={frames: 2}").clip == Clip(frames=2)
    method = fitted(run, "video-linear")
    assert (method.clip, method.crop.size, method.crop.aspect) == (Clip(frames=32, stride=2), 224, (0.5, 2.0))
    assert fitted(run, "finetune-video").clip == Clip(frames=32, stride=2)
    assert fitted(run, "linear-grid").clip == Clip(frames=4, stride=2)
    digits, flat = open_source(read_card("digits"), "train"), load_run(run)
    assert recipe_on(read_protocol("linear-sgd"), flat, digits).method.clip is None
    with pytest.raises(UserError, match="clips of 4 frames, and split 'train' of data card 'digits' holds images"):
        recipe_on(read_protocol("video-linear-small"), flat, digits)


def test_a_2d_network_trains_inflated_on_cvrls_clips(tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    network = "backbone={name: resnet50, width: 0.125}"
    assert train(tiny_recipe("finetune", "plain", [network, "train.updates=1"]), flat).finished
    assert fitted(flat, "linear-sgd", "inflate=r3d50").clip == Clip(frames=16, stride=2)
    assert fitted(flat, "video-linear", "inflate=r3d50").clip == Clip(frames=32, stride=2)
    with pytest.raises(UserError, match=r"'clip\.count' has no effect: the network is for images, not for clips"):
        fitted(flat, "video-linear")


def test_speed_in_frames_per_second_goes_on(tmp_path: Path) -> None:
    fast = tmp_path / "fast"
    assert train(tiny_recipe("cvrl", "plain", ["train.updates=1", "method.clip.per_second=12.5"]), fast).finished
    assert fitted(fast, "video-linear-small").clip == Clip(frames=4, stride=2, per_second=12.5)
    assert fitted(fast, "video-linear-small", "clip.stride=3").clip == Clip(frames=4, stride=3)


def test_a_probe_of_clips_and_one_of_single_frames_are_trained_and_scored(run: Path, videos: Path) -> None:
    card = ["card=ucf101", f"root={videos / 'ucf'}"]
    for clip, shape in (("clip={count: 2}", (3, 4, 16, 16)), ("clip={frames: 1}", (3, 1, 16, 16))):
        report = evaluate("video-linear-small", run, [*SHORT, *card, clip, "random_init=false"])
        assert report["linear"].network["value"] in (0, 50, 100) and report.test.n == 2 and report.train.n == 10
        trained = load_run(run / "eval" / report.name)
        export = trained.method.exports()["linear"]
        assert export.input.shape == shape and trained.update == 1
        assert isinstance(export.build()(torch.rand(1, *shape)), torch.Tensor)


def test_all_folds_of_ucf101_and_their_mean(run: Path, videos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = [*SMALL, "card=ucf101", f"root={videos / 'ucf'}", "random_init=false"]
    reports = evaluate_folds("finetune-video", run, settings)
    assert [(report.train.split, report.test.split) for report in reports] == [
        ("train", "val"), ("train2", "val2"), ("train3", "val3")]
    assert [load_run(run / "eval" / report.name).recipe.data.train.split for report in reports] == [
        "train", "train2", "train3"]
    values = [report["classifier"].network["value"] for report in reports]
    printed = capsys.readouterr().out.splitlines()
    rows = [line for line in printed if "mean of 3" in line]
    assert len(rows) == 1 and f"{sum(values) / 3:.1f}" in rows[0] and "50.0" in rows[0]
    assert len([line for line in printed if "train2, val2" in line]) == 1


def test_folds_of_hmdb51_by_any_protocol(run: Path, videos: Path) -> None:
    settings = ["workers=0", "card=hmdb51", f"root={videos / 'hmdb'}", "k=[1]", "random_init=false", "raw_pixels=false",
                "keep_features=false"]
    assert [report.test.split for report in evaluate_folds("knn", run, settings)] == ["val", "val2", "val3"]
    with pytest.raises(UserError, match="'train=train2' and --folds both choose the split"):
        evaluate_folds("knn", run, [*settings, "train=train2"])
    with pytest.raises(UserError, match="data card 'videos' lists no folds: leave --folds out"):
        evaluate_folds("knn", run, ["workers=0"])


def test_folds_hold_other_videos(videos: Path) -> None:
    for name in ("ucf101", "hmdb51"):
        card = read_card(name)
        root = str(videos / name.removesuffix("101").removesuffix("51"))
        sources = [open_source(card, test, root) for _, test in card.folds]
        assert len(sources) == 3 and len({source.key(i) for source in sources for i in range(2)}) == 6


def test_a_card_names_its_folds(tmp_path: Path) -> None:
    file = tmp_path / "card.yaml"
    file.write_text("name: own\nsource: {kind: videofolder, labels: folders}\nsplits: {a: {}}\nfolds: [[a, b]]\n")
    with pytest.raises(UserError, match="'folds' names the split 'b', which 'splits' does not"):
        read_card(file)
