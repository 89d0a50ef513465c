"""Sets with masks: tiny trees in the layout of VOC 2012 and Cityscapes, rendered scenes, and joint crops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.data.toys import png

from unlabeled.config.card import Card
from unlabeled.config.files import find
from unlabeled.config.read import read_file
from unlabeled.data.segmentation_batches import JointCrop, Masked, training_crops, whole_images
from unlabeled.data.sources.base import CorruptSample
from unlabeled.data.sources.dense.masks import CITYSCAPES, read_mask
from unlabeled.data.sources.open import open_source
from unlabeled.data.sources.shapes import ShapesSource
from unlabeled.errors import UserError

SIZES = {"a": (20, 30), "b": (20, 30), "c": (24, 16)}


def card(name: str) -> Card:
    return read_file(find("data", name), Card)


def voc(root: Path) -> Path:
    """Write three images with palette masks: rectangles of class 1, 15 and 20 on background, with a border of 255."""
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for number, (name, size) in enumerate(SIZES.items()):
        pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(pixels).save(root / "JPEGImages" / f"{name}.jpg")
        mask = np.zeros(size, np.uint8)
        mask[3:9, 2:12] = 255
        mask[4:8, 3:11] = (1, 15, 20)[number]
        write_palette(root / "SegmentationClass" / f"{name}.png", mask)
    (root / "ImageSets/Segmentation/train.txt").write_text("b\na\n")
    (root / "ImageSets/Segmentation/val.txt").write_text("c\n")
    return root


def write_palette(path: Path, mask: np.ndarray) -> None:
    image = Image.new("P", mask.shape[::-1])
    image.putdata(mask.flatten().tolist())
    image.putpalette(np.random.default_rng(0).integers(0, 256, 768, np.uint8).tolist())
    image.save(path)


def test_voc_masks_are_numbers_and_not_colours(tmp_path: Path) -> None:
    train = open_source(card("voc2012-segmentation"), "train", str(voc(tmp_path)))
    assert [train.key(i) for i in range(2)] == ["JPEGImages/b.jpg", "JPEGImages/a.jpg"]
    assert train.mask_classes[0] == "background" and len(train.mask_classes) == 21 and train.labels is None
    assert card("voc2012-segmentation").has("masks") and not card("voc2012-segmentation").has("boxes")
    mask = train.mask(0)
    assert mask.shape == (20, 30) and mask.dtype == np.uint8 and mask[5, 5] == 15 and mask[3, 5] == 255
    assert set(np.unique(mask)) == {0, 15, 255} and train.image(0).shape == (20, 30, 3)
    val = open_source(card("voc2012-segmentation"), "val", str(tmp_path))
    assert len(val) == 1 and val.mask_classes[val.mask(0)[5, 5]] == "tvmonitor"


def test_cityscapes_numbers_become_the_19_classes_in_order(tmp_path: Path) -> None:
    for city in ("zurich", "aachen"):
        for folder in ("leftImg8bit", "gtFine"):
            (tmp_path / folder / "train" / city).mkdir(parents=True)
        values = np.arange(34, dtype=np.uint8).reshape(2, 17)
        image = np.zeros((2, 17, 3), np.uint8)
        Image.fromarray(image).save(tmp_path / f"leftImg8bit/train/{city}/{city}_000000_000019_leftImg8bit.png")
        Image.fromarray(values).save(tmp_path / f"gtFine/train/{city}/{city}_000000_000019_gtFine_labelIds.png")
        Image.fromarray(values).save(tmp_path / f"gtFine/train/{city}/{city}_000000_000019_gtFine_instanceIds.png")
    source = open_source(card("cityscapes"), "train", str(tmp_path))
    assert len(source) == 2 and source.key(0).startswith("leftImg8bit/train/aachen/")
    mask = source.mask(1).flatten()
    assert sorted(mask[mask != 255].tolist()) == list(range(19)) and (mask == 255).sum() == 34 - 19
    assert mask[7] == 0 and mask[33] == 18 and mask[29] == 255
    assert [source.mask_classes[mask[n]] for n in (7, 11, 26, 33)] == ["road", "building", "car", "bicycle"]
    assert list(CITYSCAPES.values()) == source.mask_classes
    assert card("cityscapes").has("masks") and not card("cityscapes").has("boxes")


def test_bad_trees_are_refused_in_one_line(tmp_path: Path) -> None:
    root = voc(tmp_path)
    with pytest.raises(UserError, match=r"no file .*train.txt; give the folder that holds JPEGImages"):
        open_source(card("voc2012-segmentation"), "train", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"no files .*leftImg8bit/val/CITY/\*_leftImg8bit.png"):
        open_source(card("cityscapes"), "val", str(tmp_path))
    source = open_source(card("voc2012-segmentation"), "train", str(root))
    mask = np.zeros((20, 30), np.uint8)
    mask[3, 4] = 21
    write_palette(root / "SegmentationClass/a.png", mask)
    with pytest.raises(UserError, match=r"a.png holds the number 21, which is none of the 21 classes of data card"):
        source.mask(1)
    write_palette(root / "SegmentationClass/a.png", np.zeros((10, 30), np.uint8))
    with pytest.raises(UserError, match=r"the mask of 'JPEGImages/a.jpg' is 10 x 30, but the image 20 x 30"):
        read_mask(source, 1, 20, 30)
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(root / "SegmentationClass/a.png")
    with pytest.raises(UserError, match=r"one number per pixel is needed.*its mode is RGB"):
        source.mask(1)
    (root / "SegmentationClass/a.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"a.png cannot be read"):
        source.mask(1)
    (root / "SegmentationClass/a.png").unlink()
    with pytest.raises(UserError, match=r"1 of 2 masks are missing in .*, the first: SegmentationClass/a.png"):
        open_source(card("voc2012-segmentation"), "train", str(root))


def test_masks_in_which_numbers_may_have_changed_are_refused(tmp_path: Path) -> None:
    root = voc(tmp_path)
    source = open_source(card("voc2012-segmentation"), "train", str(root))
    file, mask = root / "SegmentationClass/a.png", np.zeros((20, 30), np.uint8)
    mask[4:9, 3:11] = 15
    for form in ("JPEG", "WEBP", "JPEG2000", "GIF", "TIFF"):
        Image.fromarray(mask).save(file, form)
        with pytest.raises(UserError, match=rf"mask .*a\.png cannot be read: it is a {form} file, and only PNG keeps"):
            source.mask(1)
    for values, mode in ((mask.astype(bool), "1"), (mask.astype(np.uint16), "I;16"), (np.stack([mask] * 4, 2), "RGBA")):
        Image.fromarray(values).save(file)
        with pytest.raises(UserError, match=rf"one number per pixel is needed .* its mode is {mode}$"):
            source.mask(1)


@pytest.mark.parametrize("bits", [2, 4])
def test_gray_masks_of_few_bits_hold_numbers_and_not_gray_levels(tmp_path: Path, bits: int) -> None:
    source = open_source(card("voc2012-segmentation"), "train", str(voc(tmp_path)))
    values = np.random.default_rng(0).integers(0, 2**bits, (20, 30), np.uint8)
    packed = np.zeros((20, -(-30 * bits // 8)), np.uint8)
    for column in range(30):
        packed[:, column * bits // 8] |= values[:, column] << (8 - bits - column * bits % 8)
    (tmp_path / "SegmentationClass/a.png").write_bytes(png(packed, 30, bits, 0))
    assert np.array_equal(source.mask(1), values)


@pytest.mark.parametrize("orientation", ["apply", "ignore"])
def test_masks_are_turned_like_their_images(tmp_path: Path, orientation: str) -> None:
    root = voc(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    mask = np.array(Image.open(root / "SegmentationClass/a.png"))
    Image.open(root / "JPEGImages/a.jpg").save(root / "JPEGImages/a.jpg", exif=exif)
    about = card("voc2012-segmentation").model_copy(update={"orientation": orientation})
    turned = np.rot90(mask, -1)
    for tagged, stored, fits in ((True, mask, True), (False, turned, orientation == "apply"),
                                 (False, mask, orientation == "ignore")):
        Image.fromarray(np.ascontiguousarray(stored)).save(
            root / "SegmentationClass/a.png", **({"exif": exif} if tagged else {}))
        source = open_source(about, "train", str(root))
        size = source.image(1).shape[:2]
        assert size == ((30, 20) if orientation == "apply" else (20, 30))
        if fits:
            assert np.array_equal(read_mask(source, 1, *size), turned if orientation == "apply" else mask)
        else:
            with pytest.raises(UserError, match=r"but the image .*; the other of orientation: apply and ignore"):
                read_mask(source, 1, *size)


def test_lists_that_name_an_image_twice_are_refused(tmp_path: Path) -> None:
    root = voc(tmp_path)
    (root / "ImageSets/Segmentation/train.txt").write_text("a\nb\na\n")
    with pytest.raises(UserError, match=r"the list .*Segmentation/train\.txt names 'a' twice"):
        open_source(card("voc2012-segmentation"), "train", str(root))
    for outside in ("/a", "../a", "x/../../a"):
        (root / "ImageSets/Segmentation/train.txt").write_text(f"b\n{outside}\n")
        with pytest.raises(UserError, match=rf"the list .*/train\.txt names '{outside}', which lies outside"):
            open_source(card("voc2012-segmentation"), "train", str(root))


def test_bombs_are_refused_as_images_and_as_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = voc(tmp_path)
    source = open_source(card("voc2012-segmentation"), "train", str(root))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)  # PIL refuses twice as many
    assert source.mask(1).shape == (20, 30) and source.image(1).shape == (20, 30, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 299)
    with pytest.raises(UserError, match=r"mask .*a\.png cannot be read: Image size \(600 pixels\) exceeds limit"):
        source.mask(1)
    with pytest.raises(CorruptSample, match=r"JPEGImages/a\.jpg: Image size \(600 pixels\) exceeds limit of 598"):
        source.image(1)


@pytest.mark.parametrize("in_memory", [True, False])
def test_masks_of_rendered_scenes_are_those_of_their_objects(in_memory: bool) -> None:
    about = card("shapes96").model_dump()
    about["in_memory"], about["splits"]["val"]["samples"] = in_memory, 6
    source = open_source(Card.model_validate(about), "val")
    assert isinstance(source, ShapesSource) and source.mask_classes[1:] == source.classes
    assert card("shapes96").has("masks") and card("shapes96").has("boxes") and not card("digits").has("masks")
    for index in range(6):
        truth = source.labelled(index)
        expected = np.zeros((96, 96), np.uint8)
        for kind, mask in zip(truth.kinds, truth.masks, strict=True):
            expected[mask] = kind + 1
        np.testing.assert_array_equal(source.mask(index), expected)
        assert np.array_equal(source.image(index), truth.image)


def test_the_card_of_scenes_is_as_it_says() -> None:
    shapes = card("shapes96")
    assert shapes.source.objects == (1, 5) and shapes.source.size == shapes.image_size == 96
    assert {name: split.samples for name, split in shapes.splits.items()} == {"train": 4000, "val": 1000}


# ---- batches


def paired(height: int = 30, width: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Return an image and a mask that is its red channel."""
    mask = np.random.default_rng(0).integers(0, 9, (height, width), np.uint8)
    return np.repeat(mask[..., None], 3, 2), mask


