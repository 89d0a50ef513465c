"""Videos in files below one folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from unlabeled.data.sources.base import CorruptSample
from unlabeled.data.sources.folder import FolderSource
from unlabeled.data.sources.video.frames import Timeline, measure, read, refuse_no_decoder
from unlabeled.data.sources.video.index import load_index


class VideoSource(FolderSource):
    """Video files below one folder; a key is the path below it, an image the middle frame.

    What their frames are is listed when they are opened, see `index`; those of which none is found are `unreadable`.
    """

    has_clips = True

    def __init__(self, name: str, split: str, folder: Path, paths: list[str]) -> None:
        refuse_no_decoder()
        super().__init__(name, split, folder, paths)
        self.index = load_index(folder, self.paths, self._measured)
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
            raise CorruptSample(self.paths[index], self.unreadable[index])
        return read(lambda: self.opened(index), self.index[index], frames, self.paths[index],
                    upright=self.pixels.upright)

    def image(self, index: int) -> np.ndarray:
        """Return the middle frame, uint8 [H, W, 3]. Raises CorruptSample."""
        return self.clip(index, np.array(self.length(index) // 2))

    def _measured(self, index: int) -> Timeline:
        return measure(lambda: self.opened(index), self.paths[index])
