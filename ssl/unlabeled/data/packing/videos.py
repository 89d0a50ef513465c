"""Packing videos into tar shards: as they are, or smaller and with a key frame every 16, which makes clips cheap."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
from PIL import Image

from unlabeled.config.pack import PackSettings
from unlabeled.data.packing.parts import Packer, Piece, Tally
from unlabeled.data.sources.base import CorruptSample
from unlabeled.data.sources.video.frames import shrunk
from unlabeled.data.sources.video.source import Videos


class VideoPacker(Packer):
    """Writes shards of videos; what is told of their pixels is that of the middle frames."""

    def _files(self, unit: Piece, tally: Tally) -> Iterator[tuple[int, bytes, str]]:
        source = self.sources[unit.split]
        assert isinstance(source, Videos)
        for index in unit.indices.tolist():
            try:
                image = source.image(index)
                data, extension = packed(source, index, self.settings)
            except CorruptSample as error:
                tally.unreadable.append((index, error.key, error.reason))
                continue
            tally.add(Image.fromarray(np.ascontiguousarray(image)), extension)
            yield index, data, extension


def packed(source: Videos, index: int, settings: PackSettings) -> tuple[bytes, str]:
    """Return what is stored of a video, and its extension. Raises CorruptSample."""
    key = source.key(index)
    if settings.short_side is not None:
        return shrunk(lambda: source.opened(index), key, settings.short_side, upright=source.pixels.upright), "mp4"
    with source.opened(index) as file:
        return file.read(), os.path.splitext(key)[1][1:].lower() or "mp4"
