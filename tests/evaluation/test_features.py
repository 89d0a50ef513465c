"""Extraction: every readable image once and in order, whatever the batch size and the processes."""

import numpy as np
import pytest
import torch
from tests.evaluation.fakes import FakeMethod, Noise

from unlabeled.augment.geometry import EvalCrop
from unlabeled.data.sources import base as corrupt_rule
from unlabeled.engine.passes import features as module
from unlabeled.engine.passes.features import Embedder, extract, join, network_embedder
from unlabeled.errors import UserError
from unlabeled.evaluation.vectors.pixels import drop_equal_channels, pixel_embedder

CPU = torch.device("cpu")


def run(source, batch=7, workers=0, max_corrupt=0.001):
    embedder = network_embedder(FakeMethod(32).exports()["backbone"], CPU)
    options = {"batch": batch, "workers": workers, "device": CPU, "max_corrupt": max_corrupt}
    return extract({"network": embedder}, source, **options)["network"]


def test_features_are_those_of_the_images_in_order():
    source = Noise(20)
    found = run(source)
    network = FakeMethod(32).exports()["backbone"].build()
    expected = network(torch.from_numpy(source.pixels).permute(0, 3, 1, 2) / 255)
    torch.testing.assert_close(found.x, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found.index.numpy(), np.arange(20))
    np.testing.assert_array_equal(found.label.numpy(), source.labels)


def test_independent_of_batch_size_and_workers():
    source = Noise(23, broken=(3, 22))
    expected = run(source)
    for batch, workers in ((1, 0), (23, 0), (5, 1)):
        found = run(source, batch, workers)
        torch.testing.assert_close(found.x, expected.x, rtol=1e-5, atol=1e-5)
        assert torch.equal(found.index, expected.index) and sorted(found.corrupt) == sorted(expected.corrupt)


@pytest.mark.parametrize("world", [2, 3, 8])  # 7 images: unequal parts, and a rank without any
def test_ranks_of_unequal_parts_make_the_same_whole(monkeypatch, world):
    source = Noise(7, broken=(1,))
    expected = run(source)
    monkeypatch.setattr(module, "world", lambda: world)
    embedder = network_embedder(FakeMethod(32).exports()["backbone"], CPU)
    parts = []
    for number in range(world):
        monkeypatch.setattr(module, "rank", lambda number=number: number)
        with torch.inference_mode():
            parts.append(module._extract_part({"n": embedder}, source, [EvalCrop(8)], 2, 0, CPU)["n"])
    assert sum(len(part.index) for part in parts) == 6
    found = join(parts)
    torch.testing.assert_close(found.x, expected.x, rtol=1e-5, atol=1e-5)
    assert torch.equal(found.index, expected.index) and torch.equal(found.label, expected.label)
    assert found.corrupt == expected.corrupt == ["noise-1"]


def test_corrupt_images_are_left_out_and_too_many_are_refused(monkeypatch):
    assert len(run(Noise(30, broken=(0, 4))).x) == 28
    monkeypatch.setattr(corrupt_rule, "FORGIVEN", 1)
    with pytest.raises(UserError, match=r"2 of 30 images cannot be read, more than max_corrupt 0\.05 .*noise-0"):
        run(Noise(30, broken=(0, 4)), max_corrupt=0.05)
    with pytest.raises(UserError, match="3 of 3 images cannot be read"):
        run(Noise(3, broken=(0, 1, 2)), max_corrupt=1)


def test_a_network_that_gives_nan_is_refused():
    embedder = Embedder((EvalCrop(8),), lambda crops: torch.full((len(crops), 4), float("nan")))
    with pytest.raises(UserError, match="network: the features of 5 images are NaN or infinite"):
        extract({"network": embedder}, Noise(5), batch=2, workers=0, device=CPU, max_corrupt=0)


def test_a_map_is_averaged_over_its_places():
    crops = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    features = network_embedder(FakeMethod(4).exports()["dense"], CPU).embed(crops)
    torch.testing.assert_close(features, crops.float().mean((2, 3)) / 255)


def test_pixels_of_small_sets_are_exact_and_large_ones_are_reduced():
    source = Noise(4)
    source.images = source.pixels
    options = {"batch": 3, "workers": 0, "device": CPU, "max_corrupt": 0}
    found = extract({"raw_pixels": pixel_embedder(source, EvalCrop(64)), "n": network_embedder(
        FakeMethod(8, 16).exports()["backbone"], CPU)}, source, **options)
    expected = torch.from_numpy(source.pixels).permute(0, 3, 1, 2).flatten(1) / 255
    torch.testing.assert_close(found["raw_pixels"].x, expected)
    assert found["n"].x.shape == (4, 48)
    large = pixel_embedder(Noise(4), EvalCrop(64))
    assert large.crops == (EvalCrop(64),)
    assert large.embed(torch.zeros(2, 3, 64, 64, dtype=torch.uint8)).shape == (2, 3 * 32 * 32)


def test_grey_pixels_count_once():
    grey = torch.rand(5, 1, 6).expand(5, 3, 6).flatten(1)
    train, test = drop_equal_channels(grey, grey[:2])
    torch.testing.assert_close(train, grey[:, :6])
    assert test.shape == (2, 6)
    colour = torch.rand(5, 18)
    assert drop_equal_channels(colour, colour)[0].shape == (5, 18)
