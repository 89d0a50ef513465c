"""Values beyond 8 bits: one rule for image files and arrays, and a named refusal where it does not reach."""

from __future__ import annotations

import io
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.data.toys import Whole, png, write_tar

from unlabeled.config.card import Card
from unlabeled.data.batch import Stream
from unlabeled.data.evaluation import eval_batches
from unlabeled.data.sources.base import CorruptSample, Pixels
from unlabeled.data.sources.decode import decode
from unlabeled.data.sources.files.levels import eight_bits
from unlabeled.data.sources.open import open_source
from unlabeled.data.stream import BatchShare, TrainStream
from unlabeled.engine.passes.features import refuse_corrupt
from unlabeled.errors import UserError

RAMP = np.array([[0, 255, 256, 4095, 32768, 65535]], np.uint16)
HIGH_BYTES = [0, 0, 1, 15, 128, 255]
OF_4095 = [0, 16, 16, 255, 255, 255]  # 255 x 255 / 4095 = 15.9


def saved(values: np.ndarray, form: str, **how: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, form, **how)
    return buffer.getvalue()


def deep(values: np.ndarray, colour: int) -> bytes:
    """Return a 16-bit PNG file of [H, W, bands]."""
    return png(values.astype(">u2").view(np.uint8).reshape(len(values), -1), values.shape[1], 16, colour)


def tiff(values: np.ndarray, bits: int, sign: int = 1, photometric: int = 1, big: bool = False) -> bytes:
    """Write an uncompressed gray TIFF file of any type; sign: 1 unsigned, 2 signed, 3 float."""
    order = ">" if big else "<"
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    if bits == 12:
        pairs = values.astype(int).reshape(-1, 2).tolist()
        data = b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in pairs)
    height, width = values.shape
    tags = [(256, 4, width), (257, 4, height), (258, 3, bits), (259, 3, 1), (262, 3, photometric), (273, 4, 8),
            (277, 3, 1), (278, 4, height), (279, 4, len(data)), (339, 3, sign)]
    rows = b"".join(struct.pack(order + "HHI" + ("I" if kind == 4 else "HH"), tag, kind, 1, value,
                                *([] if kind == 4 else [0])) for tag, kind, value in tags)
    data += b"\0" * (len(data) % 2)
    start = struct.pack(order + "2sHI", b"MM" if big else b"II", 42, 8 + len(data))
    return start + data + struct.pack(order + "H", len(tags)) + rows + b"\0\0\0\0"


def gray(data: bytes, levels: tuple[float, float] | None = None) -> list[int]:
    pixels = decode(data, "x", Pixels(levels))
    assert pixels.dtype == np.uint8 and pixels.shape[2] == 3
    assert (pixels == pixels[..., :1]).all()
    return pixels[0, :, 0].tolist()


FILES_OF_16_BITS = {
    "png": saved(RAMP, "PNG"), "tif": saved(RAMP, "TIFF"), "lzw": saved(RAMP, "TIFF", compression="tiff_lzw"),
    "big-endian": tiff(RAMP, 16, big=True), "pgm": saved(RAMP, "PPM"), "jp2": saved(RAMP, "JPEG2000"),
}


@pytest.mark.parametrize("name", FILES_OF_16_BITS)
def test_16_bits_are_read_by_their_whole_range_or_by_the_levels_of_the_card(name: str) -> None:
    assert gray(FILES_OF_16_BITS[name]) == HIGH_BYTES
    assert gray(FILES_OF_16_BITS[name], (0, 4095)) == OF_4095
    assert gray(FILES_OF_16_BITS[name], (255, 256)) == [0, 0, 255, 255, 255, 255]


def test_values_beyond_the_stated_bits_are_white() -> None:
    assert eight_bits(np.array([0, 16, 4095, 4096, 65535], np.uint16), None, 12).tolist() == [0, 1, 255, 255, 255]


