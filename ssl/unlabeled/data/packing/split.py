"""Packing a set into tar shards with index and card, or into arrays: parallel, resumable, the same bytes every time."""

from __future__ import annotations

import hashlib
import json
import math
import sys
import time
from contextlib import closing
from dataclasses import astuple
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from unlabeled.config.card import Card
from unlabeled.config.marks import Mark, marked
from unlabeled.config.pack import PackSettings
from unlabeled.config.read import read_card
from unlabeled.data.loader import batches, split_evenly
from unlabeled.data.packing.finish import CARD, SUMS, finish, holds
from unlabeled.data.packing.parts import Packer, Piece, cannot_write, encode, load, writing
from unlabeled.data.packing.videos import VideoPacker, packed
from unlabeled.data.sources.base import CorruptSample, Source, too_many
from unlabeled.data.sources.files.formats import IMAGES, VIDEOS, Kind
from unlabeled.data.sources.files.listing import class_names, holds_kind
from unlabeled.data.sources.open import open_source
from unlabeled.data.sources.video.source import Videos
from unlabeled.errors import UserError
from unlabeled.ops.machine.files import sweep
from unlabeled.ops.random import permutation

RECORD = "pack.jsonl"
_RECORD_OF = "pack-{:04d}-of-{:04d}.jsonl"  # of a job that writes a part
_PROBED = 64  # images from which the number of samples in a shard is estimated
_PIECE = 4096  # images in a piece of an array
_SPLITS = ("train", "val", "test")  # folders that are splits, if the first is there
_EVERY = 10.0  # seconds between lines of progress


def pack(source: str, out: Path, settings: PackSettings) -> None:
    """Pack a folder, or the set of a card, into the folder `out`, or go on with a pack there that was cut short.

    Raises UserError for bad input, too many unreadable images, a full disk, or an `out` that holds something else.
    """
    card = source_card(source, settings)
    sources = {split: open_source(card.model_copy(update={"in_memory": False}), split)
               for split in settings.splits or card.splits}
    if _of_videos(sources) and settings.store == "array":
        raise UserError(f"store=array holds images of one size, and '{card.name}' holds videos; use store=shards")
    if any(source.has_clips and not isinstance(source, Videos) for source in sources.values()):
        raise UserError(f"data card '{card.name}' shows videos of another card; pack that one")
    _say_labels(card, sources)
    parts = [part for split in sources for part in _plan(split, sources[split], settings)]
    shape = settings.model_dump(mode="json", exclude=set(marked(PackSettings, Mark.FREE)))
    own = out / (RECORD if settings.share.count == 1 else _RECORD_OF.format(*astuple(settings.share)))
    header = {"source": _fingerprint(sources), "files": len(parts), **shape}
    done = _begin(out, own, header)
    if settings.store == "array" and holds(out):  # its pieces are gone
        print(f"{out} is complete: all checksums in {SUMS} hold")
        return
    size = _first_size(sources, settings.short_side) if settings.store == "array" else None
    for part in parts:
        part.done = done.get(part.file)
    packer = VideoPacker if _of_videos(sources) else Packer
    mine = [parts[number] for number in settings.share.of(len(parts))]
    records = _run(packer(out, sources, settings, size), mine, own, settings)
    if len(mine) < len(parts):
        written = {line["file"]: line for file in _records(out) for line in _lines(file)[1:]}
        records = [written[part.file] for part in parts if part.file in written]
        if absent := len(parts) - len(records):
            print(f"{out}: part {settings.part} is written; {absent} of {len(parts)} files are missing. The job that "
                  "writes the last one finishes the pack")
            return
        _refuse_corrupt_parts(sources, records, settings.max_corrupt)
    lines = finish(card, out, sources, parts, records, settings.store)
    _write_record(out / RECORD, [header, *records])
    for record in _records(out)[:-1]:  # those of parts, which are all in it
        record.unlink(missing_ok=True)
    print("\n".join([*lines, f"use it: data.train.card={out / CARD}"]))


