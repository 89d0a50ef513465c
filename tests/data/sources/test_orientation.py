"""Orientation tags: heeded or ignored alike in every format, as the card says, before and after packing."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo
from tests.data.toys import write_tar

from unlabeled.config.card import Card
from unlabeled.config.files import find
from unlabeled.config.pack import PackSettings
from unlabeled.config.read import read_file
from unlabeled.data.packing.split import pack
from unlabeled.data.sources import decode as module
from unlabeled.data.sources.base import Pixels
from unlabeled.data.sources.decode import decode
from unlabeled.data.sources.open import open_source

PHOTO = np.random.default_rng(0).integers(0, 256, (12, 20, 3), np.uint8)
FORMS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "TIFF": "tif", "AVIF": "avif"}
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6"/></x:xmpmeta>'


def tagged(form: str, tag: Any, **how: Any) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = tag
    buffer = io.BytesIO()
    Image.fromarray(PHOTO).save(buffer, form, exif=exif, **how)
    return buffer.getvalue()


def stored(form: str, **how: Any) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(PHOTO).save(buffer, form, **how)
    return np.array(Image.open(io.BytesIO(buffer.getvalue())).convert("RGB"))


def upright(data: bytes) -> np.ndarray:
    """Return what PIL gives: the oracle."""
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        return np.array(ImageOps.exif_transpose(image).convert("RGB"))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("tag", range(1, 9))
def test_every_format_is_turned_as_its_tag_says_or_left_as_it_is_stored(form: str, tag: int) -> None:
    if form == "AVIF" and "AVIF" not in Image.SAVE:
        pytest.skip("this PIL writes no AVIF")
    data = tagged(form, tag)
    turned = decode(data, "x", Pixels(upright=True))
    assert np.array_equal(turned, upright(data)) and turned.flags.c_contiguous and turned.flags.writeable
    assert turned.shape == ((20, 12, 3) if tag > 4 else (12, 20, 3))
    assert np.array_equal(decode(data, "x", Pixels(upright=False)), stored(form))


@pytest.mark.parametrize("how", [{"compression": "tiff_lzw"}, {"compression": "jpeg"}, {"big_tiff": True}], ids=str)
def test_kinds_of_tiff_files_are_turned_alike(how: dict[str, Any]) -> None:
    for tag in (3, 6, 7):
        data = tagged("TIFF", tag, **how)
        assert np.array_equal(decode(data, "x"), upright(data))
        assert np.array_equal(decode(data, "x", Pixels(upright=False)), stored("TIFF", **how))


def test_deep_gray_and_tags_in_other_places_are_turned_too() -> None:
    values = (PHOTO[..., 0].astype(np.uint16) << 8) + 7
    for form in ("PNG", "TIFF"):
        exif, buffer = Image.Exif(), io.BytesIO()
        exif[0x0112] = 8
        Image.fromarray(values).save(buffer, form, exif=exif)
        assert np.array_equal(decode(buffer.getvalue(), "x")[..., 0], np.rot90(PHOTO[..., 0]))
        assert np.array_equal(decode(buffer.getvalue(), "x", Pixels(upright=False))[..., 0], PHOTO[..., 0])
    for form, how in (("JPEG", {"xmp": XMP}), ("WEBP", {"xmp": XMP, "lossless": True})):
        buffer = io.BytesIO()
        Image.fromarray(PHOTO).save(buffer, form, **how)
        assert np.array_equal(decode(buffer.getvalue(), "x"), np.rot90(stored(form, **how), -1))


@pytest.mark.parametrize("place", ["Raw profile type exif", "XML:com.adobe.xmp"])
def test_tags_in_texts_of_png_files_are_found(place: str) -> None:
    """ImageMagick writes EXIF as hexadecimal text, Adobe's programs write XMP."""
    exif, text, buffer = Image.Exif(), PngInfo(), io.BytesIO()
    exif[0x0112] = 6
    raw = exif.tobytes()
    text.add_itxt(place, XMP.decode() if place.startswith("XML") else f"\nexif\n{len(raw):8}\n{raw.hex()}\n")
    Image.fromarray(PHOTO).save(buffer, "PNG", pnginfo=text)
    assert np.array_equal(decode(buffer.getvalue(), "x"), np.rot90(PHOTO, -1))
    assert np.array_equal(decode(buffer.getvalue(), "x", Pixels(upright=False)), PHOTO)


