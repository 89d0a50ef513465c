"""Photographs that show something else, and copies of one: parts of scikit-learn's two sample images."""

import functools
import io

import numpy as np
from PIL import Image


@functools.cache
def parts():
    """Parts of two photographs that share no pixel, by name."""
    from sklearn.datasets import load_sample_images

    china, flower = map(np.array, load_sample_images().images)
    return {"left": china[:, :300], "right": china[:, 340:], "upper": flower[20:220, 200:380],
            "lower": flower[230:, 240:520]}


def picture(name):
    return Image.fromarray(parts()[name])


def jpeg(image, quality):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")


# what is done to an image so that it is still the same picture
CHANGES = {
    "half the size": lambda image: image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC),
    "strong compression": lambda image: jpeg(image, 30),
    "darker": lambda image: Image.fromarray((np.asarray(image) * 0.7 + 30).astype(np.uint8)),
    "cut at the border": lambda image: image.crop((image.width // 14, image.height // 12, image.width * 13 // 14,
                                                   image.height * 11 // 12)),
    "turned a little": lambda image: image.rotate(5, Image.Resampling.BICUBIC),
}
BY_HASH = ("half the size", "strong compression", "darker")


def changed(name, change):
    return np.asarray(CHANGES[change](picture(name)))
