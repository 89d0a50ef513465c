"""Warps of whole images against torchvision, and their limits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv

from unlabeled.augment import affine
from unlabeled.augment.geometry import build
from unlabeled.config.augment import AffineCrop
from unlabeled.ops.random import uniforms


@pytest.mark.parametrize("shape", [(32, 32), (24, 36)])
def test_equals_torchvision(natural, shape):
    """Angle, shift, scale and shear as in torchvision's affine; only the outermost half pixel is treated otherwise."""
    height, width = shape
    image = natural(1, height, width, seed=1)[0]
    rng = np.random.default_rng(0)
    for _ in range(20):
        angle, shear = rng.uniform(-40, 40), rng.uniform(-20, 20)
        scale, shift = rng.uniform(0.7, 1.4), rng.uniform(-0.2, 0.2, 2)
        maps = affine.inverse_maps(np.array([shape]), angle=np.deg2rad([angle]), shift=shift[None],
                                   scale=np.array([scale]), shear=np.deg2rad([shear]))
        x = torch.from_numpy(image).permute(2, 0, 1)[None].double()
        theta = torch.from_numpy(maps).view(-1, 2, 3)
        grid = torch.nn.functional.affine_grid(theta, [1, 3, height, width], align_corners=False)
        ours = torch.nn.functional.grid_sample(x, grid, align_corners=False)[0]
        theirs = tv.affine(x[0], angle, [shift[0] * width, shift[1] * height], scale, [shear, 0.0],
                           InterpolationMode.BILINEAR)
        assert (ours - theirs).abs().max() < 0.01
        if height == width:
            inner = (grid.abs().amax(3) < 1 - 1 / 32)[0]
            warped = affine.warp(torch.from_numpy(image).permute(2, 0, 1)[None], maps, 32)[0]
            assert ((warped - theirs).abs() * inner).max() <= 0.6


def test_strength_zero_is_the_image(natural):
    images = torch.from_numpy(natural(5, 28, 28, seed=2)).permute(0, 3, 1, 2)
    geometry = build(AffineCrop(kind="affine", size=28))
    maps = geometry.draw(uniforms(np.arange(5), geometry.draws, 0), np.full((5, 2), 28))
    assert torch.equal(geometry.apply_batch(images, maps), images)


def test_strength_zero_is_a_plain_resize_without_dark_edges():
    images = torch.full((2, 3, 8, 8), 200, dtype=torch.uint8)
    geometry = build(AffineCrop(kind="affine", size=32))
    maps = geometry.draw(uniforms(np.arange(2), geometry.draws, 0), np.full((2, 2), 8))
    assert geometry.apply_batch(images, maps).eq(200).all()


def test_outside_is_black():
    images = torch.full((1, 3, 16, 16), 255, dtype=torch.uint8)
    maps = affine.inverse_maps(np.array([[16, 16]]), angle=np.zeros(1), shift=np.array([[0.25, 0.0]]),
                               scale=np.ones(1), shear=np.zeros(1))
    view = affine.warp(images, maps, 16)[0, 0]
    assert view[:, :4].eq(0).all() and view[:, 4:].eq(255).all()


def test_draw_stays_in_its_ranges_and_depends_on_the_position_alone(natural):
    cfg = AffineCrop(kind="affine", size=20, degrees=15, translate=0.1, scale=(0.8, 1.2), shear=10)
    geometry = build(cfg)
    assert not geometry.boxes
    sizes = np.full((400, 2), 20)
    maps = geometry.draw(uniforms(np.arange(400), geometry.draws, 0), sizes).reshape(-1, 2, 3)
    scale = np.linalg.det(maps[:, :, :2]) ** -0.5
    angle = np.rad2deg(-np.arctan2(maps[:, 1, 0], maps[:, 1, 1]))
    assert 0.8 <= scale.min() < 0.82 and 1.18 < scale.max() <= 1.2
    assert -15 <= angle.min() < -14 and 14 < angle.max() <= 15
    images = torch.from_numpy(natural(30, 20, 20, seed=3)).permute(0, 3, 1, 2)
    flat = maps[:30].reshape(30, 6)
    views = geometry.apply_batch(images, flat)
    for i in (0, 7, 29):
        assert torch.equal(geometry.apply_batch(images[i : i + 1], flat[i : i + 1])[0], views[i])
        np.testing.assert_array_equal(geometry.apply(images[i].permute(1, 2, 0).numpy(), flat[i]), views[i].numpy())


@pytest.mark.parametrize(("cls", "values", "message"), [
    ("ResizedCrop", {"area": (0.5, 1.2)}, "area is a range of shares"),
    ("ResizedCrop", {"area": (0.0, 1.0)}, "area is a range of shares"),
    ("ResizedCrop", {"area": (0.9, 0.5)}, "area is a range of shares"),
    ("ResizedCrop", {"aspect": (0.0, 1.0)}, "aspect is a range"),
    ("AffineCrop", {"kind": "affine", "size": 8, "scale": (1.2, 0.8)}, "scale is a range"),
    ("AffineCrop", {"kind": "affine", "size": 8, "shear": 90}, "less than 90"),
])
def test_impossible_options_are_refused(cls, values, message):
    from unlabeled.config import augment

    with pytest.raises(ValueError, match=message):
        getattr(augment, cls)(**values)


def test_shifts_go_as_far_to_both_sides() -> None:
    crop = build(AffineCrop(kind="affine", size=16, degrees=0.0, translate=0.2, scale=(1.0, 1.0), shear=0.0))
    low, middle, high = crop.draw(np.array([[x] * crop.draws for x in (0.0, 0.5, 1.0)]), np.full((3, 2), 16))[:, [2, 5]]
    assert np.allclose(low, -high) and np.allclose(middle, 0) and np.allclose(np.abs(high), 0.4)
