"""The image or video files below a folder; what is passed over there is said in one line."""

from __future__ import annotations

import heapq
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from unlabeled.data.sources.files.formats import IMAGES, Kind
from unlabeled.data.sources.files.said import say_once
from unlabeled.errors import UserError

# what systems and their tools leave beside people's files
_LEFTOVERS = {"__macosx", "@eadir", "@tmp", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "$recycle.bin",
              "recycler", "system volume information", "lost+found", "thumbnails", "__pycache__", "thumbs.db",
              "desktop.ini"}
_OWN = {".index", ".images"}  # this program's, see data.kept
_OF_A_RUN = ("run.json", "checkpoints", "metrics.jsonl", "export", "views.png", "DONE")


def scan(folder: Path, kind: Kind = IMAGES) -> list[str]:
    """Return the files of a kind at any depth below `folder` as sorted paths below it, and say what is passed over.

    Hidden entries, leftovers of systems and folders of runs do not count. Links to folders are followed; every folder
    is read once, under its own path if that is below `folder`. Raises UserError if the folder is missing or cannot be
    read, or holds no such file.
    """
    check_folder(folder)
    passed: Counter[str] = Counter()
    paths = sorted(_walk(os.fspath(folder), kind, passed))
    total, endings = sum(passed.values()), {name for name in passed if name.startswith(".")}
    largest_first = sorted(passed.items(), key=lambda item: (-item[1], item[0]))
    counts = ", ".join(f"{count} {name}" for name, count in largest_first)
    counts += kind.cure(endings)
    if not paths:
        known = ", ".join(kind.endings[:4])
        raise UserError(f"{folder} holds no {kind.noun}s (looked at every depth for {known} and "
                        f"{len(kind.endings) - 4} more "
                        f"endings){f'; passed over: {counts}' if passed else ''}")
    if passed:
        plural, others = "s" * (len(paths) > 1), "s" * (total > 1)
        say_once(f"{folder}: {len(paths)} {kind.noun}{plural}; passed over {total} other file{others}: {counts}")
    return paths


def check_folder(folder: Path) -> None:
    """Raise UserError if there is no such folder, or it cannot be looked at."""
    try:
        if folder.is_dir():
            return
        what = "is a file, not a folder" if folder.exists() else "is not a folder"
    except (OSError, ValueError) as error:  # too long, a link to itself, a zero byte
        name = str(folder)
        raise UserError(f"{name[:200]}{'...' * (len(name) > 200)} cannot be read: "
                        f"{getattr(error, 'strerror', None) or error}") from error
    raise UserError(f"{folder} {what}; give the folder that holds the images")


def class_names(folder: Path, kind: Kind = IMAGES) -> list[str]:
    """Return the names of the sub-folders that hold a file of a kind, sorted. Raises UserError as `scan` does."""
    names = []
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise _cannot_list(os.fspath(folder), error) from error
    for entry in entries:
        if _is_leftover(entry.name):
            continue
        if _leads_to_folder(entry):  # what it holds may stand under another name: only all of it tells
            return _top_folders(folder, kind)
        if entry.is_dir(follow_symlinks=False) and not _is_run(entry.path):
            if next(_walk(entry.path, kind, Counter(), links=False), None) is None:
                return _top_folders(folder, kind)
            names.append(entry.name)
    return names


def holds_kind(folder: Path, kind: Kind) -> bool:
    """Say whether there is a file of a kind at any depth below a folder. Raises UserError as `scan` does."""
    return next(_walk(os.fspath(folder), kind, Counter()), None) is not None


def _top_folders(folder: Path, kind: Kind) -> list[str]:
    return sorted({path.partition("/")[0] for path in _walk(os.fspath(folder), kind, Counter()) if "/" in path})


def _walk(root: str, kind: Kind, passed: Counter[str], links: bool = True) -> Iterator[str]:
    """Yield the files of a kind below `root`, in no order; `passed` counts other files. links: follow those to folders.

    Folders that are no links come first, so that a path does not depend on where links are.
    """
    folders_above = {_identity(os.stat(above)) for above in (root, *map(str, Path(os.path.realpath(root)).parents))}
    real, linked = [("", root)], list[tuple[str, str]]()
    while real or linked:
        prefix, path = real.pop() if real else heapq.heappop(linked)
        try:
            if prefix:
                identity = _identity(os.stat(path))
                if identity in folders_above or _is_run(path):
                    continue
                folders_above.add(identity)
            with os.scandir(path) as entries:
                for entry in entries:
                    if _is_leftover(entry.name):
                        continue
                    below = f"{prefix}{entry.name}"
                    if entry.is_dir(follow_symlinks=False):
                        real.append((f"{below}/", entry.path))
                    elif _leads_to_folder(entry):
                        if links:
                            heapq.heappush(linked, (f"{below}/", entry.path))
                    elif _is_of(kind, entry, passed):
                        yield below
        except OSError as error:
            raise _cannot_list(path, error) from error


def _is_leftover(name: str) -> bool:
    return name.startswith(".") or name.lower() in _LEFTOVERS


def _is_run(path: str) -> bool:
    """Say whether a folder is that of a run, whose pictures are no data."""
    return os.path.isfile(os.path.join(path, "recipe.yaml")) and any(
        os.path.lexists(os.path.join(path, name)) for name in _OF_A_RUN)


def _leads_to_folder(entry: os.DirEntry[str]) -> bool:
    return entry.is_symlink() and os.path.isdir(entry.path)  # which is False for a link to itself


def _is_of(kind: Kind, entry: os.DirEntry[str], passed: Counter[str]) -> bool:
    ending = os.path.splitext(entry.name)[1].lower()
    if not (os.path.isfile(entry.path) if entry.is_symlink() else entry.is_file()):
        passed["links that lead nowhere" if entry.is_symlink() else "pipes and devices"] += 1
    elif kind.accepts(entry.path, ending[1:]):
        return True
    elif ending not in _OWN:
        passed[ending if re.fullmatch(r"\.\w{1,12}", ending, re.ASCII) else "without a known ending"] += 1
    return False


def _identity(stat: os.stat_result) -> tuple[int, int]:
    return stat.st_dev, stat.st_ino


def _cannot_list(path: str, error: OSError) -> UserError:
    name = path if len(path) <= 200 else f"{path[:200]}..."
    if isinstance(error, PermissionError):
        return UserError(f"{name} may not be read by this user ({error.strerror})")
    return UserError(f"{name} cannot be read: {error.strerror or error}")
