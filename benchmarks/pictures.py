"""Pictures to measure with, and sets made of them: nothing is downloaded."""

from __future__ import annotations

import functools
import io
import itertools
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

CARD = """\
name: {name}
source: {{kind: {kind}}}
root: {root}
splits:
  train: {{path: "{path}"}}
mean: [0.485, 0.456, 0.406]
std: [0.229, 0.224, 0.225]
"""


def photographs(n: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return n different photographs, uint8 [n, height, width, 3]: parts of scikit-learn's two sample images.

    Parts lie at random places, mirrored or not, with the colour channels in random order. Where less than half of a
    sample image is wanted they are of random size and reduced.
    """
    rng = np.random.default_rng(seed)
    sources = _sources()
    out = np.empty((n, height, width, 3), np.uint8)
    for i in range(n):
        source = sources[rng.integers(len(sources))]
        largest = min(source.shape[0] / height, source.shape[1] / width)
        scale = rng.uniform(largest / 4, largest) if largest > 2 else 1.0
        tall, wide = int(height * scale), int(width * scale)
        top, left = rng.integers(source.shape[0] - tall + 1), rng.integers(source.shape[1] - wide + 1)
        part = source[top : top + tall, left : left + wide]
        if scale > 1:
            smaller = Image.fromarray(part).resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2)
            part = np.asarray(smaller)
        out[i] = part
    return out


@functools.cache
def _sources() -> list[np.ndarray]:
    from sklearn.datasets import load_sample_images

    return [
        np.ascontiguousarray(image[:, ::direction, list(channels)])
        for image in load_sample_images().images
        for direction in (1, -1)
        for channels in itertools.permutations(range(3))
    ]


def array_set(folder: Path, images: np.ndarray) -> Path:
    """Write images as an array that is held in memory, and return its data card."""
    np.savez(folder / "train.npz", images=images)
    return _card(folder, "photographs in memory", "array", "train.npz")


def jpeg_set(folder: Path, images: np.ndarray, shards: int = 2) -> Path:
    """Write images as JPEG files of quality 90 in tar shards, and return their data card.

    They get the grain of a noisy camera: 500 x 375 pixels then take 80 KB, where those of ImageNet take about 110.
    """
    rng = np.random.default_rng(0)
    for shard in range(shards):
        with tarfile.open(folder / f"train-{shard:06d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            for number in range(shard, len(images), shards):
                grain = rng.normal(0, 8, (*images[number].shape[:2], 1))
                data = jpeg(np.clip(images[number] + grain, 0, 255).astype(np.uint8))
                member = tarfile.TarInfo(f"{number:06d}.jpg")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return _card(folder, "photographs as JPEG", "shards", f"train-{{000000..{shards - 1:06d}}}.tar")


def jpeg(image: np.ndarray) -> bytes:
    """Return one image as a JPEG file of quality 90."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _card(folder: Path, name: str, kind: str, path: str) -> Path:
    card = folder / "card.yaml"
    card.write_text(CARD.format(name=name, kind=kind, root=folder, path=path))
    return card
