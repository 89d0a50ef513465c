"""Images in folders, with or without classes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from unlabeled.config.card import Card
from unlabeled.data.base import CorruptSample, Names, Source, spread
from unlabeled.data.decode import EXTENSIONS, decode
from unlabeled.errors import UserError

_MEASURED = 10_000  # files whose sizes are part of the fingerprint: on a network disk each may take a millisecond


class FolderSource(Source):
    """Image files below one folder; a key is the path below it."""

    def __init__(self, name: str, split: str, folder: Path, paths: list[str]) -> None:
        super().__init__(name, split)
        self.folder = folder
        self.paths = Names(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def key(self, index: int) -> str:
        """Return the path below the folder."""
        return self.paths[index]

    def raw(self, index: int) -> bytes:
        """Return the bytes of the file. Raises CorruptSample."""
        key = self.paths[index]
        try:
            with open(os.path.join(self.folder, key), "rb", buffering=0) as file:
                return file.read()
        except OSError as error:
            raise CorruptSample(key, error.strerror or str(error)) from error

    def image(self, index: int) -> np.ndarray:
        """Return one image, uint8 [H, W, 3]. Raises CorruptSample."""
        return decode(self.raw(index), self.paths[index])

    def names(self) -> Names:
        """Return the paths below the folder."""
        return self.paths

    def traces(self) -> np.ndarray:
        """Return the sizes of the files, in large sets of some of them."""
        sizes = []
        for i in spread(len(self.paths), _MEASURED).tolist():
            try:
                sizes.append(os.stat(os.path.join(self.folder, self.paths[i])).st_size)
            except OSError:
                sizes.append(-1)
        return np.array(sizes, np.int64)

    def made_of(self) -> tuple[Path, list[tuple[str, int, int]]]:
        """Return the folder and its image files."""
        files = []
        for i in range(len(self.paths)):
            try:
                stat = os.stat(os.path.join(self.folder, self.paths[i]))
            except OSError:  # unreadable then, and if it comes back another time
                files.append((self.paths[i], -1, -1))
            else:
                files.append((self.paths[i], stat.st_size, stat.st_mtime_ns))
        return self.folder, files


def scan(folder: Path) -> list[str]:
    """Return the image files at any depth below `folder` as sorted paths below it.

    Hidden entries and other files are passed over; links to folders are followed, but not back up.
    Raises UserError if the folder is missing or holds no image.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give the folder that holds the images")
    found: list[str] = []
    try:
        _scan(os.fspath(folder), "", (os.path.realpath(folder),), found)
    except PermissionError as error:
        raise UserError(f"{error.filename} may not be read by this user ({error.strerror})") from error
    if not found:
        raise UserError(f"{folder} holds no images (looked at every depth for {', '.join(EXTENSIONS)})")
    return sorted(found)


def _scan(folder: str, prefix: str, above: tuple[str, ...], found: list[str]) -> None:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                real = os.path.realpath(entry.path) if entry.is_symlink() else os.path.join(above[-1], entry.name)
                if real not in above:
                    _scan(entry.path, f"{prefix}{entry.name}/", (*above, real), found)
            elif os.path.splitext(entry.name)[1][1:].lower() in EXTENSIONS and entry.is_file():
                found.append(prefix + entry.name)


def open_folder(card: Card, split: str, root: str | None) -> Source:
    """Open a folder without labels."""
    folder = card.folder(root) / (card.splits[split].path or split)
    return FolderSource(card.name, split, folder, scan(folder))


def open_class_folder(card: Card, split: str, root: str | None) -> Source:
    """Open a folder of class folders."""
    return class_folder(card, split, card.folder(root))


def class_folder(card: Card, split: str, root: Path) -> Source:
    """Open the class folders of a split; classes are the card's, else the folders of its first split, sorted.

    Raises UserError for images outside a class folder and for folders that are no class.
    """
    folder = root / (card.splits[split].path or split)
    paths = scan(folder)
    first = root / (next(iter(card.splits.values())).path or next(iter(card.splits)))
    classes = card.classes or _class_names(first if first.is_dir() else folder)
    number = {name: i for i, name in enumerate(classes)}
    labels = np.empty(len(paths), np.int64)
    for i, path in enumerate(paths):
        name, slash, _ = path.partition("/")
        if not slash:
            raise UserError(f"{folder} holds '{path}' outside a class folder; move it into one, or use card 'folder'")
        if name not in number:
            raise UserError(f"{folder / name} is no class of card '{card.name}' ({len(classes)} classes: "
                            f"{', '.join(classes[:5])}{', ...' if len(classes) > 5 else ''})")
        labels[i] = number[name]
    source = FolderSource(card.name, split, folder, paths)
    source.labels, source.classes = labels, list(classes)
    return source


def _class_names(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
