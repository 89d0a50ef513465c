"""Colour operations against torchvision and against HSV; the jitter's draw, order and grouping."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch
from torchvision.transforms import functional as tv

from unlabeled.augment import color
from unlabeled.augment.color import OPERATIONS, Chosen, Jitter, draw_chosen, draw_jitter, gray, jitter, solarize
from unlabeled.ops.random import generator

LEVEL = 1 / 255
FACTORS = {"brightness": [0.0, 0.4, 1.0, 1.8], "contrast": [0.0, 0.4, 1.0, 1.8], "saturation": [0.0, 0.4, 1.0, 1.8],
           "hue": [-0.5, -0.2, 0.0, 0.07, 0.2, 0.5]}


def make_images(natural, size: int) -> torch.Tensor:
    """Photograph-like images, and what is hard for hue: grays, pure colours, black, white, equal channels."""
    x = torch.from_numpy(natural(12, size, size, seed=1)).permute(0, 3, 1, 2) / 255
    x[0] = 0.5
    x[1] = torch.rand(3, size, size, generator=generator("pure")).round()
    x[2, 1] = x[2, 0]
    x[3, :, :8], x[3, :, 8:16] = 0, 1
    x[4] = (x[4] * 3).round() / 3
    return x


@pytest.fixture(scope="module")
def images(natural) -> torch.Tensor:
    return make_images(natural, 32)


@pytest.fixture(scope="module", params=[32, 224])
def sized(natural, request) -> torch.Tensor:
    """The images at both sizes that the chain treats differently."""
    return make_images(natural, request.param)


def column(x: torch.Tensor, value: float) -> torch.Tensor:
    return torch.full((len(x), 1, 1, 1), value, dtype=x.dtype)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_operation_equals_torchvision(sized, operation):
    for factor in FACTORS[operation]:
        ours = getattr(color, f"adjust_{operation}")(sized.clone(), column(sized, factor))
        theirs = getattr(tv, f"adjust_{operation}")(sized, factor)
        assert (ours - theirs).abs().max() < 0.01 * LEVEL, factor
        assert ours.min() >= 0 and ours.max() <= 1


@pytest.mark.parametrize("factor", FACTORS["saturation"])
def test_simclr_saturation_scales_the_s_of_hsv(images, factor):
    some = images[:, :, ::4, ::4].double()
    ours = color.adjust_saturation_hsv(some.clone(), column(some, factor))
    for before, after in zip(some.permute(0, 2, 3, 1).reshape(-1, 3).tolist(),
                             ours.permute(0, 2, 3, 1).reshape(-1, 3).tolist(), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*before)
        assert after == pytest.approx(colorsys.hsv_to_rgb(hue, min(saturation * factor, 1), value), abs=1e-12)


@pytest.mark.parametrize("shift", FACTORS["hue"])
def test_hue_turns_the_h_of_hsv(images, shift):
    some = images[:, :, ::4, ::4].double()
    ours = color.adjust_hue(some.clone(), column(some, shift))
    for before, after in zip(some.permute(0, 2, 3, 1).reshape(-1, 3).tolist(),
                             ours.permute(0, 2, 3, 1).reshape(-1, 3).tolist(), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*before)
        assert after == pytest.approx(colorsys.hsv_to_rgb((hue + shift) % 1, saturation, value), abs=1e-12)


def test_simclr_contrast_is_about_the_mean_of_each_channel(images):
    ours = color.adjust_contrast_per_channel(images.clone(), column(images, 0.6))
    mean = images.mean((2, 3), keepdim=True)
    torch.testing.assert_close(ours, ((images - mean) * 0.6 + mean).clamp(0, 1))


def test_gray_equals_torchvision(sized):
    chosen = Chosen(torch.arange(len(sized)) % 3 == 0)
    ours = gray(sized, chosen)
    assert (ours[chosen.active] - tv.rgb_to_grayscale(sized[chosen.active], 3)).abs().max() < 0.01 * LEVEL
    assert torch.equal(ours[~chosen.active], sized[~chosen.active])


@pytest.mark.parametrize("threshold", [0.5, 0.3, 128 / 255])
def test_solarize_equals_torchvision(sized, threshold):
    chosen = Chosen(torch.arange(len(sized)) % 2 == 0)
    ours = solarize(sized, chosen, threshold)
    assert torch.equal(ours[chosen.active], tv.solarize(sized[chosen.active], threshold))
    assert torch.equal(ours[~chosen.active], sized[~chosen.active])


@pytest.mark.parametrize("inplace", [False, True])
def test_jitter_applies_each_samples_operations_in_its_own_order(sized, inplace):
    params = draw_jitter(len(sized), 0.8, 0.8, 0.8, 0.2, 0.7, generator(0))
    before = sized.clone()
    ours = jitter(sized.clone() if inplace else sized, params, inplace=inplace)
    assert torch.equal(sized, before)
    for i, x in enumerate(sized):
        if params.active[i]:
            for index in params.order[i].tolist():
                name = OPERATIONS[index]
                x = getattr(tv, f"adjust_{name}")(x, getattr(params, name)[i].item())
        assert (ours[i] - x).abs().max() < 0.01 * LEVEL


def test_jitter_draws_the_stated_laws():
    n = 6000
    params = draw_jitter(n, 0.8, 1.5, 0.4, 0.2, 0.8, generator(1))
    assert params.active.double().mean().item() == pytest.approx(0.8, abs=0.02)
    for values, low, high in [(params.brightness, 0.2, 1.8), (params.contrast, 0, 2.5), (params.saturation, 0.6, 1.4),
                              (params.hue, -0.2, 0.2)]:
        assert low <= values.min() and values.max() <= high
        assert values.mean().item() == pytest.approx((low + high) / 2, abs=0.02 * (high - low))
    drawn = [params.active.double(), params.brightness, params.contrast, params.saturation, params.hue]
    assert (torch.corrcoef(torch.stack(drawn)) - torch.eye(5)).abs().max() < 0.06, "each drawn by itself"
    orders, counts = np.unique(params.order.numpy(), axis=0, return_counts=True)
    assert len(orders) == 24 and (np.sort(orders, 1) == np.arange(4)).all()
    assert ((counts - n / 24) ** 2 / (n / 24)).sum() < 50  # chi-square with 23 degrees of freedom, p = 0.001


def test_same_generator_same_draw():
    first, second = (draw_jitter(5, 0.4, 0.4, 0.4, 0.1, 0.8, generator(3)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(draw_chosen(9, 0.5, generator(3)).active, draw_chosen(9, 0.5, generator(3)).active)
    assert not draw_chosen(99, 0.0, generator(3)).active.any() and draw_chosen(99, 1.0, generator(3)).active.all()


@pytest.mark.parametrize("convention", ["torchvision", "simclr"])
def test_strength_zero_is_the_identity(images, convention):
    params = draw_jitter(len(images), 0, 0, 0, 0, 1.0, generator(4))
    assert torch.equal(jitter(images, params, convention), images)
    nobody = params._replace(active=torch.zeros(len(images), dtype=torch.bool))
    assert torch.equal(jitter(images, nobody, convention), images)


@pytest.mark.parametrize("convention", ["torchvision", "simclr"])
def test_a_row_alone_equals_its_row_in_the_batch(images, convention):
    """To 1e-6, not bitwise: sums and fused multiply-adds may be rounded otherwise at other places in memory."""
    params = draw_jitter(len(images), 0.8, 0.8, 0.8, 0.2, 0.8, generator(5))
    together = jitter(images, params, convention)
    for start, stop in [(0, 1), (3, 4), (2, 9), (11, 12)]:
        part = slice(start, stop)
        assert (jitter(images[part], params.rows(part), convention) - together[part]).abs().max() <= 1e-6


def test_float64_stays_float64(images):
    params = draw_jitter(len(images), 0.8, 0.8, 0.8, 0.2, 1.0, generator(6))
    exact = jitter(images.double(), params)
    assert exact.dtype == torch.float64
    assert (jitter(images, params) - exact).abs().max() < 1e-5


def test_all_samples_may_have_the_same_order():
    x = torch.rand(4, 3, 8, 8, generator=generator(7))
    order = torch.tensor([[2, 0, 3, 1]]).expand(4, 4)
    same = Jitter(torch.ones(4, dtype=torch.bool), order, *torch.full((3, 4), 1.3).double(),
                  torch.full((4,), 0.1).double())
    together = jitter(x, same)
    for i in range(4):
        assert (together[i] - jitter(x[i : i + 1], same.rows(slice(i, i + 1)))[0]).abs().max() <= 1e-6
