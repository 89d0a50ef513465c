import numpy as np
import pytest
import scipy.fft
import torch
from tests.passes.mining.photos import BY_HASH, changed, parts

from unlabeled.augment.plain_crops import Whole
from unlabeled.data.crops import cut
from unlabeled.passes.mining.hashes import SIDE, thumbnail_hashes, wave_hashes


def squeezed(*images):
    geometry = Whole(SIDE)
    return cut(geometry, list(images), np.zeros((len(images), 0)))[0]


def bits(one, other):
    hashes = wave_hashes(squeezed(one, other)).numpy()
    return int(np.bitwise_count(hashes[0] ^ hashes[1]).sum())


@pytest.mark.parametrize("change", BY_HASH)
@pytest.mark.parametrize("name", ["left", "right", "upper", "lower"])
def test_copies_differ_in_few_bits(name, change):
    assert bits(parts()[name], changed(name, change)) <= 32


def test_other_pictures_differ_in_many():
    hashes = wave_hashes(squeezed(*parts().values())).numpy()
    between = [np.bitwise_count(hashes[i] ^ hashes[j]).sum() for i in range(4) for j in range(i)]
    assert min(between) >= 90


def test_bits_are_signs_of_the_cosine_transform():
    crops = squeezed(*parts().values())
    gray = np.einsum("nchw,c->nhw", crops.numpy().astype(float), [0.299, 0.587, 0.114])
    waves = scipy.fft.dctn(gray, axes=(1, 2))[:, :16, :16].reshape(len(gray), -1)[:, 1:]
    above = waves > np.median(waves, axis=1, keepdims=True)
    expected = np.packbits(np.pad(above, ((0, 0), (1, 0))), axis=1)
    assert (wave_hashes(crops).numpy() == expected).all()
    assert (np.bitwise_count(expected).sum(1) == 127).all()  # half of 255


def test_a_flat_image_has_no_hash():
    noise = np.random.default_rng(0).integers(100, 104, (48, 48, 3), np.uint8)
    assert not wave_hashes(squeezed(np.full((40, 50, 3), 7, np.uint8), noise)).any()


def test_equal_thumbnails_have_equal_hashes_and_no_others():
    image = torch.randint(256, (3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    other, moved = image.clone(), image.clone()
    other[1, 5, 9] += 1
    moved[0, 0, 0], moved[0, 0, 1] = image[0, 0, 1].item(), image[0, 0, 0].item()
    one, same, changed_pixel, exchanged = thumbnail_hashes(torch.stack([image, image.clone(), other, moved])).tolist()
    assert one == same and len({one, changed_pixel, exchanged}) == 3
    assert thumbnail_hashes(image[None]).item() == one
