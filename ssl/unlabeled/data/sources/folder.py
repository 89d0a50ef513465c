"""Images in folders, with or without classes."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from unlabeled.config.card import Card, ClassFolder
from unlabeled.data.sources.base import CorruptSample, Source, unreadable
from unlabeled.data.sources.decode import decode
from unlabeled.data.sources.files.formats import IMAGES, Kind
from unlabeled.data.sources.files.listing import class_names, scan
from unlabeled.data.sources.fingerprint import Names, spread
from unlabeled.data.sources.labels import HIGHEST
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
        with self.opened(index) as file:
            return file.read()

    def opened(self, index: int) -> AbstractContextManager[IO[bytes]]:
        """Open the file of a sample. Raises CorruptSample, also for what goes wrong while it is read."""
        return self._opened(index)

    @contextmanager
    def _opened(self, index: int) -> Iterator[IO[bytes]]:
        key = self.paths[index]
        try:
            with open(os.path.join(self.folder, key), "rb", buffering=0, opener=_at_once) as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise CorruptSample(key, "no plain file")
                yield file
        except OSError as error:
            raise unreadable(key, error) from error

    def image(self, index: int) -> np.ndarray:
        """Return one image, uint8 [H, W, 3]. Raises CorruptSample."""
        return decode(self.raw(index), self.paths[index], self.pixels)

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
                status = os.stat(os.path.join(self.folder, self.paths[i]))
            except OSError:  # unreadable then, and if it comes back another time
                files.append((self.paths[i], -1, -1))
            else:
                files.append((self.paths[i], status.st_size, status.st_mtime_ns))
        return self.folder, files


def _at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # else the opening of a pipe waits for somebody to write


def open_folder(card: Card, split: str, root: str | None) -> Source:
    """Open a folder without labels."""
    folder = card.folder(root) / (card.splits[split].path or split)
    return FolderSource(card.name, split, folder, scan(folder))


def open_class_folder(card: Card, split: str, root: str | None) -> Source:
    """Open a folder of class folders. Raises UserError that says what is there if the split's folder is missing."""
    folder = card.folder(root)
    refuse_other_layout(card, split, folder)
    return class_folder(card, split, folder)


def refuse_other_layout(card: Card, split: str, root: Path, kind: Kind = IMAGES) -> None:
    """Raise UserError that says what the root holds if the folder of a split is missing, with what reads that."""
    place = card.splits[split].path or split
    if root.is_dir() and not (root / place).exists():
        raise UserError(_other_layout(card, split, root, place, kind))


def class_folder(card: Card, split: str, root: Path) -> Source:
    """Open the class folders of a split. Raises UserError as `folder_labels` does."""
    folder = root / (card.splits[split].path or split)
    paths = scan(folder)
    source = FolderSource(card.name, split, folder, paths)
    source.labels, source.classes = folder_labels(card, root, folder, paths)
    return source


def folder_labels(card: Card, root: Path, folder: Path, paths: list[str], kind: Kind = IMAGES,
                  ) -> tuple[np.ndarray, list[str]]:
    """Return labels, int64 [n], of files by the first folders of their paths below `folder`, and the classes' names.

    Classes are the card's, else the folders of its first split that hold files of the kind, sorted. Raises UserError
    for files outside a class folder and for folders that are no class.
    """
    first = root / (next(iter(card.splits.values())).path or next(iter(card.splits)))
    by_number = isinstance(card.source, ClassFolder) and card.source.order == "number"
    names = [] if card.classes and not by_number else class_names(first if first.is_dir() else folder, kind)
    number = _numbered(names, folder, card) if by_number else {}
    classes = card.classes or ([str(i) for i in range(max(number.values()) + 1)] if by_number else names)
    number = number or {name: i for i, name in enumerate(classes)}
    labels = np.empty(len(paths), np.int64)
    for i, path in enumerate(paths):
        name, slash, _ = path.partition("/")
        if not slash:
            cure = "use card 'folder'" if kind is IMAGES else "set the card's source.labels to none"
            raise UserError(f"{folder} holds '{path}' outside a class folder; move it into one, or {cure}")
        if name not in number:
            raise UserError(f"{folder / name} is no class of card '{card.name}' ({len(classes)} classes: "
                            f"{', '.join(classes[:5])}{', ...' if len(classes) > 5 else ''})")
        labels[i] = number[name]
    return labels, list(classes)


def _numbered(names: list[str], folder: Path, card: Card) -> dict[str, int]:
    """Return the class of every folder that is named after its number. Raises UserError for another name."""
    number = {}
    for name in names:
        most = len(card.classes) if card.classes else HIGHEST + 1
        if not (name.isascii() and name.isdigit() and int(name) < most):
            raise UserError(f"{folder / name} is no class of card '{card.name}', whose source.order is number; "
                            f"allowed: folders named 0 to {most - 1}, or leave 'order' out")
        number[name] = int(name)
    return number


def _other_layout(card: Card, split: str, root: Path, place: str, kind: Kind) -> str:
    """Return what to tell of a root without the folder of a split: what it holds instead, and what reads that."""
    folders = [name for name, spec in card.splits.items() if (root / (spec.path or name)).is_dir()]
    names = [] if folders else class_names(root, kind)
    problem = f"data card '{card.name}', split '{split}': no folder {root / place} with a folder per class"
    if not names:
        return f"{problem}; {root} holds " + (f"only: {', '.join(folders)}" if folders else "no class folders either")
    cure = "with card 'folder'" if kind is IMAGES else "with source.labels: none"
    return (f"{problem}; {root} itself holds {len(names)} folders of {kind.noun}s ({', '.join(names[:3])}"
            f"{', ...' * (len(names) > 3)}). Move them into {root / place}, copy the card and set the split's path to "
            f"'.', or leave the classes out {cure}")