def test_a_crop_moves_image_and_mask_alike() -> None:
    image, mask = paired()
    crop = JointCrop(24, (1.0, 1.0), (100, 110, 120))
    seen = set()
    for seed in range(12):
        x, y = crop(image, mask, seed)
        assert x.shape == (3, 24, 24) and y.shape == (24, 24) and x.dtype == y.dtype == torch.uint8
        assert torch.equal(x[0], y)
        seen.add(x.numpy().tobytes())
        assert torch.equal(crop(image, mask, seed)[0], x)
    assert len(seen) > 6
    inside = {mask[r : r + 24, c : c + 24][:, ::flip].tobytes()
              for r in range(7) for c in range(17) for flip in (1, -1)}  # fmt: skip
    assert {np.frombuffer(each, np.uint8)[: 24 * 24].tobytes() for each in seen} <= inside


def test_what_lies_outside_the_image_is_filled_and_not_counted() -> None:
    image, mask = paired(10, 12)
    x, y = JointCrop(32, (1.0, 1.0), (100, 110, 120))(image, mask, 0)
    outside = y == 255
    assert int((~outside).sum()) == 120 and torch.equal(x[0][~outside], y[~outside])
    assert [set(channel[outside].tolist()) for channel in x] == [{100}, {110}, {120}]


