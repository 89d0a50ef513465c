"""Tests of networks for clips in evaluations: which views they get, and what is made of several."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from unlabeled.augment.geometry import EvalCrop
from unlabeled.config.protocols.vectors import ClipViews
from unlabeled.data.clips import EvenClips, Spacing
from unlabeled.data.crops import ClipCrop
from unlabeled.data.sources.base import Source
from unlabeled.engine.passes.features import extract, network_embedder, samples_per_pass
from unlabeled.errors import UserError
from unlabeled.evaluation.setup import refuse_images_for_clips, shown, views_of
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
