"""What a pack ends with: arrays put together, the card, the list of unreadable images, checksums."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from unlabeled.config.card import Card
from unlabeled.config.read import read_file
from unlabeled.config.yaml.write import to_yaml
from unlabeled.data.packing.parts import Piece, writing
from unlabeled.data.sources.base import Source
from unlabeled.data.sources.files.lists import one_line
from unlabeled.data.sources.open import open_source
from unlabeled.ops.machine.files import sha256, sweep

SUMS, CARD, UNREADABLE = "SHA256SUMS", "card.yaml", "unreadable.txt"


def finish(card: Card, out: Path, sources: dict[str, Source], parts: list[Piece], records: list[dict[str, Any]],
           store: str) -> list[str]:
    """Write everything but the parts, open the splits once as a reader would, and return a summary in lines."""
    sums = {found["file"]: found["sha256"] for found in records}
    if store == "array":
        sums = {}
        for split, source in sources.items():
            sums |= _join(out, split, source, [part for part in parts if part.split == split], records)
    lists = _copy_lists(card, out, sums) if store == "shards" else {}  # arrays know no names
    sums[CARD] = _write(out / CARD, _card_text(card, sources, records, store, lists))
    lines = _write_unreadable(out, records, sums)
    _write(out / SUMS, "".join(f"{sum}  {name}\n" for name, sum in sorted(sums.items())))
    if store == "array":
        for part in parts:
            (out / part.file).unlink(missing_ok=True)
    sweep(out)
    made = read_file(out / CARD, Card)
    noun = "videos" if made.source.kind == "videoshards" else "images"
    counts = [f"{split} {len(open_source(made, split))} {noun}" for split in made.splits]
    files, name = (len(records), "shard") if store == "shards" else (len(counts), "array")
    return [f"{out}: {', '.join(counts)} in {files} {name}{'s' * (files != 1)}", *lines]


def holds(out: Path) -> bool:
    """Return whether `out` is a finished pack all of whose checksums hold."""
    try:
        lines = [line.split("  ", 1) for line in (out / SUMS).read_text("utf-8", "surrogateescape").splitlines()]
        return all(sha256(out / name) == sum for sum, name in lines)
    except FileNotFoundError:
        return False


def _join(out: Path, split: str, source: Source, parts: list[Piece], records: list[dict[str, Any]]) -> dict[str, str]:
    """Put the pieces of a split together into SPLIT.npy, write SPLIT-labels.npy, and return their checksums."""
    by_file = {found["file"]: found for found in records}
    shape = (sum(by_file[part.file]["samples"] for part in parts), *_sizes(records)[0], 3)
    sums = {}
    with writing(out / f"{split}.npy") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for part in parts:
            with open(out / part.file, "rb") as piece:
                shutil.copyfileobj(piece, file, 1 << 20)
    sums[f"{split}.npy"] = file.sum.hexdigest()
    if source.labels is not None:
        left_out = [index for part in parts for index, _, _ in by_file[part.file]["unreadable"]]
        kept = np.setdiff1d(np.concatenate([part.indices for part in parts]), left_out)
        buffer = io.BytesIO()
        np.save(buffer, source.labels[kept])
        with writing(out / f"{split}-labels.npy") as file:
            file.write(buffer.getvalue())
        sums[f"{split}-labels.npy"] = file.sum.hexdigest()
    return sums


def _copy_lists(card: Card, out: Path, sums: dict[str, str]) -> dict[str, Any]:
    """Copy the published lists of images that are there, and return all of them for the card."""
    lists = {}
    for name, entry in card.lists.items():
        path = card.folder() / entry.file
        if path.is_file():
            with writing(out / path.name) as file:
                file.write(path.read_bytes())
            sums[path.name] = file.sum.hexdigest()
        lists[name] = {**entry.model_dump(), "file": path.name}
    return lists


def _card_text(card: Card, sources: dict[str, Source], records: list[dict[str, Any]], store: str, lists: dict[str, Any],
               ) -> str:
    """Return the card of the pack, whose root is the card's own folder, so that the folder can be moved."""
    labelled = any(source.labels is not None for source in sources.values())
    first = records[0]["split"]
    source: dict[str, Any] = {"kind": "array"}
    if store == "shards":
        extensions = sorted({extension for found in records for extension in found["extensions"]})
        kind = "videoshards" if sources[first].has_clips else "shards"
        source = {"kind": kind, "image": extensions, "label": "cls" if labelled else None}
    mean, std = _statistics([found for found in records if found["split"] == first])
    sizes = _sizes(records)
    made = Card.model_validate({
        "name": card.name, "about": card.about, "source": source, "root": "$CARD",
        "splits": {split: _split(card, split, sources[split], records, store) for split in sources},
        "classes": next((source.classes for source in sources.values()), None) if labelled else None,
        "lists": lists,
        "image_size": sizes[0][0] if len(sizes) == 1 and sizes[0][0] == sizes[0][1] else None,
        "mean": mean, "std": std, "in_memory": store == "array", **(_as_before(card) if store == "shards" else {})})
    return ("# Made by unlabeled pack; $CARD is the folder of this file. Terms: those of the set that was packed.\n"
            f"# mean and std: of the pixels of {first}, in [0, 1].\n" + to_yaml(made))


def _as_before(card: Card) -> dict[str, Any]:
    """Return how files of the same bytes are to be read; the values of arrays have become 8 bits."""
    return {"orientation": "apply" if card.upright else "ignore",
            "levels": None if card.source.kind == "array" else card.levels}


def _split(card: Card, split: str, source: Source, records: list[dict[str, Any]], store: str) -> dict[str, Any]:
    own = [found for found in records if found["split"] == split]
    about = {"samples": sum(found["samples"] for found in own), "about": card.splits[split].about}
    if store == "array":
        return {"path": f"{split}.npy", "labels": None if source.labels is None else f"{split}-labels.npy", **about}
    last = own[-1]["file"].removeprefix(f"{split}-").removesuffix(".tar")
    return {"path": f"{split}-{{000000..{last}}}.tar", **about}


def _statistics(records: list[dict[str, Any]]) -> tuple[list[float], list[float]]:
    pixels = sum(found["pixels"] for found in records) * 255.0
    sums = np.sum([np.array(found["sums"], dtype=object) for found in records], axis=0).astype(np.float64)
    mean = sums[0] / pixels
    std = np.sqrt(sums[1] / (pixels * 255.0) - mean**2)
    return mean.round(4).tolist(), std.round(4).tolist()


def _sizes(records: list[dict[str, Any]]) -> list[list[int]]:
    return [list(size) for size in sorted({tuple(size) for found in records for size in found["sizes"]})]


def _write_unreadable(out: Path, records: list[dict[str, Any]], sums: dict[str, str]) -> list[str]:
    lines = [f"{found['split']}\t{one_line(key)}\t{one_line(reason)}"
             for found in records for _, key, reason in found["unreadable"]]
    if not lines:
        return []
    sums[UNREADABLE] = _write(out / UNREADABLE, "\n".join(lines) + "\n")
    return [f"{len(lines)} unreadable images are left out; {out / UNREADABLE} names them"]


def _write(path: Path, text: str) -> str:
    with writing(path) as file:
        file.write(text.encode("utf-8", "surrogateescape"))
    return file.sum.hexdigest()