def test_the_scale_is_that_of_the_image() -> None:
    mask = np.zeros((40, 40), np.uint8)
    mask[:, 20:] = 1
    y = JointCrop(80, (2.0, 2.0), (0, 0, 0))(np.repeat(mask[..., None] * 200, 3, 2), mask, 0)[1]
    assert int((y == 255).sum()) == 0 and int((y == 1).sum()) == 80 * 40
    half = JointCrop(40, (0.5, 0.5), (0, 0, 0))(np.repeat(mask[..., None] * 200, 3, 2), mask, 0)[1]
    assert int((half != 255).sum()) == 20 * 20 and int((half == 1).sum()) == 200


@pytest.mark.parametrize("workers", [0, 2])
def test_training_crops_do_not_depend_on_processes_and_workers(tmp_path: Path, workers: int) -> None:
    source = open_source(card("voc2012-segmentation"), "train", str(voc(tmp_path)))
    (tmp_path / "JPEGImages/a.jpg").write_bytes(b"no image")
    crop = JointCrop(8, (0.5, 2.0), (0, 0, 0))

    def whole(world: int, count: int) -> list[Masked]:
        ranks = [list(training_crops(source, crop, 3, 3, 4, rank, world, count)) for rank in range(world)]
        return [Masked(torch.cat([p.images for p in parts]), torch.cat([p.masks for p in parts]),
                       [key for p in parts for key in p.corrupt]) for parts in zip(*ranks, strict=True)]

    alone, others = whole(1, 0), whole(3, workers)
    for a, b in zip(alone, others, strict=True):
        assert torch.equal(a.images, b.images) and torch.equal(a.masks, b.masks) and a.corrupt == b.corrupt
        assert a.corrupt == ["JPEGImages/a.jpg"] * 2  # every image twice in four
        assert int((a.masks.flatten(1) == 255).all(1).sum()) >= 2
    assert not torch.equal(alone[0].images, alone[1].images)
    other = {image.numpy().tobytes() for part in alone for image, mask in zip(part.images, part.masks, strict=True)
             if int(mask.min()) < 255}
    assert len(other) > 3, "one image, cut otherwise whenever it comes"


def test_whole_images_come_once_and_together_where_equally_large(tmp_path: Path) -> None:
    root = voc(tmp_path)
    (root / "ImageSets/Segmentation/train.txt").write_text("c\nb\nmissing\na\n")
    write_palette(root / "SegmentationClass/missing.png", np.zeros((9, 9), np.uint8))
    source = open_source(card("voc2012-segmentation"), "train", str(root))
    found = list(whole_images(source, 8, 0, 1, 0))
    assert [list(part.images.shape) for part in found] == [[1, 3, 24, 16], [1, 3, 20, 30], [0, 3, 1, 1], [1, 3, 20, 30]]
    assert [key for part in found for key in part.corrupt] == ["JPEGImages/missing.jpg"]
    (root / "ImageSets/Segmentation/train.txt").write_text("c\nb\na\n")
    source = open_source(card("voc2012-segmentation"), "train", str(root))
    assert [len(part.images) for part in whole_images(source, 8, 0, 1, 0)] == [1, 2]
    shared = [part for rank in range(2) for part in whole_images(source, 2, rank, 2, 0)]
    assert [len(part.images) for part in shared] == [1, 2]
    assert torch.equal(shared[1].images[0], torch.from_numpy(source.image(1)).permute(2, 0, 1))
