"""From a card to a folder or list of videos."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from unlabeled.config.card import Card, VideoFolder
from unlabeled.data.sources.base import Source
from unlabeled.data.sources.files.formats import VIDEOS
from unlabeled.data.sources.files.listing import check_folder, scan
from unlabeled.data.sources.folder import folder_labels, refuse_other_layout
from unlabeled.data.sources.labels import class_numbers
from unlabeled.data.sources.video.lists import Entry, entries
from unlabeled.data.sources.video.source import VideoSource
from unlabeled.errors import UserError


def open_videos(card: Card, split: str, root: str | None) -> Source:
    """Open the videos of a split. Raises UserError if its folder or list is missing, or names no video or class."""
    rule, base = card.source, card.folder(root)
    assert isinstance(rule, VideoFolder)
    if rule.list is not None:
        return _listed(card, split, base, rule)
    if rule.labels == "folders":
        refuse_other_layout(card, split, base, VIDEOS)
    folder = base / (card.splits[split].path or split)
    source = VideoSource(card.name, split, folder, scan(folder, VIDEOS))
    if rule.labels == "folders":
        names = [source.key(i) for i in range(len(source))]
        source.labels, source.classes = folder_labels(card, base, folder, names, VIDEOS)
    return source


def _listed(card: Card, split: str, root: Path, rule: VideoFolder) -> Source:
    folder = root / rule.videos
    check_folder(folder)
    found = _entries(card, split, root, rule)
    paths = [entry.path for entry in found]
    source = VideoSource(card.name, split, folder, paths)
    if rule.labels == "folders":
        source.labels, source.classes = folder_labels(card, root, folder, paths, VIDEOS)
    elif rule.labels == "list":
        source.labels, source.classes = _list_labels(card, split, root, rule, found)
    return source


def _entries(card: Card, split: str, root: Path, rule: VideoFolder) -> list[Entry]:
    return entries(rule.list or "", card.splits[split].path or split, root, root / rule.videos)


def _list_labels(card: Card, split: str, root: Path, rule: VideoFolder, found: list[Entry],
                 ) -> tuple[np.ndarray, list[str]]:
    """Return labels, int64 [n], and the classes' names: the card's, else those of all its lists, sorted."""
    file = root / (card.splits[split].path or split)
    labels = [entry.label for entry in found]
    if None in labels:
        raise UserError(f"{file} names no class for '{found[labels.index(None)].path}'; set source.labels to folders "
                        "or none")
    if all(label is not None and label.lstrip("-").isdigit() for label in labels):
        numbers = class_numbers([int(label or 0) for label in labels], file, len(labels), card.classes)
        return numbers, card.classes or [str(i) for i in range(int(numbers.max()) + 1)]
    classes = card.classes or sorted({entry.label or "" for name in card.splits
                                      for entry in _entries(card, name, root, rule)})
    number = {name: i for i, name in enumerate(classes)}
    unknown = next((label for label in labels if label not in number), None)
    if unknown is not None:
        raise UserError(f"{file} names the class '{unknown}', which card '{card.name}' has not ({len(classes)} "
                        f"classes: {', '.join(classes[:5])}{', ...' * (len(classes) > 5)})")
    return np.array([number[label or ""] for label in labels], np.int64), classes
