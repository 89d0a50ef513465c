"""Batches of samples at given places: what is drawn depends on seed, name, crop and place alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.evaluation.fakes import Noise

from unlabeled.augment.geometry import EvalCrop, RandomResizedCrop
from unlabeled.data.evaluation import ImageMaker
from unlabeled.data.loader import batches
from unlabeled.ops.random import uniforms

CROP = RandomResizedCrop(6, (0.2, 1.0), (0.75, 4 / 3), 0.5, "bilinear")
GEOMETRIES = [CROP, EvalCrop(8), CROP]


def make(places: list[int], seed: int = 0, name: str = "views", source: Noise | None = None):
    return ImageMaker(source or Noise(40), GEOMETRIES, seed, name).make(np.array(places, np.int64))


def test_every_crop_is_that_of_its_sample() -> None:
    source = Noise(40)
    batch = make([3, 39, 17])
    for number, geometry in enumerate(GEOMETRIES):
        for row, place in enumerate((3, 39, 17)):
            draw = uniforms(np.array([place]), geometry.draws, 0, "views", number)
            parameters = geometry.draw(draw, np.array([[8, 8]]))
            np.testing.assert_array_equal(batch.crops[number][row].numpy(),
                                          geometry.apply(source.pixels[place], parameters[0]))
            np.testing.assert_array_equal(batch.boxes[number][row].numpy(), parameters[0].astype(np.float32))
    assert batch.index.tolist() == [3, 39, 17] and batch.label.tolist() == [1, 1, 1]


def test_a_sample_looks_the_same_in_every_batch_and_process() -> None:
    whole = make([*range(40)])
    units = [np.arange(first, min(first + 11, 40)) for first in range(0, 40, 11)]
    parts = list(batches(ImageMaker(Noise(40), GEOMETRIES, 0, "views"), units, 2))
    for number in range(3):
        assert torch.equal(torch.cat([part.crops[number] for part in parts]), whole.crops[number])
        assert torch.equal(torch.cat([part.boxes[number] for part in parts]), whole.boxes[number])


def test_crops_seeds_and_names_draw_apart() -> None:
    batch = make([*range(40)])
    assert not torch.equal(batch.boxes[0], batch.boxes[2])
    for other in (make([*range(40)], seed=1), make([*range(40)], name="others")):
        assert not torch.equal(batch.boxes[0], other.boxes[0])
        assert torch.equal(batch.crops[1], other.crops[1])


def test_images_in_memory_are_drawn_as_others_are() -> None:
    held = Noise(40)
    held.images = held.pixels
    alone, batch = make([5, 6, 30]), make([5, 6, 30], source=held)
    for number in range(3):
        assert torch.equal(alone.boxes[number], batch.boxes[number])
        assert (alone.crops[number].int() - batch.crops[number].int()).abs().max() <= 1


@pytest.mark.parametrize("broken", [(0, 7, 9), tuple(range(12))])
def test_unreadable_samples_are_left_out_and_move_no_other(broken: tuple[int, ...]) -> None:
    batch, whole = make([*range(12)], source=Noise(40, broken)), make([*range(12)])
    kept = [place for place in range(12) if place not in broken]
    assert batch.index.tolist() == kept and sorted(batch.corrupt) == sorted(f"noise-{place}" for place in broken)
    for number in range(3):
        assert torch.equal(batch.crops[number], whole.crops[number][kept])
        assert torch.equal(batch.boxes[number], whole.boxes[number][kept])
