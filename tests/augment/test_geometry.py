"""Crops: the law of the draw, what is recorded, and the pixels against torchvision."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as tv
from torchvision.transforms.v2 import functional as tv2

from unlabeled.augment.geometry import EvalCrop, build, central_boxes
from unlabeled.augment.resample import resample, resize_weights
from unlabeled.config.augment import ResizedCrop
from unlabeled.ops.random import uniforms

MODES = ["bilinear", "bicubic"]


def boxes_for(geometry, sizes: np.ndarray, seed: int = 0) -> np.ndarray:
    return geometry.draw(uniforms(np.arange(len(sizes)), geometry.draws, seed, "test"), sizes)


def reference(image: np.ndarray, box: np.ndarray, size: int, mode: str) -> torch.Tensor:
    """Torchvision's view in float64, from 0 to 255 and not rounded."""
    top, left, height, width = (int(v) for v in box[:4])
    x = torch.from_numpy(image).permute(2, 0, 1).double()
    view = tv.resized_crop(x, top, left, height, width, [size, size], InterpolationMode(mode), antialias=True)
    return tv.hflip(view) if box[6] else view


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(32, 32), (28, 40), (96, 96)])
def test_batch_equals_torchvision(natural, mode, shape):
    geometry = build(ResizedCrop(size=32, interpolation=mode))
    images = natural(40, *shape, seed=1)
    boxes = boxes_for(geometry, np.full((40, 2), shape))
    batch, box = torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(boxes).float()
    rows = resize_weights(box[:, 0], box[:, 2], 32, shape[0], mode)
    columns = resize_weights(box[:, 1], box[:, 3], 32, shape[1], mode, mirror=box[:, 6])
    exact = torch.stack([reference(*pair, 32, mode) for pair in zip(images, boxes, strict=True)])
    assert (resample(batch, rows, columns).permute(0, 2, 1, 3) - exact).abs().max() < 0.001
    views = geometry.apply_batch(batch, boxes)
    assert views.dtype == torch.uint8
    assert (views - exact.clamp(0, 255)).abs().max() < 0.501


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [32, 224])
def test_single_image_equals_torchvision(natural, mode, size):
    geometry = build(ResizedCrop(size=size, interpolation=mode))
    image = natural(1, 150, 211, seed=2)[0]
    for box in boxes_for(geometry, np.full((12, 2), (150, 211))):
        view = geometry.apply(image, box)
        assert view.shape == (3, size, size) and view.dtype == np.uint8 and view.flags.c_contiguous
        top, left, height, width = (int(v) for v in box[:4])
        where = top, left, height, width, [size, size], InterpolationMode(mode)
        tensor = tv2.resized_crop(torch.from_numpy(image).permute(2, 0, 1), *where, antialias=True)
        picture = np.asarray(tv2.resized_crop(Image.fromarray(image), *where)).transpose(2, 0, 1)
        view = view[:, :, ::-1].astype(int) if box[6] else view.astype(int)
        if mode == "bilinear":  # bicubic, torchvision turns tensors into floats, which has no clipping in between
            assert abs(view - tensor.numpy()).max() <= 1
        assert abs(view - picture).max() <= (1 if mode == "bilinear" else 2)
        assert (abs(view - picture) > 1).mean() < 1e-4


def test_single_image_equals_batch(natural):
    """Bilinear; the bicubic kernel for one image also clips its overshoot between the two passes, as PIL."""
    geometry = build(ResizedCrop(size=32, interpolation="bilinear"))
    images = natural(30, 48, 40, seed=3)
    boxes = boxes_for(geometry, np.full((30, 2), (48, 40)))
    batch = geometry.apply_batch(torch.from_numpy(images).permute(0, 3, 1, 2), boxes).numpy().astype(int)
    single = np.stack([geometry.apply(image, box) for image, box in zip(images, boxes, strict=True)])
    assert abs(batch - single).max() <= 1


def test_recorded_box_is_the_crop_taken():
    """Red holds the row, green the column; a crop's corners, middle and direction then tell its box."""
    height, width = 120, 200
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0], image[..., 1] = np.arange(height)[:, None], np.arange(width)
    geometry = build(ResizedCrop(size=40, interpolation="bilinear", area=(0.2, 1.0)))
    boxes = boxes_for(geometry, np.full((60, 2), (height, width)))
    batch = geometry.apply_batch(torch.from_numpy(image).permute(2, 0, 1)[None].expand(60, -1, -1, -1), boxes)
    assert 10 < boxes[:, 6].sum() < 50
    for box, view in zip(boxes, batch.numpy(), strict=True):
        top, left, tall, wide, *sizes, flip = box
        assert sizes == [height, width]
        assert top >= 0 and left >= 0 and top + tall <= height and left + wide <= width
        for made in (view.astype(float), geometry.apply(image, box).astype(float)):
            made = made[:, :, ::-1] if flip else made
            place = np.arange(5, 35) + 0.5  # away from the edges, where the triangle is cut off
            rows, columns = top + place * tall / 40 - 0.5, left + place * wide / 40 - 0.5
            assert abs(made[0, 5:35, 20] - rows).max() <= 1
            assert abs(made[1, 20, 5:35] - columns).max() <= 1