def test_floats_from_0_to_1_are_scaled_and_others_need_levels() -> None:
    values = np.array([[0, 0.25, 0.5, 1]], np.float32)
    for data in (saved(values, "TIFF"), tiff(values, 32, 3), tiff(values, 32, 3, big=True)):
        assert gray(data) == [0, 64, 128, 255]
        assert gray(data, (0, 0.5)) == [0, 128, 255, 255]
    for bad in ([0, 1.5], [-0.1, 1], [0, 255]):
        data = saved(np.array([bad], np.float32), "TIFF")
        with pytest.raises(CorruptSample, match=r"^x: float32 values from \S+ to \S+ have .* levels: \[low, high\]$"):
            decode(data, "x")
        assert gray(data, (bad[0], bad[1])) == [0, 255]
    for worse in (np.nan, np.inf, -np.inf):
        data = saved(np.array([[0, worse]], np.float32), "TIFF")
        for levels in (None, (0, 1)):
            with pytest.raises(CorruptSample, match="NaN or infinite"):
                decode(data, "x", Pixels(levels))


@pytest.mark.parametrize(("values", "bits", "sign"), [
    (np.array([[0, 100, 1000]], np.int32), 32, 2), (np.array([[-5, 0, 5]], np.int32), 32, 2),
    (np.array([[0, 100, 3_000_000_000]], np.uint32), 32, 1), (np.array([[-1000, 0, 1000]], np.int16), 16, 2),
    (np.array([[-100, 0, 100]], np.int8), 8, 2)])
def test_other_integers_are_refused_without_levels(values: np.ndarray, bits: int, sign: int) -> None:
    low, middle, high = values[0].tolist()
    for big in (False, True):
        data = tiff(values, bits, sign, big=big)
        if big and values.dtype == np.uint32:
            with pytest.raises(CorruptSample, match="of a kind that PIL does not read"):
                decode(data, "x")
            continue
        with pytest.raises(CorruptSample, match=r"int\d+ values from \S+ to \S+ have .* levels: \[low, high\]$"):
            decode(data, "x")
        assert gray(data, (low, high)) == [0, round((middle - low) * 255 / (high - low)), 255]


def test_12_bits_that_say_so_and_white_that_is_zero() -> None:
    values = np.array([[0, 16, 2048, 4095]], np.uint16)
    assert gray(tiff(values, 12)) == [0, 1, 128, 255]
    assert gray(tiff(values, 12), (0, 2048)) == [0, 2, 255, 255]
    assert gray(saved(values, "PNG")) == [0, 0, 8, 15]  # nothing in this file tells: levels are for that
    assert gray(tiff(RAMP, 16, photometric=0)) == [255 - level for level in HIGH_BYTES]
    assert gray(tiff(np.array([[0, 1]], np.float32), 32, 3, photometric=0)) == [255, 0]


@pytest.mark.parametrize("head", [b"P5 3 1 4095\n", b"P2 3 1 4095\n"])
def test_portable_maps_are_read_by_their_own_white_and_levels_mean_what_is_stored(head: bytes) -> None:
    stored = struct.pack(">3H", 0, 2048, 4095) if head[:2] == b"P5" else b"0 2048 4095\n"
    assert gray(head + stored) == [0, 128, 255]
    assert gray(head + stored, (0, 2048)) == [0, 255, 255]
    colours = b"P6 1 1 4095\n" + struct.pack(">3H", 0, 2048, 4095)
    assert decode(colours, "x").tolist() == [[[0, 128, 255]]]
    with pytest.raises(CorruptSample, match="16 bits, to which the data card's levels cannot be applied"):
        decode(colours, "x", Pixels((0, 2048)))


def test_colours_of_16_bits_keep_their_high_bytes_and_refuse_levels() -> None:
    values = np.array([[[0x1234, 0x5678, 0x9ABC, 0xFFFF]]])
    for colour, bands, expected in ((2, [0, 1, 2], [0x12, 0x56, 0x9A]), (6, [0, 1, 2, 3], [0x12, 0x56, 0x9A]),
                                    (4, [0, 3], [0x12] * 3)):
        data = deep(values[..., bands], colour)
        assert decode(data, "x").tolist() == [[expected]]
        with pytest.raises(CorruptSample, match="levels cannot be applied; convert it to 8 bits"):
            decode(data, "x", Pixels((0, 4095)))
    assert gray(deep(RAMP[..., None], 0)) == HIGH_BYTES


