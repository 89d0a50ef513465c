"""Small video files that tests write themselves: each frame tells its number."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

av = pytest.importorskip("av", reason="PyAV reads videos; it is part of the extra video")


def numbered(n: int, height: int = 32, width: int = 48, first: int = 0) -> np.ndarray:
    """Return frames, uint8 [n, H, W, 3], whose gray is 10 + 3 times their number, darker towards the right."""
    level = 10 + 3 * (first + np.arange(n))[:, None, None] * np.ones((1, height, width))
    level[:, :, width // 2 :] /= 2
    return np.repeat(level.round()[..., None], 3, 3).astype(np.uint8)


def number_of(picture: np.ndarray) -> int:
    """Return the number that a frame, uint8 [H, W, 3] or [3, H, W], of `numbered` tells, by its brightest pixels."""
    return round((float(np.percentile(picture, 95)) - 10) / 3)


def write_video(path: Path, frames: np.ndarray, codec: str = "libx264", pixels: str = "yuv420p",
                times: Sequence[int] | None = None, rotation: int | None = None, rate: int = 30,
                **options: str) -> Path:
    """Write frames, uint8 [n, H, W, 3]; times: when they are shown, in 1 / rate seconds; options: of the codec."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width, stream.pix_fmt, stream.thread_count = *frames.shape[1:3], pixels, 1
        if rotation is not None:
            stream.set_display_rotation(rotation)
        for number, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if times is not None:
                frame.pts = times[number]
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_sound(path: Path) -> Path:
    """Write a file of sound without pictures."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("aac", rate=16000)
        for _ in range(20):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.rate = 16000
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_classes(root: Path, each: int, size: int = 24) -> Path:
    """Write `each` videos of noise per split and class, train and val, a and b, as the card classvideos reads them."""
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind in ("a", "b"):
            for number in range(each):
                frames = random.integers(0, 256, (12, size // 4, size // 4, 3), np.uint8).repeat(4, 1).repeat(4, 2)
                write_video(root / split / kind / f"{number}.mkv", frames, "ffv1")
    return root
