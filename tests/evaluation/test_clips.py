"""Tests of networks for clips in evaluations: which views they get, and what is made of several."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tests.evaluation.fakes import FakeMethod
from tests.tiny import tiny_recipe
from torch import Tensor, nn

from unlabeled.augment.geometry import EvalCrop
from unlabeled.augment.plain_crops import EdgeCrop
from unlabeled.config.protocols.detection import Detection
from unlabeled.config.protocols.vectors import ClipViews
from unlabeled.config.read import read_protocol
from unlabeled.data.clips import EvenClips, Spacing
from unlabeled.data.crops import ClipCrop
from unlabeled.data.sources.base import Source
from unlabeled.engine import method as methods
from unlabeled.engine.exports.networks import Inside, inner
from unlabeled.engine.maps import last_map
from unlabeled.engine.online import KNN_NAME, Online
from unlabeled.engine.passes.features import Features, extract, network_embedder, samples_per_pass
from unlabeled.engine.plan import make_plan
from unlabeled.errors import UserError
from unlabeled.evaluation import neighbours
from unlabeled.evaluation.dense import detection
from unlabeled.evaluation.setup import check_samples, middle_frames, refuse_images_for_clips, shown, views_of
from unlabeled.evaluation.vectors.pixels import pixel_embedder
from unlabeled.methods.base import Export, Input

CPU = torch.device("cpu")


class Counted(Source):
    """Videos of 30 frames of 8 x 12 pixels, whose pixels are the number of the frame; columns count up by 40."""

    has_clips = True

    def __init__(self, n: int) -> None:
        super().__init__("counted", "train")
        self.n, self.labels = n, np.zeros(n, np.int64)

    def __len__(self) -> int:
        return self.n

    def length(self, index: int) -> int:
        return 30

    def rate(self, index: int) -> float:
        return 25.0

    def clip(self, index: int, frames: np.ndarray) -> np.ndarray:
        pixels = frames[..., None, None, None] + 40 * (np.arange(12) // 4)[:, None]
        return np.broadcast_to(pixels, (*frames.shape, 8, 12, 3)).astype(np.uint8)


class Means(nn.Module):
    """Means over a clip's frames: of its first frame and of all, in grey levels."""

    def forward(self, x: Tensor) -> Tensor:
        return 255 * torch.stack([x[:, 0, 0].mean((1, 2)), x[:, 0].mean((1, 2, 3))], 1)


CLIP = Spacing(4, 2)


def export(gives: str = "vector", clip: Spacing | None = CLIP) -> Export:
    return Export(Means, gives, Input(8, clip=clip))


def features(chosen: Export, clip: ClipViews) -> Tensor:
    embedder = network_embedder(chosen, CPU, crops=views_of(chosen, clip))
    return extract({"n": embedder}, Counted(3), batch=16, workers=0, device=CPU, max_corrupt=0)["n"].x


def test_a_clip_is_cut_from_the_middle_of_a_video() -> None:
    chosen = export()
    assert chosen.crop == ClipCrop(EvalCrop(8), EvenClips(4, 2))
    assert export(clip=None).crop == EvalCrop(8)
    # starts lie between 0 and 30 - 4 * 2; the central 8 of 12 columns are 2 of each third beside 4 of the middle
    torch.testing.assert_close(features(chosen, ClipViews()), torch.tensor([[51.0, 54.0]] * 3))


def test_features_of_several_clips_and_crops_are_averaged_and_of_classifiers_probabilities() -> None:
    clip = ClipViews(count=3, crops=3)
    thirds = [EdgeCrop(8, place) for place in range(3)]
    assert views_of(export(), clip) == tuple(ClipCrop(third, EvenClips(4, 2, count=3)) for third in thirds)
    rows = [torch.tensor([start + level, start + level + 3.0]) for start in (0, 11, 22)
            for level in (20.0, 40.0, 60.0)]  # squares of 8 columns at the left, in the middle and at the right
    torch.testing.assert_close(features(export(), clip)[0], torch.stack(rows).mean(0))
    probabilities = torch.stack([row.softmax(0) for row in rows]).mean(0)
    torch.testing.assert_close(features(export("logits"), clip)[0], probabilities)
    torch.testing.assert_close(features(export("logits"), ClipViews())[0], torch.tensor([51.0, 54.0]))


@pytest.mark.parametrize(("clip", "expected"), [
    (ClipViews(), Spacing(4, 2, per_second=10.0)), (ClipViews(frames=8), Spacing(8, 2, per_second=10.0)),
    (ClipViews(stride=3), Spacing(4, 3)), (ClipViews(frames=1), None),
])
def test_what_a_protocol_asks_of_clips(clip: ClipViews, expected: Spacing | None) -> None:
    chosen = shown(export(clip=Spacing(4, 2, per_second=10.0)), None, clip)
    assert chosen.input == Input(8, clip=expected)


def test_options_of_clips_are_refused_where_there_are_none() -> None:
    with pytest.raises(UserError, match=r"'clip\.count' has no effect: the network is for images"):
        shown(export(clip=None), None, ClipViews(count=2))
    with pytest.raises(ValueError, match="'count' has no effect with frames: 1"):
        ClipViews(frames=1, count=10)
    images = Source("images", "val")
    with pytest.raises(UserError, match=r"clips of 4 frames, and split 'val' of data card 'images' holds images; .*"
                                        r"clip\.frames=1"):
        refuse_images_for_clips(export(), images)
    refuse_images_for_clips(export(clip=None), images)


