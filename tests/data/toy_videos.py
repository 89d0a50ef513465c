"""Small video files that tests write themselves: each frame tells its number."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unlabeled.data.sources.video.frames import File, Timeline, measure

av = pytest.importorskip("av", reason="PyAV reads videos; it is part of the extra video")

LATE = (np.cumsum(np.random.default_rng(0).integers(1, 5, 60)) + 7).tolist()
# name of a file -> how `write_video` writes it
KINDS: dict[str, dict[str, Any]] = {
    "one-gop.mp4": {}, "short-gop.mp4": {"g": "8"}, "b-frames.mkv": {"g": "12", "bf": "3"},
    "open-gop.mp4": {"g": "12", "x264-params": "open-gop=1:bframes=3"},
    "late-variable.mp4": {"times": LATE, "g": "12"}, "late-variable.mkv": {"times": LATE, "g": "12"},
    "10-bit.mp4": {"pixels": "yuv420p10le"}, "10-bit.mov": {"codec": "prores_ks", "pixels": "yuv422p10le"},
    "gray.mp4": {"pixels": "gray"}, "full-range.mp4": {"pixels": "yuvj420p"},
    "interlaced.mp4": {"x264-params": "tff=1:interlaced=1"},
    "interlaced.mpg": {"codec": "mpeg2video", "flags": "+ilme+ildct", "g": "12"}, "stream.ts": {"g": "12"},
    "vp8.webm": {"codec": "libvpx", "auto-alt-ref": "1", "lag-in-frames": "16", "g": "20"},
    "vp9.webm": {"codec": "libvpx-vp9"}, "mpeg4.avi": {"codec": "mpeg4", "g": "12"},
    "mpeg4-b.avi": {"codec": "mpeg4", "bf": "2", "g": "12"}, "h264-b.avi": {"g": "12", "bf": "3"},
    "motion.avi": {"codec": "mjpeg", "pixels": "yuvj420p"}, "program.mpg": {"codec": "mpeg1video"},
    "old.wmv": {"codec": "wmv2", "g": "12"}, "old.flv": {"codec": "flv1"},
}


def numbered(n: int, height: int = 32, width: int = 48, first: int = 0) -> np.ndarray:
    """Return frames, uint8 [n, H, W, 3], whose gray is 10 + 3 times their number, darker towards the right."""
    level = 10 + 3 * (first + np.arange(n))[:, None, None] * np.ones((1, height, width))
    level[:, :, width // 2 :] /= 2
    return np.repeat(level.round()[..., None], 3, 3).astype(np.uint8)


def coloured(n: int, height: int = 32, width: int = 48) -> np.ndarray:
    """Return frames, uint8 [n, H, W, 3], of squares of random colours that move, with other colours in every frame."""
    squares = np.random.default_rng(0).integers(0, 256, (n, -(-height // 6), -(-width // 6), 3), np.uint8)
    pictures = squares.repeat(6, 1).repeat(6, 2)[:, :height, :width]
    return np.stack([np.roll(picture, number, 1) for number, picture in enumerate(pictures)])


def number_of(picture: np.ndarray) -> int:
    """Return the number that a frame, uint8 [H, W, 3] or [3, H, W], of `numbered` tells, by its brightest pixels."""
    return round((float(np.percentile(picture, 95)) - 10) / 3)


def opener(path: Path) -> File:
    """Return what opens a file anew."""
    return functools.partial(open, path, "rb", buffering=0)


def timeline(path: Path) -> Timeline:
    """Return when the frames of a file are shown."""
    return measure(opener(path), path.name)


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


def write_kind(path: Path, frames: np.ndarray) -> Path:
    """Write frames as the kind of file that the name tells, or skip the test where this PyAV cannot."""
    try:
        return write_video(path, frames, **KINDS[path.name])
    except av.FFmpegError as error:
        pytest.skip(f"this PyAV does not write it: {error}")


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
