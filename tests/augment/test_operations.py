"""torchvision's operations on batches: every one is torchvision's to the bit; the law of RandAugment's draws."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import InterpolationMode

from unlabeled.augment.operations import OPERATIONS, Interpolation, Operations, apply, draw_rand_augment, rand_augment
from unlabeled.ops.distributed import Share

NAMES = list(OPERATIONS)
# name -> magnitudes in torchvision's units, of which solarize's is a share of 255
MAGNITUDES = {
    "ShearX": [0.09, -0.3], "ShearY": [0.09, -0.3], "TranslateX": [4.7, -9.2], "TranslateY": [4.7, -9.2],
    "Rotate": [9.0, -30.0], "Brightness": [0.27, -0.9], "Color": [0.27, -0.9], "Contrast": [0.27, -0.9],
    "Sharpness": [0.27, -0.9], "Posterize": [7.0, 4.0], "Solarize": [0.7, 1 / 3],
}  # fmt: skip


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def images(natural) -> torch.Tensor:
    """Twelve images, the last ones of one colour and of noise."""
    made = torch.from_numpy(natural(12, 28, 36, seed=3)).permute(0, 3, 1, 2).contiguous()
    made[-1] = torch.randint(256, made[-1].shape, dtype=torch.uint8, generator=generator())
    made[-2] = 77
    return made


def by_torchvision(image: torch.Tensor, name: str, magnitude: float, interpolation: str, fill) -> torch.Tensor:
    policy = v2.RandAugment(interpolation=InterpolationMode(interpolation), fill=fill)
    return policy._apply_image_or_video_transform(
        image, name, magnitude, interpolation=policy.interpolation, fill=policy._fill
    )


def stated(name: str, magnitude: float) -> float:
    return 255 * magnitude if name == "Solarize" else magnitude


@pytest.mark.parametrize("fill", [None, (125, 123, 114)])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize("name", NAMES)
def test_an_operation_is_torchvisions(
    name: str, interpolation: Interpolation, fill: tuple[int, ...] | None, images: torch.Tensor
) -> None:
    """Two magnitudes, mixed over the batch and behind an operation that leaves the images alone."""
    choice = MAGNITUDES.get(name, [0.0, 0.0])
    magnitude = torch.tensor([choice[i % 2] for i in range(len(images))], dtype=torch.float64)
    before = images.clone()
    drawn = Operations(
        torch.tensor([[0, NAMES.index(name)]] * len(images)),
        torch.stack([torch.zeros_like(magnitude), magnitude * (255 if name == "Solarize" else 1)], 1),
    )
    changed = apply(images, drawn, interpolation, fill)
    expected = [
        by_torchvision(image, name, float(m), interpolation, fill) for image, m in zip(images, magnitude, strict=True)
    ]
    assert torch.equal(changed, torch.stack(expected))
    assert torch.equal(images, before) and changed.data_ptr() != images.data_ptr()
    assert name == "Identity" or not torch.equal(changed, images)


def test_samples_have_their_own_operations_in_their_own_order(images: torch.Tensor) -> None:
    drawn = draw_rand_augment(len(images), 3, 9, 28, generator(4))
    together = apply(images, drawn, "nearest")
    for i, image in enumerate(images):
        for number, magnitude in zip(drawn.operation[i].tolist(), drawn.magnitude[i].tolist(), strict=True):
            share = magnitude / 255 if NAMES[number] == "Solarize" else magnitude
            image = by_torchvision(image, NAMES[number], share, "nearest", None)
        assert torch.equal(together[i], image)
    swapped = Operations(drawn.operation.flip(1), drawn.magnitude.flip(1))
    assert not torch.equal(apply(images, swapped, "nearest"), together)


@pytest.mark.parametrize("bin_number", [0, 9, 10, 30])
@pytest.mark.parametrize("side", [32, 224])
def test_magnitudes_are_torchvisions(bin_number: int, side: int) -> None:
    space = v2.RandAugment._AUGMENTATION_SPACE
    assert list(space) == NAMES[:-1]
    count = len(space)
    which = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    for sign, factor in ((0.2, -1), (0.9, 1)):
        drawn = rand_augment(torch.stack([which, torch.full_like(which, sign)], 1), bin_number, side)
        assert drawn.operation[:, 0].tolist() == list(range(count))
        for (name, (of, signed)), found in zip(space.items(), drawn.magnitude[:, 0].tolist(), strict=True):
            values = of(31, side, side)
            expected = 0.0 if values is None else stated(name, float(values[bin_number]))
            assert found == (expected * factor if signed else expected), name


def test_the_law_of_the_draws() -> None:
    drawn = draw_rand_augment(20_000, 2, 9, 224, generator())
    counts = torch.bincount(drawn.operation.flatten(), minlength=14)
    assert len(counts) == 14 and ((counts / 40_000 - 1 / 14).abs() < 0.005).all()
    shears = drawn.magnitude[drawn.operation == NAMES.index("ShearX")]
    assert abs(float((shears > 0).double().mean()) - 0.5) < 0.04
    first, second = drawn.operation.unbind(1)
    assert abs(float((first == second).double().mean()) - 1 / 14) < 0.01, "with replacement"


def test_what_is_drawn_for_a_sample_depends_on_its_place_alone(images: torch.Tensor) -> None:
    whole = apply(images, draw_rand_augment(12, 2, 30, 28, generator(1)), "bilinear")
    parts = []
    for first, stop in pairwise((0, 6, 12)):
        share = Share(12, slice(first, stop))
        drawn = draw_rand_augment(share.total, 2, 30, 28, generator(1))
        parts.append(apply(images[first:stop], drawn.rows(share.mine), "bilinear"))
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(apply(images, draw_rand_augment(12, 2, 30, 28, generator(2)), "bilinear"), whole)