def test_8_bits_and_less_are_pils_whatever_the_levels() -> None:
    rng = np.random.default_rng(0)
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB"):
        image = Image.fromarray(rng.integers(0, 256, (5, 7, 3), np.uint8))
        if mode == "LAB":
            image = Image.frombytes("LAB", (7, 5), rng.integers(0, 256, 105, np.uint8).tobytes())
        image = image.convert(mode)
        for form in ("PNG", "TIFF"):
            if form == "PNG" and mode in ("CMYK", "YCbCr", "LAB"):
                continue
            buffer = io.BytesIO()
            image.save(buffer, form, **({"transparency": 3} if mode == "P" and form == "PNG" else {}))
            expected = np.array(Image.open(io.BytesIO(buffer.getvalue())).convert("RGB"))
            for levels in (None, (0.0, 4095.0)):
                assert np.array_equal(decode(buffer.getvalue(), "x", Pixels(levels)), expected), (mode, form)


def test_of_several_frames_the_first_is_taken() -> None:
    frames = [Image.new("RGB", (3, 2), colour) for colour in ("red", "blue")]
    for form in ("GIF", "TIFF", "WEBP", "PNG"):
        buffer = io.BytesIO()
        frames[0].save(buffer, form, save_all=True, append_images=frames[1:], **({"lossless": True} if form == "WEBP"
                                                                                 else {}))
        assert (decode(buffer.getvalue(), "x") == [255, 0, 0]).all(), form


def test_what_pil_does_not_read_is_refused_by_name() -> None:
    for data in (tiff(np.array([[0, 1]], np.float16), 16, 3), tiff(np.array([[0, 1]], np.float64), 64, 3)):
        with pytest.raises(CorruptSample, match="of a kind that PIL does not read"):
            decode(data, "x")
    for empty in (b"P5 0 3 255\n", b"P6 0 0 255\n"):
        with pytest.raises(CorruptSample, match=r"no pixels|cannot identify|not enough"):
            decode(empty, "x")


def test_the_rule_for_arrays_of_values() -> None:
    assert eight_bits(np.array([False, True]), None).tolist() == [0, 255]
    assert eight_bits(np.array([0.5, 1], np.float16), None).tolist() == [128, 255]
    assert eight_bits(np.array([7, 255], np.uint8), (0, 9)).tolist() == [7, 255]
    assert eight_bits(RAMP.astype(">u2"), None).tolist() == [HIGH_BYTES]
    assert eight_bits(np.array([-1, 0, 2**62, 2**63 - 1]), (0, 2**62)).tolist() == [0, 0, 255, 255]
    for values in (np.array([1j]), np.array(["a"]), np.array([None])):
        with pytest.raises(ValueError, match="are no gray levels"):
            eight_bits(values, (0, 1))


# ---- through a card


def opened(kind: str, root: Path, path: str = ".", **more: object) -> Any:
    return open_source(Card.model_validate({"name": "mine", "source": {"kind": kind}, "root": str(root),
                                            "splits": {"train": {"path": path}}, **more}), "train")


