"""Sources whose samples are videos: files below one folder, and members of tar shards."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO

import numpy as np

from unlabeled.config.card import Card, VideoShards
from unlabeled.data.sources.base import CorruptSample, Source
from unlabeled.data.sources.files.kept import Stamp, stamps_of
from unlabeled.data.sources.folder import FolderSource
from unlabeled.data.sources.tar.shards import ShardSource, shard_files
from unlabeled.data.sources.video.frames import Timeline, measure, read, refuse_no_decoder
from unlabeled.data.sources.video.index import VideoIndex, load_index


class Videos(Source):
    """What sources of videos share; an image is the middle frame.

    What their frames are is listed when they are opened, see `index`; those of which none is found are `unreadable`.
    """

    has_clips = True
    index: VideoIndex

    def opened(self, index: int) -> AbstractContextManager[IO[bytes]]:
        """Open the file of a video. Raises CorruptSample."""
        raise NotImplementedError

    def list_frames(self, folder: Path, paths: Sequence[str], stamps: Sequence[Stamp]) -> None:
        """List the frames of all videos, which are told apart by their paths below a folder."""
        refuse_no_decoder()
        self.index = load_index(folder, paths, stamps, self._measured)
        self.unreadable = {i: self.index.reasons[i] for i in np.flatnonzero(self.index.lengths == 0).tolist()}

    def length(self, index: int) -> int:
        """Return the number of frames of a video, 0 of an unreadable one."""
        return int(self.index.lengths[index])

    def rate(self, index: int) -> float:
        """Return the frames per second of a video."""
        return float(self.index.rates[index])

    def clip(self, index: int, frames: np.ndarray) -> np.ndarray:
        """Return frames of a video, uint8 [..., H, W, 3], by their numbers [...]. Raises CorruptSample."""
        if index in self.unreadable:
            raise CorruptSample(self.key(index), self.unreadable[index])
        return read(lambda: self.opened(index), self.index[index], frames, self.key(index), upright=self.pixels.upright)

    def image(self, index: int) -> np.ndarray:
        """Return the middle frame, uint8 [H, W, 3]. Raises CorruptSample."""
        return self.clip(index, np.array(self.length(index) // 2))

    def _measured(self, index: int) -> Timeline:
        return measure(lambda: self.opened(index), self.key(index))


class VideoSource(Videos, FolderSource):
    """Video files below one folder; a key is the path below it."""

    def __init__(self, name: str, split: str, folder: Path, paths: list[str]) -> None:
        FolderSource.__init__(self, name, split, folder, paths)
        self.list_frames(folder, paths, stamps_of([os.path.join(folder, path) for path in paths]))

    def opened(self, index: int) -> AbstractContextManager[IO[bytes]]:
        """Open the file of a video. Raises CorruptSample."""
        return FolderSource.opened(self, index)


class VideoShardSource(Videos, ShardSource):
    """Videos in tar shards, each of which is read whole."""

    def __init__(self, name: str, split: str, tars: list[Path], rule: VideoShards, classes: list[str] | None) -> None:
        ShardSource.__init__(self, name, split, tars, rule.image, rule.label, classes)
        files = stamps_of([str(tar) for tar in tars])
        spots = self.spots(np.arange(len(self)))  # keys may stand in several shards
        self.list_frames(tars[0].parent, [f"{tars[shard].name}:{start}" for shard, start in spots],
                         [files[shard] for shard, _ in spots])

    def opened(self, index: int) -> AbstractContextManager[IO[bytes]]:
        """Return the bytes of a video. Raises CorruptSample."""
        return io.BytesIO(self.raw(index))


def open_video_shards(card: Card, split: str, root: str | None) -> Source:
    """Open the shards of a split. Raises UserError that names a missing, truncated or strange shard."""
    rule = card.source
    assert isinstance(rule, VideoShards)
    return VideoShardSource(card.name, split, shard_files(card, split, root), rule, card.classes)