def source_card(source: str, settings: PackSettings) -> Card:
    """Return the card of what is packed: of a folder's own layout, or a card by name or path.

    A folder that holds `train` has the splits train, val and test, as far as they are there; another one is all train.
    Raises UserError for settings that do not go with it, and for streams.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        if settings.root is not None:
            raise UserError(f"'root' goes with a data card, but {source} is a folder; leave it out")
        names = [name for name in _SPLITS if (folder / name).is_dir()]
        splits = {name: {"path": name} for name in names} if "train" in names else {"train": {"path": "."}}
        first = folder / splits["train"]["path"]
        kind = VIDEOS if holds_kind(first, VIDEOS) else IMAGES
        if kind is VIDEOS and holds_kind(first, IMAGES):
            raise UserError(f"{first} holds videos and images: 'unlabeled pack videos OUT root={first}' packs the "
                            "videos (classvideos: in class folders), "
                            f"'unlabeled pack folder OUT root={first}' the images")
        classes = settings.classes
        if classes is None:
            classes = _has_class_folders(first, kind)
        storage = {"kind": "classfolder" if classes else "folder"}
        if kind is VIDEOS:
            storage = {"kind": "videofolder", "labels": "folders" if classes else "none"}
        return Card.model_validate({"name": folder.resolve().name, "source": storage, "root": str(folder.resolve()),
                                    "splits": splits})
    try:
        card = read_card(source, own=True)
    except UserError as error:
        raise UserError(f"no folder '{source}', and {error}" if "/" not in source else str(error)) from error
    if settings.classes is not None:
        raise UserError(f"'classes' goes with a folder, but {source} is a data card, which says so itself")
    if card.source.kind == "stream":
        raise UserError(f"data card '{card.name}' is streamed: its shards are packed already; copy them")
    return card if settings.root is None else card.model_copy(update={"root": settings.root})


def _of_videos(sources: dict[str, Source]) -> bool:
    return all(isinstance(source, Videos) for source in sources.values())


def _has_class_folders(folder: Path, kind: Kind) -> bool:
    files = any(entry.suffix[1:].lower() in kind.endings and entry.is_file() and not entry.name.startswith(".")
                for entry in folder.iterdir())
    return not files and len(class_names(folder, kind)) > 1


def _say_labels(card: Card, sources: dict[str, Source]) -> None:
    counts = ", ".join(f"{split} {len(source)}" for split, source in sources.items())
    first = next(iter(sources.values()))
    noun = "videos" if first.has_clips else "images"
    by_folder = card.source.kind == "classfolder" or getattr(card.source, "labels", None) == "folders"
    if by_folder and first.classes is not None:
        print(f"{counts} {noun}; sub-folders are taken as {len(first.classes)} classes (classes=false: no labels)")
    else:
        print(f"{counts} {noun}, {'without' if first.labels is None else 'with'} labels")
    sys.stdout.flush()


def _plan(split: str, source: Source, settings: PackSettings) -> list[Piece]:
    """Deal a split out to files: shards hold a random order, so that reading in order meets all classes."""
    if settings.store == "array":
        order, most, ending = np.arange(len(source)), _PIECE, "piece"
    else:
        order, ending = permutation(len(source), settings.seed, "pack", split), "tar"
        most = settings.shard_samples or max(1, int(settings.shard_mb * 1e6 / _mean_bytes(source, order, settings)))
    bounds = split_evenly(len(source), math.ceil(len(source) / most))
    return [Piece(split, f"{split}-{number:06d}.{ending}", order[start:stop])
            for number, (start, stop) in enumerate(pairwise(bounds))]


def _mean_bytes(source: Source, order: np.ndarray, settings: PackSettings) -> float:
    sizes = []
    for index in order[: _PROBED // 8 if source.has_clips else _PROBED].tolist():
        try:
            if isinstance(source, Videos):
                stored, _ = packed(source, index, settings)
            else:
                stored, _ = encode(*load(source, index, settings.short_side), settings)
        except CorruptSample:
            continue
        sizes.append(1536 + len(stored))  # two headers, and on average a block of padding
    return float(np.mean(sizes)) if sizes else 1536.0


def _first_size(sources: dict[str, Source], short_side: int | None) -> tuple[int, int]:
    for source in sources.values():
        for index in range(len(source)):
            try:
                image, _ = load(source, index, short_side)
            except CorruptSample:
                continue
            return image.height, image.width
    raise UserError("none of the images is readable")


def _fingerprint(sources: dict[str, Source]) -> str:
    """Hash names and sizes of the source's files, how they are read, and labels: a pack goes on with what it began."""
    digest = hashlib.blake2b(digest_size=16)
    for split, source in sources.items():
        files = source.made_of()
        known = [len(source)] if files is None else [(name, size) for name, size, _ in files[1]]
        digest.update(json.dumps([split, source.classes, known, astuple(source.pixels)]).encode())
        if source.labels is not None:
            digest.update(source.labels.tobytes())
    return digest.hexdigest()