def test_law_is_torchvisions():
    sizes = np.array([[375, 500], [500, 333], [64, 300]])
    geometry = build(ResizedCrop(size=32))
    torch.manual_seed(0)
    for shape in sizes:
        ours = boxes_for(geometry, np.tile(shape, (1500, 1)))
        image = torch.zeros(3, *shape)
        theirs = np.array([RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(1500)])
        for name, a, b in zip(["top", "left", "height", "width"], ours.T, theirs.T, strict=False):
            assert stats.ks_2samp(a, b).pvalue > 1e-3, (tuple(shape), name)
        assert stats.binomtest(int(ours[:, 6].sum()), 1500, 0.5).pvalue > 1e-3


@pytest.mark.parametrize(("shape", "box"), [((10, 100), (0, 43, 10, 13)), ((100, 10), (43, 0, 13, 10))])
def test_fallback_is_the_largest_central_crop(shape, box):
    """In a strip no large candidate fits."""
    geometry = build(ResizedCrop(size=8, area=(0.9, 1.0)))
    drawn = boxes_for(geometry, np.array([shape]))
    np.testing.assert_array_equal(drawn[0, :6], [*box, *shape])


def test_first_fitting_candidate_is_taken():
    """By hand, one sample after the other: the loop of torchvision on the same numbers."""
    geometry = build(ResizedCrop(size=8))
    numbers = uniforms(np.arange(300), geometry.draws, 0)
    drawn = geometry.draw(numbers, np.tile([60, 90], (300, 1)))
    for row, box in zip(numbers, drawn, strict=True):
        for k in range(10):
            area, ratio = 5400 * (0.08 + 0.92 * row[k]), math.exp(math.log(3 / 4) + math.log(16 / 9) * row[10 + k])
            width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < width <= 90 and 0 < height <= 60:
                break
        top, left = math.floor(row[20] * (61 - height)), math.floor(row[21] * (91 - width))
        assert box.tolist() == [top, left, height, width, 60, 90, float(row[22] < 0.5)]


def test_a_sample_depends_on_its_position_alone(natural):
    """Bitwise: the numbers are hashed from the position, and every image is its own matrix product."""
    geometry = build(ResizedCrop(size=32))
    images = torch.from_numpy(natural(64, 32, 32, seed=4)).permute(0, 3, 1, 2)
    positions = np.arange(100, 164)
    sizes = np.full((64, 2), 32)
    boxes = geometry.draw(uniforms(positions, geometry.draws, 1), sizes)
    views = geometry.apply_batch(images, boxes)
    for part in (slice(0, 1), slice(5, 6), slice(16, 32), slice(3, 40)):
        some = geometry.draw(uniforms(positions[part], geometry.draws, 1), sizes[part])
        np.testing.assert_array_equal(some, boxes[part])
        assert torch.equal(geometry.apply_batch(images[part], some), views[part])


def test_whole_image_at_its_size_is_untouched(natural):
    images = natural(4, 32, 32, seed=5)
    geometry = build(ResizedCrop(size=32, area=(1.0, 1.0), aspect=(1.0, 1.0), flip=0.0))
    boxes = boxes_for(geometry, np.full((4, 2), 32))
    expected = images.transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(geometry.apply_batch(torch.from_numpy(expected), boxes).numpy(), expected)
    np.testing.assert_array_equal(geometry.apply(images[0], boxes[0]), expected[0])


def test_flip_mirrors(natural):
    images = torch.from_numpy(natural(4, 30, 30, seed=6)).permute(0, 3, 1, 2)
    geometry = build(ResizedCrop(size=20))
    boxes = boxes_for(geometry, np.full((4, 2), 30))
    left, right = boxes.copy(), boxes.copy()
    left[:, 6], right[:, 6] = 0, 1
    assert torch.equal(geometry.apply_batch(images, left).flip(-1), geometry.apply_batch(images, right))


@pytest.mark.parametrize(("size", "shape", "box"), [
    (224, (375, 500), (24, 86, 328, 328)),
    (224, (224, 224), (0, 0, 224, 224)),
    (32, (32, 32), (0, 0, 32, 32)),
    (32, (8, 8), (0, 0, 8, 8)),
    (32, (48, 64), (0, 8, 48, 48)),
    (96, (96, 96), (0, 0, 96, 96)),
])
def test_eval_crop(natural, size, shape, box):
    geometry = EvalCrop(size, interpolation="bilinear")
    drawn = geometry.draw(np.zeros((1, 0)), np.array([shape]))
    assert drawn[0].tolist() == [*box, *shape, 0]
    image = natural(1, *shape, seed=7)[0]
    single = geometry.apply(image, drawn[0])
    batch = geometry.apply_batch(torch.from_numpy(image).permute(2, 0, 1)[None], drawn)[0].numpy()
    assert single.shape == (3, size, size)
    assert abs(single.astype(int) - batch).max() <= 1
    if shape == (size, size):
        np.testing.assert_array_equal(single, image.transpose(2, 0, 1))


def test_central_boxes_stay_inside():
    sizes = np.array([[h, w] for h in range(1, 40, 3) for w in range(1, 40, 2)])
    boxes = central_boxes(sizes, 0.875)
    assert (boxes[:, 2:4] >= 1).all() and (boxes[:, :2] >= 0).all()
    assert (boxes[:, :2] + boxes[:, 2:4] <= sizes).all()


def test_weights_are_an_average_of_the_box():
    start, length = torch.tensor([0.0, 3.0, 5.0]), torch.tensor([9.0, 4.0, 1.0])
    for mode in MODES:
        weights = resize_weights(start, length, 6, 9, mode)
        torch.testing.assert_close(weights.sum(2), torch.ones(3, 6))
        assert weights[1, :, :3].eq(0).all() and weights[1, :, 7:].eq(0).all()
        assert weights[2, :, 5].eq(1).all()
