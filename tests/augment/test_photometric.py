"""The whole chain: chunks, ranks, ranges, normalisation; and all steps against torchvision's."""

from __future__ import annotations

import pytest
import torch
from torchvision import transforms
from torchvision.transforms import functional as tv

from unlabeled.augment import photometric
from unlabeled.augment.color import OPERATIONS
from unlabeled.augment.photometric import Drawn, draw_blur, draw_chosen, draw_jitter, normalise, render, to_float
from unlabeled.ops.random import generator

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def drawn_for(n: int, seed: int, strength: float = 0.5) -> Drawn:
    make = generator(seed)
    return Drawn(draw_jitter(n, 0.8 * strength, 0.8 * strength, 0.8 * strength, 0.2 * strength, 0.8, make),
                 draw_chosen(n, 0.2, make), draw_blur(n, 0.5, (0.1, 2.0), make), draw_chosen(n, 0.3, make))


@pytest.fixture(scope="module")
def crops(natural) -> torch.Tensor:
    return torch.from_numpy(natural(24, 32, 32, seed=1)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("convention", ["torchvision", "simclr"])
def test_views_stay_in_range_and_crops_as_they_were(crops, convention):
    before = crops.clone()
    views = render(crops, drawn_for(24, 0, strength=1.0), convention)
    assert views.dtype == torch.float32 and views.is_contiguous()
    assert views.min() >= 0 and views.max() <= 1
    assert (views - to_float(crops)).abs().max() > 0.1
    assert torch.equal(crops, before)
    floats = to_float(crops)
    held = floats.clone()
    assert (render(floats, drawn_for(24, 0, strength=1.0), convention) - views).abs().max() <= 1e-6
    assert torch.equal(floats, held)


@pytest.mark.parametrize("convention", ["torchvision", "simclr"])
def test_rows_of_ranks_are_the_rows_of_all(crops, convention):
    """To 1e-6: see the test of the jitter."""
    drawn = drawn_for(24, 1)
    together = render(crops, drawn, convention)
    for world in (2, 3, 8):
        part = 24 // world
        ranks = [slice(r * part, (r + 1) * part) for r in range(world)]
        apart = torch.cat([render(crops[mine], drawn.rows(mine), convention) for mine in ranks])
        assert (apart - together).abs().max() <= 1e-6


def test_chunks_make_no_difference(crops, monkeypatch):
    whole = render(crops, drawn_for(24, 2), mean=MEAN, std=STD)
    for step in (1, 5):
        monkeypatch.setattr(photometric, "_step", lambda values, step=step: step)
        assert (render(crops, drawn_for(24, 2), mean=MEAN, std=STD) - whole).abs().max() <= 1e-5


def test_chunk_sizes():
    assert photometric._step(3 * 224 * 224) == 1
    assert photometric._step(3 * 32 * 32) == 256
    assert 16 <= photometric._step(3 * 96 * 96) <= 64


def test_nothing_drawn_is_the_image(crops):
    assert torch.equal(render(crops, Drawn()), crops / 255)
    assert torch.equal(render(crops, Drawn(), mean=MEAN, std=STD), normalise(crops / 255, MEAN, STD))


def test_normalise_equals_torchvision(crops):
    x = crops / 255
    torch.testing.assert_close(normalise(x, MEAN, STD), transforms.Normalize(MEAN, STD)(x))


def test_other_types_are_refused(crops):
    assert render(crops.double() / 255, drawn_for(24, 3)).dtype == torch.float64
    with pytest.raises(TypeError, match="uint8, float32 or float64"):
        to_float(crops.half())


@pytest.mark.parametrize(("size", "taps"), [(32, 3), (32, 9), (224, 23)])
def test_chain_equals_torchvisions_functions(natural, size, taps):
    """Batched at 32 pixels, view by view at 224: the same parameters give the same view within 0.01 grey levels."""
    n = 12
    crops, drawn = torch.from_numpy(natural(n, size, size, seed=5)).permute(0, 3, 1, 2), drawn_for(n, 4, strength=1.0)
    assert all(0 < step.active.sum() < n for step in drawn)
    ours = render(crops, drawn, taps=taps, mean=MEAN, std=STD)
    for i, view in enumerate(ours):
        x = crops[i] / 255
        if drawn.jitter.active[i]:
            for index in drawn.jitter.order[i].tolist():
                name = OPERATIONS[index]
                x = getattr(tv, f"adjust_{name}")(x, getattr(drawn.jitter, name)[i].item())
        if drawn.gray.active[i]:
            x = tv.rgb_to_grayscale(x, 3)
        if drawn.blur.active[i]:
            x = tv.gaussian_blur(x, [taps, taps], [drawn.blur.sigma[i].item()] * 2)
        inverted = tv.solarize(x, 0.5) if drawn.solarize.active[i] else x
        # a value at the threshold may fall on either side of it
        close = drawn.solarize.active[i] & ((x - 0.5).abs() < 1e-5)
        error = (view - tv.normalize(inverted, MEAN, STD)).abs() * torch.tensor(STD)[:, None, None]
        assert error[~close].max() < 0.01 / 255
        assert close.float().mean() < 0.01


def test_a_blur_of_simclr_sees_black_outside_and_torchvisions_the_mirror_image():
    white = torch.full((1, 3, 32, 32), 255, dtype=torch.uint8)
    drawn = Drawn(blur=draw_blur(1, 1.0, (1.5, 1.5), generator(0, "x")))
    dark, bright = (render(white, drawn, convention) for convention in ("simclr", "torchvision"))
    assert float(dark[..., 0, 0].max()) < 0.9 and float(dark[..., 16, 16].min()) == pytest.approx(1)
    assert float(bright.min()) == pytest.approx(1)
