"""Which images of one split stand in another: by the files that they come from, not by what they look like."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from unlabeled.data.sources.base import Source
from unlabeled.data.sources.folder import FolderSource
from unlabeled.data.sources.memory import InMemory
from unlabeled.data.sources.subset import Part
from unlabeled.data.sources.tar.shards import ShardSource

Origin = tuple[object, ...]

_THREADS, _TOGETHER = 16, 1024  # a look at a file takes a round trip where files are far away


def twins(train: Source, test: Source) -> np.ndarray:
    """Return the place in `train` of every image of `test` that stands there too, else -1: int64 [len(test)].

    Links to a file, hard or symbolic, and folders or shards that two splits share are seen; copies are not.
    """
    place = {origin: i for i, origin in enumerate(_origins(train, np.arange(len(train))))}
    origins = _origins(test, np.arange(len(test)))
    return np.array([place.get(origin, -1) for origin in origins], np.int64).reshape(len(test))


def _origins(source: Source, places: np.ndarray) -> list[Origin]:
    """Return what tells samples from all others: their file on this machine, and where in the file they stand."""
    if isinstance(source, Part):
        return _origins(source.source, source.indices[places])
    if isinstance(source, InMemory):
        return _origins(source.source, places)
    if isinstance(source, FolderSource):
        paths = [os.path.join(source.folder, source.paths[i]) for i in places.tolist()]
        parts = [paths[i : i + _TOGETHER] for i in range(0, len(paths), _TOGETHER)]
        with ThreadPoolExecutor(_THREADS) as pool:
            return [origin for found in pool.map(_files, parts) for origin in found]
    if isinstance(source, ShardSource):
        shards = [_file(os.fspath(tar)) for tar in source.tars]
        return [(*shards[shard], offset) for shard, offset in source.spots(places)]
    return [(source.name, source.split, i) for i in places.tolist()]


def _files(paths: list[str]) -> list[Origin]:
    return [_file(path) for path in paths]


def _file(path: str) -> Origin:
    """Return device and number of a file, links followed; its name where it cannot be looked at."""
    try:
        status = os.stat(path)
    except OSError:
        return (path,)
    return (status.st_dev, status.st_ino) if status.st_ino else (os.path.realpath(path),)
