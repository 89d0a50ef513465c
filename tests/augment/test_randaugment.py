"""RandAugment: every operation against PIL's, value by value; the law of the draws."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from unlabeled.augment.randaugment import GRAY, OPERATIONS, RandAugment, apply, draw


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def enhanced(kind: type) -> Callable[[Image.Image, float], Image.Image]:
    return lambda image, amount: kind(image).enhance(0.05 + 0.9 * amount)


def warped(matrix: Callable[[float, Image.Image], tuple[float, ...]]) -> Callable[[Image.Image, float], Image.Image]:
    return lambda image, amount: image.transform(
        image.size, Image.Transform.AFFINE, matrix(0.6 * amount - 0.3, image)
    )


PIL = {
    "autocontrast": lambda image, _: ImageOps.autocontrast(image),
    "brightness": enhanced(ImageEnhance.Brightness),
    "color": enhanced(ImageEnhance.Color),
    "contrast": enhanced(ImageEnhance.Contrast),
    "equalize": lambda image, _: ImageOps.equalize(image),
    "identity": lambda image, _: image,
    "posterize": lambda image, amount: ImageOps.posterize(image, int(4 + 4 * amount)),
    "rotate": lambda image, amount: image.rotate(60 * amount - 30),
    "sharpness": enhanced(ImageEnhance.Sharpness),
    "shear_x": warped(lambda s, _: (1, s, 0, 0, 1, 0)),
    "shear_y": warped(lambda s, _: (1, 0, 0, s, 1, 0)),
    "solarize": lambda image, amount: ImageOps.solarize(image, 256 * amount),
    "translate_x": warped(lambda s, image: (1, 0, s * image.width, 0, 1, 0)),
    "translate_y": warped(lambda s, image: (1, 0, 0, 0, 1, s * image.height)),
}


@pytest.fixture
def images(natural) -> torch.Tensor:
    """Thirty images, the last ones of one colour, of two, and black and white."""
    made = torch.from_numpy(natural(30, 28, 36, seed=3)).permute(0, 3, 1, 2).contiguous()
    made[-3], made[-2], made[-1] = 90, made[-2] // 128 * 40, (made[-1] > 100) * 255
    return made


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_are_those_of_pil(name: str, images: torch.Tensor) -> None:
    amounts = torch.rand(len(images), dtype=torch.float64, generator=generator())
    amounts[0] = 0
    found = OPERATIONS[name](images.clone(), amounts)
    assert found.dtype == torch.uint8
    for image, amount, ours in zip(images, amounts.tolist(), found, strict=True):
        theirs = np.array(PIL[name](Image.fromarray(image.permute(1, 2, 0).numpy()), amount))
        assert np.array_equal(ours.permute(1, 2, 0).numpy(), theirs)


def test_all_fourteen_are_there() -> None:
    assert set(OPERATIONS) == set(PIL) and len(OPERATIONS) == 14


def test_operations_follow_their_order(images: torch.Tensor) -> None:
    names = list(OPERATIONS)
    n, order = len(images), ["solarize", "rotate", "color"]
    which = torch.tensor([[names.index(name) for name in order]]).expand(n, -1)
    amounts = torch.rand(n, 3, dtype=torch.float64, generator=generator())
    expected = images
    for name, amount in zip(order, amounts.unbind(1), strict=True):
        expected = OPERATIONS[name](expected.clone(), amount)
    none = torch.zeros(n, 3, dtype=torch.float64)
    before = images.clone()
    assert torch.equal(apply(images, RandAugment(which, amounts, none)), expected)
    assert torch.equal(images, before)


def test_an_image_does_not_depend_on_its_neighbours(images: torch.Tensor) -> None:
    drawn = draw(len(images), 3, 0.5, generator())
    whole, part = apply(images, drawn), slice(7, 19)
    assert torch.equal(apply(images[part], drawn.rows(part)), whole[part])
    assert not torch.equal(whole, images)


def test_the_law_of_the_draws() -> None:
    drawn = draw(30_000, 3, 0.5, generator())
    assert drawn.operation.shape == (30_000, 3)
    shares = torch.bincount(drawn.operation.flatten(), minlength=14) / 90_000
    assert (shares - 1 / 14).abs().max() < 0.005
    assert abs(float(drawn.amount.mean()) - 0.5) < 0.01 and drawn.amount.min() >= 0 and drawn.amount.max() < 1
    side, row, column = drawn.square.unbind(1)
    assert abs(float(side.mean()) - 0.25) < 0.01 and side.max() < 0.5
    assert all(abs(float(place.mean()) - 0.5) < 0.01 for place in (row, column))


def test_the_square_is_gray_and_where_it_was_drawn() -> None:
    x = torch.zeros(2, 3, 20, 20, dtype=torch.uint8)
    square = torch.tensor([[0.2, 0.5, 0.25], [0.5, 0.0, 1.0]], dtype=torch.float64)
    which = torch.full((2, 1), list(OPERATIONS).index("identity"))
    found = apply(x, RandAugment(which, torch.zeros(2, 1, dtype=torch.float64), square))
    covered = (found == torch.tensor(GRAY, dtype=torch.uint8).view(3, 1, 1)).all(1)
    assert torch.equal(found.any(1), covered)
    assert [m.nonzero().aminmax(dim=0).min.tolist() for m in covered] == [[8, 3], [0, 15]]
    assert covered.sum((1, 2)).tolist() == [4 * 4, 5 * 5]
