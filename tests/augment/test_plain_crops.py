"""Padded, square and PaddlePaddle's crops: law, boxes, and pixels against torchvision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.transforms import functional as tv

from unlabeled.augment.geometry import build
from unlabeled.config.augment import PaddedCrop, PaddleCrop, SquareCrop
from unlabeled.errors import UserError
from unlabeled.ops.random import uniforms


def draw(geometry, n: int, height: int, width: int) -> np.ndarray:
    return geometry.draw(uniforms(np.arange(n), geometry.draws, 0, "test"), np.full((n, 2), (height, width)))


def test_padded_crop_equals_torchvision_pad_and_crop(natural) -> None:
    geometry = build(PaddedCrop(kind="padded", size=32, pad=4))
    images = natural(40, 32, 32, seed=1)
    boxes = draw(geometry, 40, 32, 32)
    batch = torch.from_numpy(images).permute(0, 3, 1, 2)
    views = geometry.apply_batch(batch, boxes)
    for image, box, view in zip(batch, boxes, views, strict=True):
        top, left, flip = int(box[0]), int(box[1]), bool(box[6])
        expected = tv.crop(tv.pad(image, 4), top + 4, left + 4, 32, 32)
        assert torch.equal(view, tv.hflip(expected) if flip else expected)
    single = geometry.apply(images[3], boxes[3])
    assert np.array_equal(single, views[3].numpy())


def test_a_mirrored_border_equals_torchvisions(natural) -> None:
    geometry = build(PaddedCrop(kind="padded", size=30, pad=12, border="reflect"))
    batch = torch.from_numpy(natural(40, 28, 32, seed=1)).permute(0, 3, 1, 2)
    boxes = draw(geometry, 40, 28, 32)
    for image, box, view in zip(batch, boxes, geometry.apply_batch(batch, boxes), strict=True):
        padded = tv.pad(image, 12, padding_mode="reflect")
        expected = tv.crop(padded, int(box[0]) + 12, int(box[1]) + 12, 30, 30)
        assert torch.equal(view, tv.hflip(expected) if box[6] else expected)


def test_a_mirrored_border_needs_larger_images() -> None:
    with pytest.raises(UserError, match="a border of 12 mirrored pixels needs larger images"):
        draw(build(PaddedCrop(kind="padded", size=30, pad=12, border="reflect")), 2, 12, 32)


def test_padded_crop_takes_every_place_equally_often_and_flips_half() -> None:
    boxes = draw(build(PaddedCrop(kind="padded", size=32, pad=4)), 20_000, 32, 32)
    for axis in (0, 1):
        places, counts = np.unique(boxes[:, axis], return_counts=True)
        assert places.tolist() == list(range(-4, 5))
        assert abs(counts / 20_000 - 1 / 9).max() < 0.01
    assert abs(boxes[:, 6].mean() - 0.5) < 0.02


def test_padded_crop_refuses_images_that_are_too_small() -> None:
    with pytest.raises(UserError, match="does not fit an image of 20 x 32"):
        draw(build(PaddedCrop(kind="padded", size=32, pad=4)), 2, 20, 32)


def test_square_crop_is_a_fixed_share_of_the_shorter_side_at_any_place(natural) -> None:
    geometry = build(SquareCrop(kind="square", size=28, proportion=0.875, flip=0.5))
    boxes = draw(geometry, 5_000, 64, 80)
    assert set(boxes[:, 2]) == set(boxes[:, 3]) == {56.0}
    assert set(boxes[:, 0]) == set(range(9)) and set(boxes[:, 1]) == set(range(25))
    image = natural(1, 64, 80, seed=2)[0]
    x = torch.from_numpy(image).permute(2, 0, 1)
    for box in boxes[:10]:
        top, left = int(box[0]), int(box[1])
        expected = tv.resized_crop(x, top, left, 56, 56, [28, 28], antialias=True)
        expected = tv.hflip(expected) if box[6] else expected
        assert (torch.from_numpy(geometry.apply(image, box)).int() - expected.int()).abs().max() <= 1


# ---- PaddlePaddle's law


def by_hand(uniforms: np.ndarray, height: int, width: int, area: tuple[float, float]) -> list[tuple[int, ...]]:
    """Return (height, width) of crops, step by step as the published code takes them."""
    found = []
    for aspect, share in uniforms[:, :2]:
        root = (3 / 4 + (4 / 3 - 3 / 4) * aspect) ** 0.5
        bound = min(width / height / root**2, height / width * root**2)
        low, high = min(area[0], bound), min(area[1], bound)
        side = (width * height * (low + (high - low) * share)) ** 0.5
        found.append((int(side / root), int(side * root)))
    return found


@pytest.mark.parametrize(("height", "width"), [(300, 400), (500, 120), (224, 224)])
def test_a_paddle_crop_is_the_published_codes(height: int, width: int) -> None:
    geometry = build(PaddleCrop(kind="paddle", size=32))
    draws = uniforms(np.arange(4000), geometry.draws, 0, "test")
    boxes = geometry.draw(draws, np.full((4000, 2), (height, width)))
    expected = np.array(by_hand(draws, height, width, (0.08, 1.0)))
    assert np.abs(boxes[:, 2:4] - expected).max() <= 1  # a root may be rounded to just below a whole number
    assert (boxes[:, 2:4] == expected).mean() > 0.999
    assert (boxes[:, :2] >= 0).all() and (boxes[:, :2] + boxes[:, 2:4] <= (height, width)).all()


def test_a_paddle_crops_aspect_is_uniform_and_its_area_stops_at_what_the_image_has_room_for() -> None:
    boxes = draw(build(PaddleCrop(kind="paddle", size=32)), 20_000, 900, 900)
    aspect = boxes[:, 3] / boxes[:, 2]
    law = (aspect - 3 / 4) / (4 / 3 - 3 / 4)
    assert np.abs(np.quantile(law, np.linspace(0.05, 0.95, 19)) - np.linspace(0.05, 0.95, 19)).max() < 0.02
    share = boxes[:, 2] * boxes[:, 3] / 900**2
    bound = np.minimum(1 / aspect, aspect)
    within = (share - 0.08) / (bound - 0.08)
    assert within.min() > -0.01 and within.max() < 1.01
    assert np.abs(np.quantile(within, np.linspace(0.05, 0.95, 19)) - np.linspace(0.05, 0.95, 19)).max() < 0.02
    assert abs(boxes[:, 6].mean() - 0.5) < 0.02


def test_a_paddle_crop_lies_anywhere() -> None:
    boxes = draw(build(PaddleCrop(kind="paddle", size=32, area=(0.25, 0.25), aspect=(1.0, 1.0))), 20_000, 20, 20)
    for axis in (0, 1):
        places, counts = np.unique(boxes[:, axis], return_counts=True)
        assert places.tolist() == list(range(11))
        assert abs(counts / 20_000 - 1 / 11).max() < 0.01


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 900), (3, 3)])
def test_a_paddle_crop_of_an_image_of_a_few_pixels_is_one_of_it(height: int, width: int) -> None:
    geometry = build(PaddleCrop(kind="paddle", size=8))
    boxes = draw(geometry, 500, height, width)
    assert (boxes[:, 2:4] >= 1).all() and (boxes[:, :2] + boxes[:, 2:4] <= (height, width)).all()
    image = np.full((height, width, 3), 9, np.uint8)
    assert (geometry.apply(image, boxes[0]) == 9).all()
