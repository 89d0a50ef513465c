"""Lists of videos as published sets have them: a path below the folder of the videos and perhaps a class, per video."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from unlabeled.data.sources.files.formats import VIDEOS
from unlabeled.data.sources.files.listing import scan
from unlabeled.data.sources.files.reading import reading
from unlabeled.data.sources.files.said import say_once
from unlabeled.errors import UserError

_LINE = re.compile(rf"(.+?\.(?:{'|'.join(VIDEOS.endings)}))(?:[\s,;]+(.*\S))?\s*", re.IGNORECASE)
_OF_A_CLASS = re.compile(r"(.+)_test_split\d+")


class Entry(NamedTuple):
    """A video of a list: its path below the folder of the videos, and its class, a name or a number as text, if any."""

    path: str
    label: str | None


def entries(form: str, file: str, root: Path, videos: Path) -> list[Entry]:
    """Return the videos of the list `file` below `root` that is of this form (see `config.card.VideoFolder`).

    Raises UserError for a list that is not there, is of another form, or names no video.
    """
    read = {"paths": _paths, "kinetics": _kinetics, "hmdb51": _hmdb51}[form]
    found = read(file, root, videos)
    if not found:
        raise UserError(f"the list {root / file} names no video; its form is '{form}', see source.list of the card")
    return found


def _paths(file: str, root: Path, videos: Path) -> list[Entry]:
    found = []
    for number, line in enumerate(_lines(root / file)):
        match = _LINE.fullmatch(line.replace('"', ""))
        if match:
            found.append(Entry(match[1], match[2]))
        elif number:  # the first line may name the columns
            raise UserError(f"{root / file}:{number + 1}: '{line[:80]}' is no path of a video, such as a/b.mp4, with a "
                            "class behind it or none")
    return found


def _kinetics(file: str, root: Path, videos: Path) -> list[Entry]:
    """Return those listed videos that are there, for some are gone from where they were published, and say how many."""
    there = {PurePosixPath(path).stem: path for path in scan(videos, VIDEOS)}
    rows = list(csv.DictReader(_lines(root / file)))
    found = []
    for number, row in enumerate(rows):
        try:
            stem = f"{row['youtube_id']}_{_seconds(row['time_start'])}_{_seconds(row['time_end'])}"
        except (KeyError, TypeError, ValueError):
            raise UserError(f"{root / file}:{number + 2}: no youtube_id, time_start and time_end in "
                            f"'{','.join(map(str, row.values()))[:80]}'") from None
        path = there.get(stem) or there.get(row["youtube_id"])
        if path is not None:
            found.append(Entry(path, row.get("label")))
    if len(found) < len(rows):
        say_once(f"{root / file}: {len(found)} of {len(rows)} listed videos are in {videos}")
    return found


def _seconds(text: str) -> str:
    return f"{int(float(text)):06d}"


def _hmdb51(file: str, root: Path, videos: Path) -> list[Entry]:
    pattern, _, wanted = file.partition("#")
    found = []
    for place in sorted(root.glob(pattern)):
        match = _OF_A_CLASS.fullmatch(place.stem)
        if match is None:
            raise UserError(f"{place} is no list of a class: its name does not end in _test_splitNUMBER.txt")
        for line in _lines(place):
            name, _, number = line.rpartition(" ")
            if number == (wanted or "1"):
                found.append(Entry(f"{match[1]}/{name.strip()}", match[1]))
    return found


def _lines(file: Path) -> Iterator[str]:
    try:
        with reading(file, "no list of videos"):
            text = file.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"the list {file} is missing; set the path of the card's split") from None
    return (line.strip() for line in text.splitlines() if line.strip())
