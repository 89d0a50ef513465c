"""The timelines of all videos of a folder, listed once and kept in the user's cache folder."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from unlabeled.data.sources.base import CorruptSample
from unlabeled.data.sources.files.kept import Stamp, cache_folder, keep
from unlabeled.data.sources.fingerprint import Names
from unlabeled.data.sources.video.frames import Timeline
from unlabeled.ops.distributed import rank

_VERSION = 2
_SAVED = 60.0  # seconds after which a long listing is kept as far as it is, so that a stopped one goes on
_MANY = 200  # videos whose listing is worth a line


class Packed:
    """Arrays of different lengths behind one another, int64: two buffers, shared with forked workers."""

    def __init__(self, rows: Sequence[np.ndarray]) -> None:
        self.ends = np.cumsum([len(row) for row in rows], dtype=np.int64)
        self.values = np.concatenate([np.empty(0, np.int64), *rows]).astype(np.int64)

    @classmethod
    def from_buffers(cls, values: np.ndarray, ends: np.ndarray) -> Packed:
        """Rebuild what `values` and `ends` held."""
        packed = cls([])
        packed.values, packed.ends = values, ends
        return packed

    def __getitem__(self, index: int) -> np.ndarray:
        return self.values[int(self.ends[index - 1]) if index else 0 : int(self.ends[index])]


@dataclass
class VideoIndex:
    """What is known of n videos. stamps: int64 [n, 2], as Stamp. lengths: int64 [n], frames, 0 of unreadable ones.

    rates: float64 [n], frames per second. reasons: why a video is unreadable, "" if it is not. clocks: int64 [n, 2],
    time of the first frame and step to the next; the step is 0 where steps differ, then `times` has all of them, and -1
    where the file does not tell. keys: see `Timeline`.
    """

    stamps: np.ndarray
    lengths: np.ndarray
    rates: np.ndarray
    reasons: Names
    clocks: np.ndarray
    times: Packed
    keys: Packed

    def __getitem__(self, index: int) -> Timeline:
        start, step = self.clocks[index].tolist()
        length = int(self.lengths[index])
        times = self.times[index] if step == 0 else start + max(step, 1) * np.arange(length)
        return Timeline(times, self.keys[index], float(self.rates[index]), step < 0)

    def entry(self, index: int) -> Timeline | str:
        """Return a timeline, or why there is none."""
        return self.reasons[index] or self[index]


def pack(stamps: Sequence[Stamp], entries: Sequence[Timeline | str]) -> VideoIndex:
    """Return the index of these timelines, or reasons why there is none."""
    empty = Timeline(np.empty(0, np.int64), np.empty(0, np.int64), 0.0)
    lines = [empty if isinstance(entry, str) else entry for entry in entries]
    clocks = [_clock(line) for line in lines]
    return VideoIndex(
        np.array(stamps, np.int64).reshape(-1, 2),
        np.array([len(line) for line in lines], np.int64),
        np.array([line.rate for line in lines], np.float64),
        Names(entry if isinstance(entry, str) else "" for entry in entries),
        np.array(clocks, np.int64).reshape(-1, 2),
        Packed([empty.times if step else line.times for line, (_, step) in zip(lines, clocks, strict=True)]),
        Packed([line.keys for line in lines]),
    )


def _clock(timeline: Timeline) -> tuple[int, int]:
    if timeline.counted:
        return 0, -1
    if len(timeline) == 0:
        return 0, 1
    steps = np.unique(np.diff(timeline.times))
    return int(timeline.times[0]), (1 if len(steps) == 0 else int(steps[0]) if len(steps) == 1 else 0)


def load_index(folder: Path, paths: Sequence[str], stamps: Sequence[Stamp], measured: Callable[[int], Timeline],
               ) -> VideoIndex:
    """Return the index of the videos at `paths` below a folder; those that are new or changed are listed anew.

    stamps: of their files. measured: lists the frames of the n-th one, or raises CorruptSample. A kept file that is
    damaged is made again; so is one that cannot be written, at every start.
    """
    cache = cache_folder("videos")
    place = None if cache is None else cache / (
        hashlib.blake2b(os.fsencode(folder.absolute()), digest_size=16).hexdigest() + ".videos")
    kept = {} if place is None else _read(place)
    known = {path: kept[path] for path, stamp in zip(paths, stamps, strict=True)
             if path in kept and kept[path][0] == stamp}
    new = [number for number, path in enumerate(paths) if path not in known]
    if new:
        saved = time.monotonic()
        for number, entry in _listed(folder, new, measured):
            known[paths[number]] = stamps[number], entry
            if place is not None and time.monotonic() - saved > _SAVED:
                _keep(place, kept | known)
                saved = time.monotonic()
        if place is not None:
            _keep(place, kept | known)
    return pack(stamps, [known[path][1] for path in paths])


def _listed(folder: Path, numbers: Sequence[int], measured: Callable[[int], Timeline],
            ) -> Iterator[tuple[int, Timeline | str]]:
    """Yield videos with their timelines, or why there is none."""
    def entry(number: int) -> Timeline | str:
        try:
            return measured(number)
        except CorruptSample as error:
            return error.reason

    if len(numbers) >= _MANY and rank() == 0:
        print(f"{folder}: the frames of {len(numbers)} videos are listed, once", file=sys.stderr)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:  # the library reads without Python's lock
        yield from zip(numbers, threads.map(entry, numbers), strict=True)


def _keep(place: Path, entries: dict[str, tuple[Stamp, Timeline | str]]) -> None:
    index = pack([stamp for stamp, _ in entries.values()], [entry for _, entry in entries.values()])
    keep([place], lambda file: _fill(file, Names(entries), index))


def _fill(file: IO[bytes], paths: Names, index: VideoIndex) -> None:
    arrays = {"version": np.array(_VERSION), "stamps": index.stamps, "lengths": index.lengths, "rates": index.rates,
              "clocks": index.clocks}
    for name, texts in (("paths", paths), ("reasons", index.reasons)):
        arrays |= {f"{name}.text": np.frombuffer(texts.text, np.uint8), f"{name}.ends": texts.ends}
    for name, packed in (("times", index.times), ("keys", index.keys)):
        arrays |= {f"{name}.values": packed.values, f"{name}.ends": packed.ends}
    np.savez(file, **arrays)  # type: ignore[arg-type]


def _read(place: Path) -> dict[str, tuple[Stamp, Timeline | str]]:
    try:
        with np.load(place, allow_pickle=False) as file:
            if int(file["version"]) != _VERSION:
                return {}
            paths, reasons = (Names.from_buffers(file[f"{name}.text"].tobytes(), file[f"{name}.ends"])
                              for name in ("paths", "reasons"))
            times, keys = (Packed.from_buffers(file[f"{name}.values"], file[f"{name}.ends"])
                           for name in ("times", "keys"))
            index = VideoIndex(file["stamps"], file["lengths"], file["rates"], reasons, file["clocks"], times, keys)
        return {paths[i]: ((int(index.stamps[i, 0]), int(index.stamps[i, 1])), index.entry(i))
                for i in range(len(paths))}
    except Exception:  # missing, or damaged, for which NumPy raises almost anything: the videos are listed again
        return {}
