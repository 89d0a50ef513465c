"""From the bytes of an image file to uint8 RGB."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from unlabeled.data.base import CorruptSample

EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm")


def decode(data: bytes, key: str) -> np.ndarray:
    """Return the image in `data` as uint8 RGB [H, W, 3], as PIL's convert("RGB") gives it.

    Orientation tags are ignored and transparency is dropped, as torchvision's image folders do; 16-bit gray keeps its
    high byte, where convert() would clip. Raises CorruptSample with `key` for bytes that do not decode to their end.
    """
    if not data:
        raise CorruptSample(key, "the file is empty")
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.mode in ("I", "F") or image.mode.startswith("I;16"):
                return _deep_gray(image)
            return np.array(image if image.mode == "RGB" else image.convert("RGB"))
    except MemoryError:
        raise
    except Exception as error:  # decoders raise almost anything on damaged bytes (OSError, SyntaxError, ...)
        raise CorruptSample(key, str(error) or type(error).__name__) from error


def _deep_gray(image: Image.Image) -> np.ndarray:
    values = np.asarray(image)
    gray = values.astype(np.int64) >> 8 if image.mode != "F" else np.clip(values, 0, 255)
    return np.repeat(np.clip(gray, 0, 255).astype(np.uint8)[..., None], 3, axis=2)
