"""Which frames of a video become clips: drawn from uniform numbers, or evenly spread over it.

The joint law of two clips is that of CVRL (arXiv 2008.03800); a clip that is longer than its video wraps around.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal, Self

import numpy as np

from unlabeled.config.augment import Clip
from unlabeled.data.batch import Clips
from unlabeled.data.sources.base import Source
from unlabeled.errors import UserError

Law = Literal["decreasing", "uniform", "increasing"]


@dataclass(frozen=True)
class Interval:
    """The law of the gap between two clips on [0, T) frames; its power is that of the bend, uniform has none.

    decreasing: density proportional to 1 - (t / T) ** power (CVRL's); increasing: to (t / T) ** power.
    """

    power: float = 1.0
    law: Law = "decreasing"

    def pmf(self, offsets: int) -> np.ndarray:
        """Return the probabilities, float64 [T], of gaps 0 to T - 1 for T `offsets`."""
        return np.diff(self._below(np.arange(offsets + 1), offsets))

    def gap(self, uniform: float, offsets: int) -> int:
        """Return the largest gap below T `offsets` whose probability of smaller ones is at most `uniform`."""
        return int(np.searchsorted(self._below(np.arange(offsets), offsets), uniform, "right")) - 1

    def _below(self, gaps: np.ndarray, offsets: int) -> np.ndarray:
        share = gaps / offsets
        if self.law == "uniform":
            return share
        if self.law == "increasing":
            return share ** (self.power + 1)
        return ((self.power + 1) * share - share ** (self.power + 1)) / self.power


@dataclass(frozen=True)
class Spacing:
    """How the frames of a clip follow one another, and how many there are.

    stride: frames of the video from one to the next. per_second: frames of the clip per second of the video, in place
    of the stride; of a video whose frames per second nobody knows the stride is taken.
    """

    frames: int
    stride: int = 1
    per_second: float | None = field(default=None, kw_only=True)

    @classmethod
    def of(cls, cfg: Clip) -> Self:
        """Return the spacing that options ask for."""
        return cls(cfg.frames, cfg.stride, per_second=cfg.per_second)

    def strides(self, rates: np.ndarray) -> np.ndarray:
        """Return strides, float64 [n], in videos of `rates` [n] frames per second (0: unknown)."""
        fixed = np.full(len(rates), float(self.stride))
        return fixed if self.per_second is None else np.where(rates > 0, rates / self.per_second, fixed)


def offsets(length: int, frames: int, stride: float) -> int:
    """Return T, at how many frames of a video a clip may start: all of them if none leaves room for the clip."""
    last = int((frames - 1) * stride)
    return length - last if length > last else length


def frame_indices(start: int, frames: int, stride: float, length: int) -> np.ndarray:
    """Return the frames, int64 [frames], of a clip; behind the last frame of the video comes its first."""
    return (start + (np.arange(frames) * stride).astype(np.int64)) % length


def even_starts(length: int, frames: int, stride: float, count: int) -> np.ndarray:
    """Return `count` starts, int64, evenly spread from 0 to length - frames * stride; a single one is in the middle."""
    last = max(0.0, length - frames * stride)
    return np.linspace(0, last, count).astype(np.int64) if count > 1 else np.array([int(last / 2)], np.int64)


@dataclass(frozen=True)
class ClipPair(Spacing):
    """Two clips of one video, drawn jointly: a gap by its law, the earlier start uniform, which is first by a coin.

    In a video without room for a clip both starts are uniform over all of it, independent of each other.
    """

    power: float = 1.0
    law: Law = "decreasing"
    count: ClassVar[int] = 2
    draws: ClassVar[int] = 4  # gap, two starts, coin

    def places(self, uniforms: np.ndarray, lengths: np.ndarray, rates: np.ndarray) -> np.ndarray:
        """Turn uniforms [n, 4], lengths [n] in frames and frames per second [n] into frames, int64 [n, 2, frames]."""
        out = np.empty((len(lengths), 2, self.frames), np.int64)
        for row, (length, stride) in enumerate(zip(lengths.tolist(), self.strides(rates).tolist(), strict=True)):
            for clip, start in enumerate(self.starts(uniforms[row], length, stride)):
                out[row, clip] = frame_indices(start, self.frames, stride, length)
        return out

    def starts(self, uniforms: np.ndarray, length: int, stride: float) -> tuple[int, int]:
        """Turn four uniforms (gap, two starts, coin) into the first frames of both clips."""
        gap, first, second, coin = uniforms.tolist()
        room = offsets(length, self.frames, stride)
        if length > int((self.frames - 1) * stride):
            gap = Interval(self.power, self.law).gap(gap, room)
            one = int(first * (room - gap))
            other = one + gap
        else:
            one, other = int(first * room), int(second * room)
        return (other, one) if coin >= 0.5 else (one, other)


@dataclass(frozen=True)
class RandomClip(Spacing):
    """One clip that starts anywhere in the video where it has room."""

    count: ClassVar[int] = 1
    draws: ClassVar[int] = 1

    def places(self, uniforms: np.ndarray, lengths: np.ndarray, rates: np.ndarray) -> np.ndarray:
        """Turn uniforms [n, 1], lengths [n] in frames and frames per second [n] into frames, int64 [n, 1, frames]."""
        return np.stack([
            frame_indices(int(uniform * offsets(length, self.frames, stride)), self.frames, stride, length)[None]
            for uniform, length, stride in zip(uniforms[:, 0], lengths.tolist(), self.strides(rates), strict=True)])


@dataclass(frozen=True)
class EvenClips(Spacing):
    """`count` clips, evenly spread over the video: those of evaluations; a single one is in its middle."""

    count: int = 1
    draws: ClassVar[int] = 0

    def places(self, uniforms: np.ndarray, lengths: np.ndarray, rates: np.ndarray) -> np.ndarray:
        """Turn lengths [n] in frames and frames per second [n] into frames, int64 [n, count, frames]."""
        return np.stack([
            np.stack([frame_indices(start, self.frames, stride, length)
                      for start in even_starts(length, self.frames, stride, self.count).tolist()])
            for length, stride in zip(lengths.tolist(), self.strides(rates), strict=True)])


def refuse_no_clips(source: Source) -> None:
    """Raise UserError if the samples of a source are no videos."""
    if not source.has_clips:
        raise UserError(f"split '{source.split}' of data card '{source.name}' holds images, and videos are needed: use "
                        "a card such as moving-shapes, videos or classvideos")


def clips_of(source: Source, clips: Clips, draw: np.ndarray, index: int) -> np.ndarray:
    """Return the clips, uint8 [count, T, H, W, 3], of a video by uniforms [1, draws]. Raises CorruptSample."""
    length, rate = source.length(index), source.rate(index)
    return source.clip(index, clips.places(draw, np.array([length]), np.array([rate]))[0])
