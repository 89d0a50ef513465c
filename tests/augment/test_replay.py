"""Replays of stored parameters: what each of them does to a view; random erasing's law."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from unlabeled.augment.photometric import to_input
from unlabeled.augment.replay import erasing
from unlabeled.augment.replay.crops import StoredCrop, decode, drawing, encode
from unlabeled.augment.replay.render import cutmix, mixup, replay
from unlabeled.config.augment import PaddedCrop, StorableCrop, StoredResizedCrop
from unlabeled.ops.random import uniforms

CROPS = [
    StoredResizedCrop(size=24),
    PaddedCrop(kind="padded", size=16, pad=4),
    PaddedCrop(kind="padded", size=24, pad=3, resize=24, border="reflect"),
]


def rows(n: int, second: bool = False) -> dict[str, torch.Tensor]:
    """Return parameters that leave n views as they are."""
    one = {
        "op": torch.full((n, 2), 255, dtype=torch.uint8),
        "magnitude": torch.zeros(n, 2),
        "erase": torch.full((n, 4), 65535, dtype=torch.int32).to(torch.uint16),
    }
    if not second:
        return one
    mixing = {"mixup": torch.ones(n), "cut": one["erase"].clone()}
    return {**one, **{f"{name}2": value for name, value in one.items()}, **mixing}


@pytest.fixture
def crops(natural) -> list[torch.Tensor]:
    made = torch.from_numpy(natural(8, 20, 20, seed=1)).permute(0, 3, 1, 2).contiguous()
    return [made[:4], made[4:]]


def test_what_was_skipped_leaves_the_view_alone(crops: list[torch.Tensor]) -> None:
    assert torch.equal(replay(crops[:1], rows(4)), crops[0].float() / 255)
    assert torch.equal(replay(crops, rows(4, second=True)), crops[0].float() / 255)
    identity = rows(4)
    identity["op"][:] = 0
    assert torch.equal(replay(crops[:1], identity), crops[0].float() / 255)


def test_erased_is_black_before_the_network_is_told_its_statistics(crops: list[torch.Tensor]) -> None:
    stored = rows(4)
    stored["erase"][2] = torch.tensor([3, 5, 7, 11], dtype=torch.int32).to(torch.uint16)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    view = to_input(replay(crops[:1], stored), mean, std)
    plain = to_input(crops[0], mean, std)
    box = torch.zeros(4, 1, 20, 20, dtype=torch.bool)
    box[2, :, 3:10, 5:16] = True
    black = ((0 - torch.tensor(mean)) / torch.tensor(std)).view(1, 3, 1, 1)
    assert torch.equal(view, torch.where(box, black, plain))


def test_mixup_is_before_cutmix_and_both_take_the_same_partner(crops: list[torch.Tensor]) -> None:
    stored = rows(4, second=True)
    stored["mixup"] = torch.tensor([1.0, 0.25, 1.0, 0.25])
    stored["cut"][2:] = torch.tensor([2, 4, 9, 15], dtype=torch.int32).to(torch.uint16)
    first, second = (crop.float() / 255 for crop in crops)
    expected = first.clone()
    for i in (1, 3):
        expected[i] = 0.25 * first[i] + 0.75 * second[i]
    expected[2:, :, 2:9, 4:15] = second[2:, :, 2:9, 4:15]
    torch.testing.assert_close(replay(crops, stored), expected, rtol=0, atol=1e-7)
    assert torch.equal(mixup(first, second, torch.ones(4)), first)
    whole = torch.tensor([[0, 0, 20, 20]] * 4)
    assert torch.equal(cutmix(first, second, whole), second)


def test_both_images_have_operations_and_boxes_of_their_own(crops: list[torch.Tensor]) -> None:
    stored = rows(4, second=True)
    stored["op2"][:] = torch.tensor([11, 255], dtype=torch.uint8)  # solarize
    stored["magnitude2"][:, 0] = 128.0
    stored["erase2"][:] = torch.tensor([0, 0, 4, 4], dtype=torch.int32).to(torch.uint16)
    stored["mixup"][:] = 0.0
    other = torch.where(crops[1] >= 128, 255 - crops[1], crops[1]).float() / 255
    other[:, :, :4, :4] = 0
    assert torch.equal(replay(crops, stored), other)


@pytest.mark.parametrize("cfg", CROPS, ids=["resized", "padded", "resized first"])
def test_stored_crops_are_cut_again(cfg: StorableCrop, natural) -> None:
    crop = drawing(cfg)
    images = natural(40, 24, 24, seed=2) if not isinstance(cfg, PaddedCrop) else natural(40, 16, 16, seed=2)
    sizes = np.array([image.shape[:2] for image in images])
    boxes = crop.draw(uniforms(np.arange(40), crop.draws, 0, "x"), sizes)
    places, flipped = encode(boxes, crop)
    assert places.dtype == np.uint16 and set(flipped.tolist()) == {0, 1}
    assert np.array_equal(decode(places, flipped, crop, boxes), boxes)
    stored = StoredCrop(crop)
    other = uniforms(np.arange(40), crop.draws, 1, "y")
    entry = np.where(np.arange(40) < 30, 0, -1)
    again = stored.draw(other, sizes, {"crop": places, "flip": flipped, "entry": entry})
    assert np.array_equal(again[:30], boxes[:30])
    assert np.array_equal(again[30:], crop.draw(other, sizes)[30:]), "of a plain image the crop is new"
    singly = np.stack([stored.apply(image, box) for image, box in zip(images, again, strict=True)])
    together = stored.apply_batch(torch.from_numpy(images).permute(0, 3, 1, 2), again)
    assert np.array_equal(together.numpy(), singly)
    flipped_back = stored.apply(images[0], again[0] * np.array([1, 1, 1, 1, 1, 1, 0]))
    assert flipped[0] == 0 or np.array_equal(flipped_back, singly[0][:, :, ::-1])


def test_a_padded_crop_of_resized_images_is_torchvisions(natural) -> None:
    image = natural(1, 30, 30, seed=5)[0]
    crop = drawing(PaddedCrop(kind="padded", size=24, pad=3, resize=24))
    boxes = crop.draw(np.array([[0.0, 0.999, 0.9]]), np.array([[30, 30]]))
    places, _ = encode(boxes, crop)
    assert places.tolist() == [[0, 6, 24, 24]], "as torchvision counts, from the padded image's corner"
    whole = v2.functional.resize(torch.from_numpy(image).permute(2, 0, 1), [24, 24], antialias=True)
    expected = v2.functional.pad(whole, [3])[:, 0:24, 6:30]
    assert np.abs(crop.apply(image, boxes[0]).astype(int) - expected.numpy()).max() <= 1
    batch = crop.apply_batch(torch.from_numpy(image).permute(2, 0, 1)[None], boxes)
    assert np.abs(batch[0].numpy().astype(int) - expected.numpy()).max() <= 1


def test_the_law_of_erasing_is_torchvisions() -> None:
    size, n = 32, 4000
    ours = erasing.draw(uniforms(np.arange(n), erasing.DRAWS, 0, "erase"), 0.25, size)
    chosen = ours[:, 0] < 65535
    assert abs(chosen.mean() - 0.25) < 0.02 and (ours[~chosen] == 65535).all()
    ours = ours[chosen]
    assert (ours[:, 0] + ours[:, 2] <= size).all() and (ours[:, 1] + ours[:, 3] <= size).all()
    torch.manual_seed(0)
    transform, theirs = v2.RandomErasing(1.0), []
    for _ in range(1000):
        params = transform.make_params([torch.zeros(3, size, size)])
        theirs.append([params["i"], params["j"], params["h"], params["w"]])
    for column, other in zip(ours.T, np.array(theirs).T, strict=True):
        spread = np.sqrt(column.var() / len(column) + other.var() / len(other))
        assert abs(column.mean() - other.mean()) < 4 * spread
        assert abs(np.log(column.std() / other.std())) < 0.12


def test_where_no_box_fits_nothing_is_erased() -> None:
    """The largest area in the most upright shape is higher than the view; torchvision would blank all of it."""
    assert (erasing.draw(np.full((3, erasing.DRAWS), 0.9999), 1.0, 32) == 65535).all()
    one = np.full((1, erasing.DRAWS), 0.9999)
    one[0, [4, 14]] = 0.0  # the fifth candidate
    assert erasing.draw(one, 1.0, 32).tolist() == [[30, 24, 2, 8]]
