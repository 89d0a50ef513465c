"""From the bytes of an image file to uint8 RGB."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from unlabeled.data.base import SYSTEM_ERRORS, CorruptSample

try:
    import simplejpeg
except ImportError:  # there is no wheel for some platforms
    simplejpeg = None

EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm")


def decode(data: bytes, key: str) -> np.ndarray:
    """Return the image in `data` as uint8 RGB [H, W, 3], as PIL's convert("RGB") gives it.

    Orientation tags are ignored and transparency is dropped, as torchvision's image folders do; 16-bit gray keeps its
    high byte, where convert() would clip. Raises CorruptSample with `key` for bytes that do not decode to their end.
    JPEG files are decoded by simplejpeg, to the same pixels in less time; of what it refuses PIL decides.
    """
    if not data:
        raise CorruptSample(key, "the file is empty")
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.format == "JPEG" and image.mode in ("RGB", "L"):  # other colours are converted in different ways
                pixels = _jpeg(data)
                if pixels is not None and pixels.shape == (image.height, image.width, 3):
                    return pixels
            if image.mode in ("I", "F") or image.mode.startswith("I;16"):
                return _deep_gray(image)
            return np.array(image if image.mode == "RGB" else image.convert("RGB"))
    except MemoryError:
        raise
    except Exception as error:  # decoders raise almost anything on damaged bytes (OSError, SyntaxError, ...)
        if isinstance(error, OSError) and error.errno in SYSTEM_ERRORS:
            raise
        reason = str(error).partition(" <_io")[0]  # PIL names the object in memory
        raise CorruptSample(key, reason or type(error).__name__) from error


def _deep_gray(image: Image.Image) -> np.ndarray:
    values = np.asarray(image)
    gray = values.astype(np.int64) >> 8 if image.mode != "F" else np.clip(values, 0, 255)
    return np.repeat(np.clip(gray, 0, 255).astype(np.uint8)[..., None], 3, axis=2)


def _jpeg(data: bytes) -> np.ndarray | None:
    if simplejpeg is None:
        return None
    try:
        return simplejpeg.decode_jpeg(data, "RGB")
    except ValueError:  # damaged, be it ever so little, or of a kind that it does not know
        return None
