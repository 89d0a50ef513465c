"""Image files of every format, what PIL makes of them, and how a kind of set is damaged."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from benchmarks.fuzz_bytes import Random, damaged, damaged_text
from unlabeled.data.sources.base import CorruptSample, Pixels
from unlabeled.data.sources.decode import decode

PHOTO = np.linspace(0, 255, 24 * 16 * 3).reshape(24, 16, 3).astype(np.uint8)
DEEP = (PHOTO[..., 0].astype(np.uint16) << 8) | PHOTO[..., 1]


class Wrong(AssertionError):
    """An answer that is neither right nor a refusal."""


@dataclass(frozen=True)
class Kind:
    """A kind of set: its files by path, which of them are text, and what reads them whole.

    read: given the folder of the set, raises UserError or CorruptSample for what it refuses, Wrong for wrong answers.
    """

    files: dict[str, bytes]
    read: Callable[[Path], None]
    text: tuple[str, ...] = ()

    def write(self, folder: Path, random: Random) -> str:
        """Write the set with one damaged file, and return that file's path below `folder`."""
        names = list(self.files)
        name = names[int(random.integers(len(names)))]
        for each, data in self.files.items():
            path = folder / each
            path.parent.mkdir(parents=True, exist_ok=True)
            if each == name:
                data = (damaged_text if each.endswith(self.text or ("?",)) else damaged)(data, random)
            path.write_bytes(data)
        return name


def image_files() -> dict[str, bytes]:
    """Return one valid image file of every kind that PIL writes."""
    exif = Image.Exif()
    exif[0x0112] = 6
    rgb, gray = Image.fromarray(PHOTO), Image.fromarray(PHOTO[..., 0])
    deep, real = Image.fromarray(DEEP), Image.fromarray(PHOTO[..., 0].astype(np.float32) / 255)
    turned, both = {"exif": exif}, {"save_all": True, "append_images": [rgb.rotate(180)]}
    forms: list[tuple[str, str, Image.Image, dict[str, Any]]] = [
        ("plain.jpg", "JPEG", rgb, {}), ("gray.jpg", "JPEG", gray, {}), ("turned.jpg", "JPEG", rgb, turned),
        ("progressive.jpg", "JPEG", rgb, {"progressive": True}), ("cmyk.jpg", "JPEG", rgb.convert("CMYK"), {}),
        ("restart.jpg", "JPEG", rgb, {"restart_marker_blocks": 1}), ("plain.png", "PNG", rgb, {}),
        ("palette.png", "PNG", rgb.quantize(16), {"transparency": 3}), ("alpha.png", "PNG", gray.convert("LA"), {}),
        ("turned.png", "PNG", rgb, turned), ("deep.png", "PNG", deep, {}), ("bits.png", "PNG", gray.convert("1"), {}),
        ("frames.png", "PNG", rgb, both), ("lossy.webp", "WEBP", rgb, {}), ("frames.webp", "WEBP", rgb, both),
        ("lossless.webp", "WEBP", rgb, {"lossless": True, **turned}), ("plain.gif", "GIF", rgb, {}),
        ("frames.gif", "GIF", rgb, both), ("plain.bmp", "BMP", rgb, {}), ("palette.bmp", "BMP", rgb.quantize(16), {}),
        ("plain.tif", "TIFF", rgb, {}), ("turned.tif", "TIFF", rgb, turned), ("frames.tif", "TIFF", rgb, both),
        ("lzw.tif", "TIFF", rgb, {"compression": "tiff_lzw"}), ("deep.tif", "TIFF", deep, {}),
        ("deflate.tif", "TIFF", deep, {"compression": "tiff_deflate"}), ("float.tif", "TIFF", real, {}),
        ("jpeg.tif", "TIFF", rgb, {"compression": "jpeg"}), ("cmyk.tif", "TIFF", rgb.convert("CMYK"), {}),
        ("plain.ppm", "PPM", rgb, {}), ("deep.pgm", "PPM", deep, {}), ("plain.jp2", "JPEG2000", rgb, {}),
        ("deep.jp2", "JPEG2000", deep, {}), ("plain.avif", "AVIF", rgb, {}), ("turned.avif", "AVIF", rgb, turned),
        ("plain.mpo", "MPO", rgb, both), ("plain.ico", "ICO", rgb, {}), ("plain.tga", "TGA", rgb, {}),
        ("plain.pcx", "PCX", rgb, {}), ("plain.sgi", "SGI", rgb, {}), ("plain.dds", "DDS", rgb, {}),
        ("plain.qoi", "QOI", rgb, {})]
    Image.init()
    found = {}
    for name, form, image, how in forms:
        if form in Image.SAVE:
            buffer = io.BytesIO()
            image.save(buffer, form, **how)
            found[name] = buffer.getvalue()
    found["text.pgm"] = b"P2 2 2 4095\n# a comment\n0 2048 4095 9\n"
    return found


def by_pil(data: bytes) -> np.ndarray:
    """Return what the documented rules make of PIL's own decoding, uint8 RGB [H, W, 3]. Raises what PIL raises."""
    with Image.open(io.BytesIO(data)) as image:
        if image.format == "EPS":
            raise ValueError("refused")
        tags = getattr(image, "tag_v2", {})
        form, mode, bits, white = image.format, image.mode, tags.get(258, (16,))[0], tags.get(262)
        image.load()
        if 0 in image.size:
            raise ValueError("refused")
        try:
            turned = ImageOps.exif_transpose(image)
        except Exception:  # damaged metadata
            turned = image
        if form == "TIFF" and mode == "L" and tags.get(339, (1,))[0] == 2:
            raise ValueError("refused")
        if mode not in ("I", "F") and not mode.startswith("I;16"):
            return np.array(turned.convert("RGB"))
        values = np.asarray(turned)
        if mode == "F":
            if not (values.min() >= 0 and values.max() <= 1):  # NaN neither
                raise ValueError("refused")
            values = np.rint(values.astype(float) * 255)
        elif (mode == "I" and form in ("PNG", "PPM")) or (mode != "I" and form in ("PNG", "PPM", "TIFF", "JPEG2000")):
            values = np.minimum(values.astype(np.int64) >> (bits - 8), 255)
        else:
            raise ValueError("refused")
        values = 255 - values if white == 0 else values
        return np.repeat(values.astype(np.uint8)[..., None], 3, axis=2)


def read_image(folder: Path) -> None:
    """Decode the one file of a folder and compare the pixels with PIL's, also those that are not turned."""
    (path,) = folder.iterdir()
    data = path.read_bytes()
    try:
        expected: np.ndarray | None = by_pil(data)
    except Exception:
        expected = None
    try:
        pixels = decode(data, path.name)
    except CorruptSample:
        if expected is not None:
            raise Wrong("refused, but PIL reads it") from None
        raise
    if expected is None:
        raise Wrong("read, but PIL refuses it")
    if pixels.dtype != np.uint8 or not np.array_equal(pixels, expected):
        raise Wrong(f"{pixels.shape} differs from PIL's {expected.shape}")
    stored = decode(data, path.name, Pixels(upright=False))
    if sorted(stored.shape) != sorted(pixels.shape) or stored.sum(dtype=np.int64) != pixels.sum(dtype=np.int64):
        raise Wrong("the pixels that are not turned are others")
