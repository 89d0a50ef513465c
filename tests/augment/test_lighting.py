"""PCA lighting: a shift per channel along the axes of ImageNet's colours, and CutMix's box and mixing."""

from __future__ import annotations

import pytest
import torch

from unlabeled.augment.lighting import draw_lighting, light
from unlabeled.augment.regularise import Cut, cut_around, draw_cut, paste
from unlabeled.ops.random import generator

# arXiv 2101.05022's code: eigenvectors row by row, and eigenvalues
VECTORS = torch.tensor([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
VALUES = torch.tensor([0.2175, 0.0188, 0.0045])


def test_shifts_have_the_covariance_of_the_axes() -> None:
    shifts = draw_lighting(200_000, 0.1, generator(0))
    expected = 0.01 * VECTORS * VALUES.square() @ VECTORS.T
    torch.testing.assert_close(torch.cov(shifts.T), expected, rtol=0.03, atol=1e-7)
    assert shifts.mean(0).abs().max() < 3e-4


def test_every_image_gets_its_own_shift_and_nothing_is_clipped() -> None:
    images = torch.rand(3, 3, 4, 5)
    shifts = torch.tensor([[0.0, 0.0, 0.0], [2.0, -3.0, 0.5], [0.1, 0.2, 0.3]])
    before = images.clone()
    found = light(images, shifts)
    torch.testing.assert_close(found - before, shifts[:, :, None, None].expand(images.shape), atol=1e-6, rtol=0)
    assert torch.equal(images, before)
    assert light(images.double(), shifts).dtype == torch.float64


def test_draws_are_a_function_of_the_generator() -> None:
    assert torch.equal(draw_lighting(4, 0.1, generator(1)), draw_lighting(4, 0.1, generator(1)))
    assert draw_cut(32, 48, 1.0, generator(1)) == draw_cut(32, 48, 1.0, generator(1))
    assert draw_cut(32, 48, 1.0, generator(1)) != draw_cut(32, 48, 1.0, generator(2))


@pytest.mark.parametrize(("centre", "share", "box"), [
    ((8, 10), 0.75, Cut(4, 5, 12, 15)),  # half of each side
    ((0, 19), 0.75, Cut(0, 14, 4, 20)),  # clipped at two edges
    ((8, 10), 1.0, Cut(8, 10, 8, 10)),  # nothing
    ((8, 10), 0.0, Cut(0, 0, 16, 20)),  # everything
    ((5, 5), 0.5, Cut(0, 0, 10, 12)),  # 11.3 and 14.1 pixels, of which the halves are 5 and 7
])  # fmt: skip
def test_boxes_are_clipped_and_rounded_down(centre: tuple[int, int], share: float, box: Cut) -> None:
    assert cut_around(centre, share, 16, 20) == box


def test_targets_are_mixed_by_the_pixels_that_are_left() -> None:
    images = torch.arange(4.0)[:, None, None, None].expand(4, 3, 16, 20).contiguous()
    partners = torch.tensor([1, 0, 3, 2])
    for seed in range(20):
        mixed, target = paste(images, torch.eye(4), partners, draw_cut(16, 20, 1.0, generator(seed)))
        for row in range(4):
            own = float((mixed[row, 0] == row).double().mean())
            assert target[row, row].item() == pytest.approx(own, abs=1e-6)
            assert target[row, partners[row]].item() == pytest.approx(1 - own, abs=1e-6)
    assert torch.equal(images[:, 0, 0, 0], torch.arange(4.0))  # the originals stay


def test_the_share_that_stays_follows_the_law() -> None:
    """Evenly for beta 1, but for the clipping, which makes boxes smaller: by the mean of uncut boxes."""
    cuts = [draw_cut(1000, 1000, 1.0, generator(seed)) for seed in range(2000)]
    inside = [c.left_over(1000, 1000) for c in cuts if min(c.top, c.left) > 0 and max(c.bottom, c.right) < 1000]
    # P(not clipped | r = 1 - share) is (1 - sqrt(r))^2: the mean of r is 1/30 over 1/6
    assert sum(1 - s for s in inside) / len(inside) == pytest.approx(0.2, abs=0.02)
    assert 0.1 < len(inside) / len(cuts) < 0.23
