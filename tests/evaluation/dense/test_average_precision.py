"""Average precision on cases whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from unlabeled.data.sources.truth import Objects
from unlabeled.evaluation.dense.average_precision import Detections, average_precision, encode

CLASSES = ["a", "b"]


def truth(*boxes: tuple, crowd: tuple = (), difficult: tuple = (), size: int = 100) -> Objects:
    """boxes: (kind, left, top, right, bottom)."""
    kinds, places = np.array([b[0] for b in boxes], np.int64), np.array([b[1:] for b in boxes], np.float32)
    masks = np.zeros((len(boxes), size, size), bool)
    for mask, (left, top, right, bottom) in zip(masks, places.astype(int), strict=True):
        mask[top:bottom, left:right] = True
    flags = [np.isin(np.arange(len(boxes)), each) for each in (crowd, difficult)]
    return Objects(places.reshape(-1, 4), kinds, masks.sum((1, 2)).astype(np.float32), *flags, masks)


def found(*boxes: tuple, size: int = 100) -> Detections:
    """boxes: (score, kind, left, top, right, bottom)."""
    masks = truth(*[b[1:] for b in boxes], size=size).masks
    return Detections(np.array([b[2:] for b in boxes], np.float32).reshape(-1, 4), np.array([b[0] for b in boxes]),
                      np.array([b[1] for b in boxes], np.int64), encode(masks))


def ap(objects: list[Objects], detections: list[Detections], **more: object) -> dict:
    options = {"masks": True, **more}
    scores = average_precision(dict(enumerate(objects)), dict(enumerate(detections)), CLASSES, **options)
    return {name: score.value for name, score in scores.items()}


ONE = truth((0, 10, 10, 50, 50), (1, 60, 60, 80, 90))


def test_perfect_detections_and_none() -> None:
    perfect = found((0.9, 0, 10, 10, 50, 50), (0.3, 1, 60, 60, 80, 90))
    scores = ap([ONE], [perfect])
    assert list(scores) == ["AP", "AP50", "AP75", "mask AP", "mask AP50", "mask AP75"]
    assert all(value == pytest.approx(100) for value in scores.values())
    assert all(value == 0 for value in ap([ONE], [found()]).values())
    assert list(ap([ONE], [perfect], masks=False)) == ["AP", "AP50", "AP75"]


def test_the_overlap_decides_at_how_many_thresholds_a_box_counts() -> None:
    # intersection 40 x 32, union 40 x 40: IoU 0.8, right at seven of the ten thresholds (0.50 to 0.80)
    scores = ap([truth((0, 10, 10, 50, 50))], [found((0.9, 0, 10, 10, 50, 42))])
    assert scores["AP"] == pytest.approx(70) and scores["AP50"] == pytest.approx(100)
    assert scores["mask AP75"] == pytest.approx(100)
    scores = ap([truth((0, 0, 0, 50, 50))], [found((0.9, 0, 0, 0, 50, 36))])  # IoU 0.72: right at five
    assert [scores[name] for name in ("AP", "AP50", "AP75")] == [pytest.approx(50), pytest.approx(100), 0]


def test_half_of_the_objects_found_gives_half_the_recalls() -> None:
    two = truth((0, 10, 10, 50, 50), (0, 60, 60, 90, 90))
    only_one = [found((0.9, 0, 10, 10, 50, 50))]
    assert ap([two], only_one)["AP"] == pytest.approx(100 * 51 / 101)
    assert ap([two], only_one, recall_levels=11)["AP"] == pytest.approx(100 * 6 / 11)  # recalls 0, 0.1 ... 0.5


def test_a_better_scored_mistake_costs_and_a_class_counts_for_itself() -> None:
    wrong_first = found((0.9, 0, 60, 10, 90, 40), (0.8, 0, 10, 10, 50, 50), (0.7, 1, 60, 60, 80, 90))
    assert ap([ONE], [wrong_first])["AP"] == pytest.approx((50 + 100) / 2)
    wrong_class = found((0.9, 1, 10, 10, 50, 50), (0.8, 0, 60, 60, 80, 90))
    assert ap([ONE], [wrong_class])["AP"] == 0


def test_a_class_without_objects_is_left_out() -> None:
    right_and_wrong = found((0.5, 1, 10, 10, 50, 50), (0.9, 0, 0, 0, 9, 9))
    scores = average_precision({0: truth((1, 10, 10, 50, 50))}, {0: right_and_wrong}, CLASSES, masks=False)
    assert scores["AP"].value == pytest.approx(100)
    assert scores["AP"].details["by_class"] == {"a": None, "b": pytest.approx(100)}
    assert scores["AP"].details["AP medium"] == pytest.approx(100) and "AP large" not in scores["AP"].details


def test_who_finds_a_difficult_object_however_often_is_neither_right_nor_wrong() -> None:
    objects = [truth((0, 10, 10, 50, 50), (0, 60, 60, 90, 90), difficult=(1,))]
    plain = found((0.5, 0, 10, 10, 50, 50))
    both = found((0.9, 0, 60, 60, 90, 90), (0.8, 0, 60, 60, 90, 89), (0.5, 0, 10, 10, 50, 50))
    inside = found((0.9, 0, 60, 60, 70, 70), (0.5, 0, 10, 10, 50, 50))  # a corner of it: overlaps by a ninth
    assert ap(objects, [plain], recall_levels=11)["AP"] == pytest.approx(100)
    assert ap(objects, [both], recall_levels=11)["AP"] == pytest.approx(100)
    assert ap(objects, [inside], recall_levels=11)["AP"] == pytest.approx(50)


def test_a_box_inside_a_crowd_is_ignored() -> None:
    objects = [truth((0, 10, 10, 50, 50), (0, 60, 60, 90, 90), crowd=(1,))]
    inside = found((0.9, 0, 60, 60, 70, 70), (0.5, 0, 10, 10, 50, 50))
    assert ap(objects, [inside])["AP"] == pytest.approx(100)


def test_images_are_told_apart() -> None:
    scores = ap([ONE, truth((0, 0, 0, 30, 30))], [found((0.9, 0, 0, 0, 30, 30)), found((0.8, 0, 10, 10, 50, 50))])
    assert scores["AP"] == 0