def test_levels_of_a_card_reach_files_shards_and_arrays(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(saved(RAMP, "PNG"))
    write_tar(tmp_path / "x.tar", {"a.png": saved(RAMP, "PNG")})
    np.save(tmp_path / "x.npy", np.stack([RAMP, RAMP]))
    np.savez(tmp_path / "x.npz", images=RAMP[None])
    for kind, path in (("folder", "images"), ("shards", "x.tar"), ("array", "x.npy"), ("array", "x.npz")):
        for in_memory in (False, True):
            plain = opened(kind, tmp_path, path, in_memory=in_memory)
            assert plain.image(0)[0, :, 0].tolist() == HIGH_BYTES
            stated = opened(kind, tmp_path, path, in_memory=in_memory, levels=[0, 4095])
            assert stated.image(0)[0, :, 0].tolist() == OF_4095
            assert stated.image(0).shape == (1, 6, 3) and (stated.images is not None) == in_memory


def test_levels_and_orientation_reach_streamed_shards(tmp_path: Path) -> None:
    values, exif, buffer = np.arange(64, dtype=np.uint16).reshape(8, 8) * 60, Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    Image.fromarray(values).save(buffer, "PNG", exif=exif)
    write_tar(tmp_path / "x.tar", {"a.png": buffer.getvalue()})
    scaled = np.rint(values * 255.0 / 4095).astype(np.uint8)
    for orientation, expected in (("apply", np.rot90(scaled, -1)), ("ignore", scaled)):
        card = Card.model_validate({
            "name": "far", "source": {"kind": "stream"}, "root": str(tmp_path), "levels": [0, 4095],
            "orientation": orientation, "splits": {"train": {"path": "x.tar", "samples": 1}}})
        source = open_source(card, "train", in_order=True)
        stream = TrainStream(source, Stream((Whole(),)), BatchShare(1), name="train", seed=0, updates_per_epoch=1)
        ((batch,),) = stream.updates(0, 1)
        assert np.array_equal(batch.crops[0][0, 0].numpy(), expected[:4, :4])


def test_arrays_of_other_types_follow_the_rule_or_are_refused(tmp_path: Path) -> None:
    colours = np.random.default_rng(0).random((3, 4, 5, 3))
    np.save(tmp_path / "x.npy", colours)
    assert np.array_equal(opened("array", tmp_path, "x.npy").image(1), np.rint(colours[1] * 255).astype(np.uint8))
    colours[1, 0, 0, 0] = np.nan
    np.save(tmp_path / "x.npy", colours)
    source = opened("array", tmp_path, "x.npy")
    assert source.image(2).shape == (4, 5, 3)
    with pytest.raises(CorruptSample, match="train-000001: float64 values that are NaN"):
        source.image(1)
    assert list(opened("array", tmp_path, "x.npy", in_memory=True).unreadable) == [1]
    for values, message in ((colours * 255, "float64 .*NaN|have no known black and white"),
                            (np.full((3, 4, 5), -1), r"int64 \[3, 4, 5\]; allowed: .*levels: \[low, high\]"),
                            (np.zeros((3, 4, 5), complex), "are no gray levels"),
                            (np.zeros((3, 4), np.uint16), r"uint16 \[3, 4\]; allowed:"),
                            (np.zeros((3, 4, 5, 4), np.uint8), r"uint8 \[3, 4, 5, 4\]; allowed:")):
        np.save(tmp_path / "x.npy", values)
        with pytest.raises(UserError, match=message):
            opened("array", tmp_path, "x.npy")
    np.save(tmp_path / "x.npy", np.zeros((3, 4, 5), np.uint8))
    with pytest.raises(UserError, match="uint8, on which 'levels' of data card 'mine' has no effect"):
        opened("array", tmp_path, "x.npy", levels=[0, 9])


def test_a_set_that_is_refused_as_a_whole_says_why(tmp_path: Path) -> None:
    for i in range(12):
        (tmp_path / f"{i}.tif").write_bytes(saved(np.full((2, 2), 300 + i, np.int32), "TIFF"))
    with pytest.raises(UserError, match=r"none of 12 images is readable, the first: 0.tif: int32 .*levels: \[low"):
        opened("folder", tmp_path, in_memory=True)
    source, reason = opened("folder", tmp_path), r"\d+\.tif: int32 values from .* levels: \[low, high\]"
    stream = TrainStream(source, Stream((Whole(),)), BatchShare(4), name="train", seed=0, updates_per_epoch=3)
    with pytest.raises(UserError, match=rf"10 samples in a row are unreadable, the last one {reason}$"):
        next(stream.updates(0, 1))
    parts = list(eval_batches(source, Whole(), 0, 1, 4))
    with pytest.raises(UserError, match=rf"12 of 12 images cannot be read, .*: {reason}; {reason}; {reason}$"):
        refuse_corrupt(source, [key for part in parts for key in pickle.loads(pickle.dumps(part)).corrupt], 1.0)


@pytest.mark.parametrize(("kind", "more", "message"), [
    ("folder", {"levels": [3, 3]}, r"levels is \[3.0, 3.0\]; allowed: \[low, high\]"),
    ("folder", {"levels": [float("nan"), 3]}, "finite"), ("folder", {"levels": [1]}, "levels"),
    ("digits", {"levels": [0, 16]}, "'levels' has no effect with digits"),
    ("digits", {"orientation": "apply"}, "'orientation' has no effect with digits"),
    ("array", {"orientation": "apply"}, "'orientation' has no effect with array")])
def test_cards_are_held_to_what_can_be_done(kind: str, more: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Card.model_validate({"name": "mine", "source": {"kind": kind}, "splits": {"train": {}}, **more})
