"""Rendered shapes: determinism, and truth that agrees with the picture."""

from __future__ import annotations

import numpy as np
import pytest

from unlabeled.config.card import Card
from unlabeled.data.sources.open import open_source
from unlabeled.data.sources.shape_kinds import KINDS
from unlabeled.data.sources.shapes import ShapesSource, draw_scenes, render


def shapes(split: str = "train", n: int = 60, in_memory: bool = True, **rule: object) -> ShapesSource:
    card = Card.model_validate({"name": "shapes", "source": {"kind": "shapes", "size": 48, **rule},
                                "splits": {split: {"samples": n}}, "in_memory": in_memory})
    source = open_source(card, split)
    assert isinstance(source, ShapesSource)
    return source


def test_an_image_is_a_function_of_seed_split_and_index() -> None:
    source = shapes(objects=(1, 5))
    alone = shapes(objects=(1, 5), n=7, in_memory=False)
    assert alone.images is None
    for i in range(7):
        assert np.array_equal(source.images[i], alone.image(i))
        assert np.array_equal(source.images[i], source.labelled(i).image)
    assert np.array_equal(source.images, shapes(objects=(1, 5)).images)
    for other in (shapes(seed=1, objects=(1, 5)), shapes("val", objects=(1, 5))):
        assert not any(np.array_equal(a, b) for a, b in zip(source.images, other.images, strict=True))


@pytest.mark.parametrize("size", [16, 48, 97])
@pytest.mark.parametrize("objects", [(1, 1), (1, 5), (5, 5)])
def test_masks_boxes_and_classes_agree(size: int, objects: tuple[int, int]) -> None:
    source = shapes(size=size, objects=objects, n=25, in_memory=False)
    counts = []
    for i in range(25):
        truth = source.labelled(i)
        counts.append(len(truth.kinds))
        assert truth.kinds[0] == source.labels[i]
        assert truth.masks.shape == (len(truth.kinds), size, size)
        assert truth.masks.sum(0).max() == 1
        assert truth.masks[0].sum() >= 0.01 * size * size
        for mask, (top, left, height, width) in zip(truth.masks, truth.boxes, strict=True):
            inside = mask[top : top + height, left : left + width]
            assert inside.sum() == mask.sum()
            if mask.any():
                assert inside.any(axis=1)[[0, -1]].all()
                assert inside.any(axis=0)[[0, -1]].all()
    assert (min(counts), max(counts)) == objects


def test_the_mask_is_where_the_object_was_painted() -> None:
    scenes = draw_scenes(np.arange(40), (1, 1), 0, "train")
    images, objects = render(scenes, 48)
    scenes.radii[:] = 1e-6
    without, _ = render(scenes, 48)
    changed = (images.astype(int) - without) != 0
    outside = changed.any(axis=3) & (objects == 0)
    inside = changed.any(axis=3)[objects == 1].mean()
    assert inside > 0.97
    assert outside.sum() / (objects == 1).sum() < 0.25  # the antialiased border


def test_all_kinds_come_about_equally_often() -> None:
    labels = shapes(n=5000, in_memory=False).labels
    counts = np.bincount(labels, minlength=len(KINDS))
    assert counts.min() > 400
    assert counts.max() < 600


def test_the_same_scene_at_another_size() -> None:
    scenes = draw_scenes(np.arange(10), (1, 3), 0, "train")
    small, large = render(scenes, 32)[0], render(scenes, 64)[0]
    shrunk = large.reshape(10, 32, 2, 32, 2, 3).mean((2, 4))
    assert np.abs(shrunk - small).mean() < 6
