"""CVRL against arrays computed with the published code (tensorflow/models, official/projects/video_ssl)."""

from __future__ import annotations

import golden_files
import numpy as np
import pytest
from golden_files import Case, close

from unlabeled.augment.plain_crops import EdgeCrop
from unlabeled.data.clips import ClipPair, EvenClips, Interval, even_starts, offsets
from unlabeled.ops.boxes import crop_columns

KINDS = ("cvrl_interval", "cvrl_test_views")


def parametrize(kind: str):
    return golden_files.parametrize(kind, KINDS)


def part(case: Case, prefix: str) -> Case:
    return {name.removeprefix(f"{prefix}."): array for name, array in case.items() if name.startswith(f"{prefix}.")}


# ---- clips


@parametrize("cvrl_interval")
def test_clips_of_a_pair(case: Case) -> None:
    for number in range(int(case["num_cases"])):
        one = part(case, f"case{number}")
        length, frames, stride = (int(one[name]) for name in ("video_frames", "clip_frames", "frame_stride"))
        room = int(one["max_offset_T"])
        assert offsets(length, frames, stride) == room
        for power in case["powers"].tolist():
            close(Interval(power).pmf(room), one[f"pmf_power{power:g}"], abs=1e-12)
        assert [Interval(1.0).gap(u, room) for u in one["u"].tolist()] == one["delta"].tolist()
        draws = np.column_stack([one["u"], one["v"], np.where(one["swap"], 0.75, 0.25)])
        pair = ClipPair(frames, stride, 1.0)
        assert [list(pair.starts(draw, length, stride)) for draw in draws] == one["start_of_clip1_clip2"].tolist()
        places = pair.places(draws, np.full(len(draws), length), np.zeros(len(draws)))
        assert np.array_equal(places, one["frame_indices_clip1_clip2"])


@parametrize("cvrl_test_views")
def test_views_at_test(case: Case) -> None:
    frames, stride, count = (int(case[name]) for name in ("clip_frames", "frame_stride", "num_clips"))
    videos = sorted({name.partition(".")[0] for name in case if name.startswith("video")})
    assert videos
    for video in videos:
        one = part(case, video)
        length = int(one["frames"])
        assert even_starts(length, frames, stride, count).tolist() == one["clip_starts"].tolist()
        places = EvenClips(frames, stride, count).places(np.empty((1, 0)), np.array([length]), np.zeros(1))
        assert np.array_equal(places[0], one["frame_indices"])
    for place in range(3):
        crop = EdgeCrop(int(case["crop_size"]), place)
        box = crop_columns(crop.draw(np.empty((len(case["input_height_width"]), 0)), case["input_height_width"]))
        resized = np.column_stack([box.image_height, box.image_width])
        assert np.array_equal(resized, case["resized_height_width"])
        assert np.array_equal(np.column_stack([box.top, box.left]), case["crop_top_left_3"][:, place])


@pytest.mark.parametrize("law", ["decreasing", "uniform", "increasing"])
def test_gaps_follow_their_law(law) -> None:
    interval = Interval(2.0, law)
    pmf = interval.pmf(50)
    assert abs(pmf.sum() - 1) < 1e-12
    if law != "increasing":
        assert (np.diff(pmf) < 1e-15).all()
    drawn = np.bincount([interval.gap(u, 50) for u in np.random.default_rng(0).random(100_000).tolist()], minlength=50)
    expected = 100_000 * pmf
    assert ((drawn - expected) ** 2 / expected).sum() < 49 + 5 * np.sqrt(2 * 49)  # chi-square of 49 degrees of freedom
