"""Blur against torchvision's functional, in both paddings and on both paths."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torchvision.transforms import functional as tv

from unlabeled.augment.blur import Blur, blur, default_taps, draw_blur
from unlabeled.ops.random import generator

SIGMAS = [0.1, 0.7, 1.3, 2.0]


def everyone(sigmas: list[float]) -> Blur:
    return Blur(torch.ones(len(sigmas), dtype=torch.bool), torch.tensor(sigmas, dtype=torch.float64))


def reference(x: torch.Tensor, sigmas: list[float], taps: int, padding: str) -> torch.Tensor:
    if padding == "zeros":
        wide = F.pad(x, [taps] * 4)
        return reference(wide, sigmas, taps, "reflect")[..., taps:-taps, taps:-taps]
    return torch.stack([tv.gaussian_blur(image, [taps, taps], [s, s]) for image, s in zip(x, sigmas, strict=True)])


@pytest.mark.parametrize("padding", ["reflect", "zeros"])
@pytest.mark.parametrize(("height", "width", "taps"), [
    (32, 32, 3), (32, 40, 9), (20, 24, 23), (17, 17, 33), (96, 96, 9), (70, 100, 23), (128, 128, 23),
])
def test_equals_torchvision(height, width, taps, padding):
    x = torch.rand(4, 3, height, width, dtype=torch.float64, generator=generator(0))
    expected = reference(x, SIGMAS, taps, padding)
    assert (blur(x.float(), everyone(SIGMAS), taps=taps, padding=padding) - expected).abs().max() < 2e-6
    exact = blur(x, everyone(SIGMAS), taps=taps, padding=padding)
    assert exact.dtype == torch.float64
    assert (exact - expected).abs().max() < (1e-12 if width <= 64 else 2e-6)  # large images drop taps below 1e-6


@pytest.mark.parametrize("size", [32, 96])
def test_only_the_chosen_are_blurred_and_each_as_if_alone(size):
    """To 1e-6: the batched product may sum in another order."""
    x = torch.rand(6, 3, size, size, generator=generator(1))
    params = Blur(torch.tensor([True, False, True, True, False, False]), torch.linspace(0.1, 2, 6).double())
    before = x.clone()
    out = blur(x, params, taps=9)
    assert torch.equal(x, before)
    assert torch.equal(out[~params.active], x[~params.active])
    for i in range(6):
        assert (blur(x[i : i + 1], params.rows(slice(i, i + 1)), taps=9)[0] - out[i]).abs().max() <= 1e-6


def test_draw():
    params = draw_blur(4000, 0.5, (0.1, 2.0), generator(2))
    assert params.active.double().mean().item() == pytest.approx(0.5, abs=0.03)
    assert params.sigma.mean().item() == pytest.approx(1.05, abs=0.03)
    assert params.sigma.min() >= 0.1 and params.sigma.max() <= 2
    shared = draw_blur(50, 0.5, (0.1, 2.0), generator(2), one_sigma=True)
    assert shared.sigma.unique().numel() == 1 and 0 < shared.active.sum() < 50


def test_taps():
    assert [default_taps(size) for size in (224, 96, 32, 20, 19)] == [23, 9, 3, 3, 1]
    x = torch.rand(1, 3, 16, 16)
    assert blur(x, everyone([2.0])) is x  # one tap
    with pytest.raises(ValueError, match="odd number of taps"):
        blur(x, everyone([2.0]), taps=8)
    with pytest.raises(ValueError, match="odd number of taps"):
        blur(x, everyone([2.0]), taps=33)


def test_an_image_of_one_value_keeps_it():
    x = torch.full((2, 3, 80, 80), 0.7)
    torch.testing.assert_close(blur(x, everyone([0.5, 2.0]), taps=23), x)
