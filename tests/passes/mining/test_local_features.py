"""Are two images one picture? OpenCV's SIFT, matcher and RANSAC say the same, pair by pair."""

import functools

import numpy as np
import pytest
import torch
from tests.passes.mining.photos import CHANGES, changed, parts

from unlabeled.config.passes.mining import MineSettings
from unlabeled.passes.mining.local_features import LONGEST, LocalFeatures, gray

CFG = MineSettings(pool="", out="")
CPU = torch.device("cpu")
# one picture or two, as anybody sees
TRUE = [*[("left", "left", change) for change in CHANGES], ("upper", "upper", "turned a little"),
        ("lower", "lower", "cut at the border"), ("right", "right", "half the size")]
FALSE = [("left", "right", None), ("left", "upper", None), ("upper", "lower", None), ("right", "lower", "darker")]


def image(name, change):
    return parts()[name] if change is None else changed(name, change)


@functools.cache
def features():
    return LocalFeatures(CPU)


@functools.cache
def keypoints(name, change=None):
    with torch.inference_mode():
        return features().keypoints([gray(image(name, change))])[0]


def verdict(matches, inliers):
    return inliers >= CFG.inliers and inliers >= CFG.inlier_share * matches


@functools.cache
def opencv_keypoints(name, change=None):
    import cv2

    points, descriptors = cv2.SIFT_create(1000).detectAndCompute(gray(image(name, change))[0].numpy(), None)
    return np.array([point.pt for point in points], np.float32), descriptors


def opencv_agreement(one, other):
    """Matches by the ratio test both ways, and those within 3 pixels of an affine map."""
    import cv2

    def nearest(a, b):
        found = cv2.BFMatcher().knnMatch(a, b, k=2)
        return {(m.queryIdx, m.trainIdx) for m, second in found if m.distance < 0.75 * second.distance}

    (places, a), (others, b) = one, other
    matches = sorted(nearest(a, b) & {(i, j) for j, i in nearest(b, a)})
    if len(matches) < 4:
        return len(matches), 0
    first, second = np.array(matches).T
    cv2.setRNGSeed(1)
    _, inliers = cv2.estimateAffine2D(places[first], others[second], ransacReprojThreshold=3.0)
    return len(matches), int(inliers.sum())


@pytest.mark.parametrize("one, other, change", [*TRUE, *FALSE])
def test_opencv_says_the_same(one, other, change):
    pytest.importorskip("cv2")
    mine = features().agreement(keypoints(one), keypoints(other, change), 1)
    theirs = opencv_agreement(opencv_keypoints(one), opencv_keypoints(other, change))
    assert verdict(*mine) == verdict(*theirs) == (one == other)
    if one == other:  # as many within a factor, from detectors that reject differently
        assert 0.4 <= mine[0] / theirs[0] <= 2.5 and abs(mine[1] / mine[0] - theirs[1] / theirs[0]) < 0.2


def test_clear_keypoints_lie_where_opencv_finds_some():
    pytest.importorskip("cv2")
    mine, theirs = keypoints("left").places.numpy()[:200], opencv_keypoints("left")[0]  # the clearest come first

    def share(places):
        return np.mean(np.sqrt(((places[:, None] - theirs[None]) ** 2).sum(2)).min(1) < 1)

    assert share(mine) > 8 * share(mine + 6), "detectors reject differently, but chance explains none of it"


def test_images_of_any_size_are_compared_at_one():
    small = np.asarray(changed("left", "half the size"))
    assert max(gray(small).shape) == max(gray(parts()["left"]).shape) == LONGEST
    assert all(side % 16 == 0 for side in gray(parts()["lower"]).shape[1:])


def test_the_verdict_depends_on_the_pair_alone():
    one, other = keypoints("left"), keypoints("left", "turned a little")
    torch.manual_seed(1)
    first = features().agreement(one, other, 7)
    torch.rand(100)
    assert features().agreement(one, other, 7) == first


def test_images_go_through_together_or_alone():
    pictures = [gray(image(name, None)[:96, :96].copy()) for name in ("left", "right", "upper")]
    tall = gray(parts()["lower"][:150, :60].copy())
    with torch.inference_mode():
        together = features().keypoints([pictures[0], tall, *pictures[1:]])
        for picture, found in zip([pictures[0], tall, *pictures[1:]], together, strict=True):
            (alone,) = features().keypoints([picture])
            assert len(alone.places) == len(found.places)
            assert torch.allclose(alone.places, found.places, atol=0.01)


def test_what_has_no_features_matches_nothing():
    with torch.inference_mode():
        (flat,) = features().keypoints([gray(np.full((40, 40, 3), 90, np.uint8))])
    assert len(flat.places) == 0
    assert features().agreement(flat, keypoints("left"), 1) == (0, 0)
    assert features().agreement(keypoints("left"), flat, 1) == (0, 0)
