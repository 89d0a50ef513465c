"""The whole chain: chunks, ranks, ranges, normalisation; and its views against torchvision's pipeline."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torchvision import transforms

from unlabeled.augment import geometry, photometric
from unlabeled.augment.photometric import Drawn, draw_blur, draw_chosen, draw_jitter, normalise, render, to_float
from unlabeled.config.augment import ResizedCrop
from unlabeled.ops.random import generator, uniforms

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


def statistics(views: torch.Tensor) -> dict[str, np.ndarray]:
    chroma = views.amax(1) - views.amin(1)
    gradient = views.diff(dim=2).abs().mean((1, 2, 3)) + views.diff(dim=3).abs().mean((1, 2, 3))
    values = {"mean": views.mean((1, 2, 3)), "std": views.std((1, 2, 3)), "chroma": chroma.mean((1, 2)),
              "gradient": gradient, "red": views[:, 0].mean((1, 2)), "clipped": (views >= 1).float().mean((1, 2, 3))}
    return {name: value.numpy() for name, value in values.items()}


def test_views_are_distributed_as_torchvisions(natural):
    """Two-sample Kolmogorov-Smirnov tests of 1,000 views each, every one of another image."""
    images = natural(1000, 40, 40, seed=4)
    torch.manual_seed(0)
    pipeline = transforms.Compose([
        transforms.RandomResizedCrop(32), transforms.RandomHorizontalFlip(),
        transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8), transforms.RandomGrayscale(0.2),
        transforms.ToTensor(),
    ])
    theirs = torch.stack([pipeline(Image.fromarray(image)) for image in images])
    crop = geometry.build(ResizedCrop(size=32, interpolation="bilinear"))
    boxes = crop.draw(uniforms(np.arange(1000), crop.draws, 5), np.full((1000, 2), 40))
    views = crop.apply_batch(torch.from_numpy(images).permute(0, 3, 1, 2), boxes)
    drawn = Drawn(draw_jitter(1000, 0.4, 0.4, 0.4, 0.1, 0.8, generator(6)), draw_chosen(1000, 0.2, generator(7)))
    ours = statistics(render(views, drawn))
    for name, values in statistics(theirs).items():
        assert stats.ks_2samp(ours[name], values).pvalue > 1e-3, name
