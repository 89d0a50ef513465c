"""Decoding: as PIL gives it, whichever decoder is at work."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.data.toys import jpeg

from unlabeled.data.sources import decode as module
from unlabeled.data.sources.base import CorruptSample
from unlabeled.data.sources.decode import decode


def photo(seed: int, height: int, width: int, mode: str = "RGB") -> Image.Image:
    """Return a smooth picture with some grain."""
    rng = np.random.default_rng(seed)
    bands = len(Image.new(mode, (1, 1)).getbands())
    low = rng.integers(0, 256, (max(2, height // 8), max(2, width // 8), bands), np.uint8)
    smooth = [np.asarray(Image.fromarray(low[..., c]).resize((width, height), Image.Resampling.BICUBIC), float)
              for c in range(bands)]
    pixels = np.clip(np.stack(smooth, 2) + rng.normal(0, 8, (height, width, bands)), 0, 255).astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if bands == 1 else pixels, mode)


def saved(image: Image.Image, form: str = "JPEG", **how: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **how)
    return buffer.getvalue()


def of_pil(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.array(image.convert("RGB"))


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Return the list of whether simplejpeg decoded, for every file that it was given."""
    pytest.importorskip("simplejpeg")
    answers: list[bool] = []
    original = module._jpeg

    def watched(data: bytes) -> np.ndarray | None:
        pixels = original(data)
        answers.append(pixels is not None)
        return pixels

    monkeypatch.setattr(module, "_jpeg", watched)
    return answers


@pytest.mark.parametrize("size", [(75, 100), (33, 47), (1, 1), (2, 17), (64, 3)])
@pytest.mark.parametrize("how", [
    {}, {"quality": 30}, {"quality": 95, "subsampling": 0}, {"subsampling": 1}, {"progressive": True},
    {"restart_marker_blocks": 3}, {"keep_rgb": True}, {"optimize": True}], ids=str)
def test_jpeg_files_decode_to_pils_bits_by_the_faster_decoder(
        size: tuple[int, int], how: dict[str, Any], fast: list[bool]) -> None:
    data = saved(photo(0, *size), **how)
    pixels = decode(data, "x")
    assert np.array_equal(pixels, of_pil(data))
    assert pixels.flags.c_contiguous and pixels.flags.writeable and pixels.dtype == np.uint8
    gray = saved(photo(1, *size, "L"), **{key: value for key, value in how.items() if key not in ("keep_rgb",)})
    assert np.array_equal(decode(gray, "x"), of_pil(gray))
    assert fast == [True, True]


def test_other_colours_and_formats_are_pils(fast: list[bool]) -> None:
    for data in (saved(photo(2, 20, 30, "CMYK")), saved(photo(3, 20, 30), "PNG"), saved(photo(4, 20, 30, "L"), "PNG"),
                 saved(photo(5, 20, 30), "WEBP"), saved(photo(6, 20, 30, "RGBA"), "PNG")):
        assert np.array_equal(decode(data, "x"), of_pil(data))
    assert fast == []


@pytest.mark.parametrize("kind", ["cut", "changed", "zeroed", "shortened"])
def test_damaged_files_come_out_as_with_pil_alone(kind: str, fast: list[bool]) -> None:
    rng = np.random.default_rng(7)
    whole = [saved(photo(n, 60, 80), progressive=n % 2 == 1, quality=60 + 10 * n) for n in range(4)]
    readable = 0
    for case in range(80):
        data = bytearray(whole[case % 4])
        place = int(rng.integers(2, len(data)))
        if kind == "cut":
            del data[place:]
        elif kind == "changed":
            data[place] ^= int(rng.integers(1, 256))
        elif kind == "zeroed":
            data[place : place + 60] = bytes(len(data[place : place + 60]))
        else:
            del data[place : place + int(rng.integers(1, 50))]
        try:
            expected = of_pil(bytes(data))
        except Exception as error:
            with pytest.raises(CorruptSample) as found:
                decode(bytes(data), "x")
            assert found.value.reason == (str(error).split(" <_io")[0] or type(error).__name__)
        else:
            readable += 1
            assert np.array_equal(decode(bytes(data), "x"), expected)
    assert (kind == "cut") == (readable == 0)
    assert any(fast) == (kind != "cut")


def test_without_simplejpeg_pil_does_it_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "simplejpeg", None)
    data = saved(photo(0, 30, 40))
    assert np.array_equal(decode(data, "x"), of_pil(data))
    with pytest.raises(CorruptSample, match=r"^x: .*truncated"):
        decode(data[:-9], "x")


def test_what_is_no_image_is_named() -> None:
    for data, reason in ((b"", "the file is empty"), (b"text", "cannot identify image file$"),
                         (jpeg(0)[:-2], "truncated")):
        with pytest.raises(CorruptSample, match=f"^key: .*{reason}"):
            decode(data, "key")