@pytest.mark.parametrize("tag", [0, 9, 65535])
def test_tags_that_mean_nothing_and_damaged_ones_turn_nothing(tag: Any) -> None:
    assert np.array_equal(decode(tagged("JPEG", tag), "x"), stored("JPEG"))
    broken = tagged("JPEG", 6).replace(b"Exif\0\0MM", b"Exif\0\0XX")
    assert np.array_equal(decode(broken, "x"), stored("JPEG"))


def test_a_tag_leaves_the_fast_decoder_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("simplejpeg")
    fast = []
    original = module._jpeg
    monkeypatch.setattr(module, "_jpeg", lambda data: fast.append(original(data)) or fast[-1])
    for tag in (1, 6):
        decode(tagged("JPEG", tag), "x")
    assert [pixels is not None for pixels in fast] == [True, True]


def test_folders_of_ones_own_stand_upright_and_published_sets_do_not() -> None:
    cards = {name: read_file(find("data", name), Card) for name in (
        "folder", "classfolder", "imagenet", "coco", "voc-detection", "voc2012-segmentation", "cityscapes", "cifar10")}
    assert {name: one.upright for name, one in cards.items()} == {
        "folder": True, "classfolder": True, "imagenet": False, "coco": False, "voc-detection": False,
        "voc2012-segmentation": False, "cityscapes": False, "cifar10": False}
    assert all(one.orientation is not None for one in cards.values())  # said, for people who copy them
    for kind, expected in (("folder", True), ("classfolder", True), ("shards", True), ("coco-boxes", False),
                           ("voc-boxes", False), ("voc-masks", False), ("cityscapes-masks", False)):
        for said, then in ((None, expected), ("apply", True), ("ignore", False)):
            assert card(kind, Path(), "x", orientation=said).upright == then


def card(kind: str, root: Path, path: str, **more: object) -> Card:
    return Card.model_validate({"name": "mine", "source": {"kind": kind}, "root": str(root),
                                "splits": {"train": {"path": path}}, **more})


@pytest.mark.parametrize("orientation", ["apply", "ignore"])
@pytest.mark.parametrize("in_memory", [False, True])
def test_a_card_says_it_for_folders_and_shards(tmp_path: Path, orientation: str, in_memory: bool) -> None:
    data = tagged("JPEG", 6)
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "a.jpg").write_bytes(data)
    write_tar(tmp_path / "x.tar", {"a.jpg": data})
    for kind, path in (("folder", "f"), ("shards", "x.tar")):
        for said in (orientation, {"apply": "ignore", "ignore": "apply"}[orientation]):  # also past the kept images
            source = open_source(card(kind, tmp_path, path, orientation=said, in_memory=in_memory), "train")
            assert np.array_equal(source.image(0), upright(data) if said == "apply" else stored("JPEG"))


@pytest.mark.parametrize("orientation", ["apply", "ignore"])
@pytest.mark.parametrize("settings", [{}, {"short_side": 8}, {"store": "array"}], ids=str)
def test_a_packed_set_gives_the_pixels_of_the_set(tmp_path: Path, orientation: str, settings: dict[str, Any]) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    deep = np.arange(240, dtype=np.uint16).reshape(20, 12) * 17
    for form, ending in FORMS.items():
        if form != "AVIF":
            (folder / f"{ending}.{ending}").write_bytes(tagged(form, 6 if orientation == "apply" else 3))
    if orientation == "apply":
        Image.fromarray(deep).save(folder / "deep.png")
    about = tmp_path / "card.yaml"
    about.write_text(f"name: mine\nsource: {{kind: folder}}\nroot: {tmp_path}\nsplits: {{train: {{path: f}}}}\n"
                     f"orientation: {orientation}\nlevels: [0, 4095]\n")
    before = open_source(read_file(about, Card), "train")
    pack(str(about), tmp_path / "out", PackSettings(workers=0, **settings))
    after = open_source(read_file(tmp_path / "out" / "card.yaml", Card), "train")
    if settings.get("store") == "array":
        assert np.array_equal(np.stack([before.image(i) for i in range(len(before))]), after.images)
        return
    order = {before.key(i).partition(".")[0]: i for i in range(len(before))}
    for i in range(len(after)):
        expected = before.image(order[after.key(i)])
        if settings:
            assert after.image(i).shape == ((13, 8, 3) if orientation == "apply" else (8, 13, 3))
        else:
            assert np.array_equal(after.image(i), expected), after.key(i)