def test_as_many_frames_as_images_pass_the_network_at_once() -> None:
    assert samples_per_pass(256, [EvalCrop(8)]) == 256
    assert samples_per_pass(256, views_of(export(), ClipViews(count=4, crops=3))) == 256 // (4 * 4 * 3)
    assert samples_per_pass(8, views_of(export(), ClipViews(count=4))) == 1


def test_raw_pixels_of_a_clip_are_four_of_its_frames() -> None:
    chosen = export(clip=Spacing(7, 2))
    x = extract({"p": pixel_embedder(Counted(2), chosen.crop)}, Counted(2), batch=16, workers=0, device=CPU,
                max_corrupt=0)["p"].x
    first = 8  # of frames 8, 10 ... 20 the first, third, fifth and seventh
    assert x.shape == (2, 3 * 4 * 8 * 8)
    levels = 255 * x[0].view(3, 4, 8, 8)[0, :, 0, 0]
    torch.testing.assert_close(levels, torch.tensor([first, first + 4.0, first + 8, first + 12]))


class Inner(nn.Module):
    """A network for clips with a block that gives a map [b, 3, T, 4, 4], each place the mean of its part."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.AdaptiveAvgPool3d((None, 4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x).mean((2, 3, 4))


def test_a_block_of_a_network_for_clips_is_averaged_over_time_and_places() -> None:
    whole = Export(Inner, "vector", Input(8, clip=CLIP))
    expected, found = (features(each, ClipViews()) for each in (whole, inner(whole, Inside(None, "block"))))
    assert found.shape == (3, 3)
    torch.testing.assert_close(found, expected)


def test_clips_are_measured_while_training_as_many_at_once_as_an_update_has_videos() -> None:
    recipe = tiny_recipe("simclrv2", "plain", ["eval.every=1", "data.workers=0"])
    plan, source, seen = make_plan(recipe, "train", 1297, 1), Counted(80), []
    source.labels = np.arange(80) % 2
    source.length = lambda index: 30 + 20 * (index % 2)  # type: ignore[method-assign]  # so that they begin elsewhere

    class Watched(Means):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(len(x))
            return super().forward(x)

    method = FakeMethod(8)
    method.exports = lambda: {"backbone": Export(Watched, "vector", Input(8, clip=CLIP))}  # type: ignore[method-assign]
    measured = Online(recipe, plan, source, CPU).measure(method)
    assert measured[KNN_NAME] == 100.0 and measured["health/feature_std"] > 0
    assert max(seen) == plan.batch_per_process > 1


def test_a_network_for_images_sees_middle_frames_and_that_is_said() -> None:
    videos, images = Counted(3), Source("images", "val")
    line = "data card 'counted' holds videos: of each, the network sees the middle frame, as an image"
    assert middle_frames(export(clip=None), images, videos) == line
    assert middle_frames(export(clip=None), images, None) is middle_frames(export(), videos) is None


def test_what_works_on_images_refuses_networks_for_clips(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"^export .backbone. is for clips of 4 frames, and what works on places of a "):
        last_map("backbone", export(), CPU)
    monkeypatch.setattr(methods, "_of_run", lambda source, **options: export("logits"))
    with pytest.raises(UserError, match=r"^.runs/clips. is for clips of 4 frames, and teachers are shown images"):
        methods.load_teacher("runs/clips")
    monkeypatch.setattr(detection, "open_boxed", lambda *_: SimpleNamespace(
        train=SimpleNamespace(dropped=0), test=SimpleNamespace(dropped=0), names=["a"]))
    restored = SimpleNamespace(method=SimpleNamespace(exports=lambda: {"backbone": export()}))
    cfg = read_protocol("detection-shapes")
    assert isinstance(cfg, Detection)
    with pytest.raises(UserError, match=r"^export .backbone. is for clips of 4 frames, and a detector is for images"):
        detection.run("detection-shapes", cfg, restored, Path(), CPU)  # type: ignore[arg-type]


def test_neighbours_of_clips_are_strips_of_their_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[list[np.ndarray]] = []
    sheet = neighbours.neighbour_sheet
    monkeypatch.setattr(neighbours, "neighbour_sheet", lambda rows, path: drawn.extend(rows) or sheet(rows, path))
    near = Features(torch.tensor([[1.0, 0.0], [1.0, 0.1]]), torch.arange(2))
    path = neighbours.draw_neighbours(Counted(2), near, export(clip=Spacing(7, 2)).crop, tmp_path, 3)
    assert drawn[0][0].shape == (4, 8, 12, 3)
    assert drawn[0][0][:, 0, 0, 0].tolist() == [8, 12, 16, 20]  # of frames 8, 10 ... 20
    with Image.open(path) as picture:
        assert picture.size == (2 * (4 * 96 + 4) + 12, 2 * 100 + 4)
    neighbours.draw_neighbours(Counted(2), near, export(clip=Spacing(2, 5)).crop, tmp_path, 3)
    assert len(drawn[2][0]) == 2


def test_every_export_meets_every_split_and_frames_of_videos_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    images, videos = Source("images", "val"), Counted(2)
    check_samples([export(clip=None)], images, videos)
    assert "'counted' holds videos: of each, the network sees the middle frame" in capsys.readouterr().out
    check_samples([export()], videos, None)
    assert capsys.readouterr().out == ""
    with pytest.raises(UserError, match="split 'val' of data card 'images' holds images"):
        check_samples([export(clip=None), export()], videos, images)