def _begin(out: Path, own: Path, header: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Create `out` and this job's record, or return what is recorded there by file, by this job and by others.

    A line of its own that was cut off by a crash is removed. Raises UserError if `out` holds anything but a pack of the
    same files and settings.
    """
    sweep(out)  # what killed calls left
    try:
        out.mkdir(parents=True, exist_ok=True)
        others = [entry for entry in out.iterdir() if not entry.name.startswith(".pack-")]  # a part that begins now
    except OSError as error:
        raise cannot_write(out, error) from error
    records = [record for record in _records(out) if record.exists()]
    if others and not records:
        raise UserError(f"{out} is not empty and holds no pack; name a new folder")
    done: dict[str, dict[str, Any]] = {}
    for record in records:
        lines = _lines(record)
        if not lines or lines[0] != header:
            there = lines[0] if lines else {}
            differ = [f"{key} {there.get(key)} there, {header.get(key)} now" for key in sorted({*there, *header})
                      if there.get(key) != header.get(key)]
            raise UserError(f"{out} holds another pack ({'; '.join(differ)}); name another folder, or delete it")
        done |= {line["file"]: line for line in lines[1:]}
    _write_record(own, _lines(own) or [header])
    return done


def _records(out: Path) -> list[Path]:
    """Return the records of jobs that write a part and, last, that of a whole pack, which may not be there yet.

    In this order nothing is missed where another job finishes the pack at the same moment.
    """
    return [*sorted(out.glob("pack-*-of-*.jsonl")), out / RECORD]


def _lines(record: Path) -> list[dict[str, Any]]:
    """Return the lines of a record up to one that was cut off; of one that is not there none."""
    lines = []
    try:
        for line in record.read_text("utf-8").splitlines():
            lines.append(json.loads(line))
    except (FileNotFoundError, ValueError):
        pass
    return lines


def _write_record(record: Path, lines: list[dict[str, Any]]) -> None:
    with writing(record) as file:
        file.write("".join(json.dumps(line) + "\n" for line in lines).encode())


def _run(packer: Packer, parts: list[Piece], record: Path, settings: PackSettings) -> list[dict[str, Any]]:
    """Write all parts and return their records, in order; each is added to the file of records when it is there."""
    records: list[dict[str, Any]] = []
    unreadable = {split: 0 for split in packer.sources}
    begun = last = time.monotonic()
    images = 0
    made_parts = closing(batches(packer, parts, settings.workers, patience=0))
    with made_parts as made, open(record, "a", encoding="utf-8") as log:
        for part, entry in zip(parts, made, strict=True):
            if entry != part.done:
                images += entry["samples"]
                try:
                    print(json.dumps(entry), file=log, flush=True)
                except OSError as error:
                    raise cannot_write(record, error) from error
            records.append(entry)
            unreadable[part.split] += len(entry["unreadable"])
            total = len(packer.sources[part.split])
            _refuse_corrupt(part.split, total, records, unreadable[part.split], settings.max_corrupt)
            if time.monotonic() - last > _EVERY:
                last = time.monotonic()
                print(f"{len(records)} of {len(parts)} files, {images / (last - begun):.0f} images/s", file=sys.stderr)
    return records


def _refuse_corrupt_parts(sources: dict[str, Source], records: list[dict[str, Any]], share: float) -> None:
    """Raise UserError as one job would: each has counted its own part alone."""
    for split, source in sources.items():
        own = [found for found in records if found["split"] == split]
        _refuse_corrupt(split, len(source), own, sum(len(found["unreadable"]) for found in own), share)


def _refuse_corrupt(split: str, total: int, records: list[dict[str, Any]], count: int, share: float) -> None:
    if too_many(count, total, share):
        names = [f"  {key}: {reason}" for found in records if found["split"] == split
                 for _, key, reason in found["unreadable"]]
        raise UserError(f"split '{split}': {count} of {total} images cannot be read, more than max_corrupt "
                        f"{share:g} allows. The first of them:\n" + "\n".join(names[:10])
                        + "\nRepair or remove them and pack anew, or raise max_corrupt")
