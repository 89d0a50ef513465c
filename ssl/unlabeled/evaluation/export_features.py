"""Embeddings of a user's own images, as files for other programs: a pass whose rows become one file at its end."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from unlabeled.config.card import Card
from unlabeled.config.passes.features import folder_or_card
from unlabeled.config.passes.shared import WHOLE, Part
from unlabeled.config.protocols.vectors import ClipViews
from unlabeled.config.recipe import Precision
from unlabeled.data.crops import shape_of
from unlabeled.data.evaluation import ImageMaker
from unlabeled.data.records.store import Store
from unlabeled.data.sources.base import Source
from unlabeled.data.sources.files.formats import IMAGES, VIDEOS
from unlabeled.data.sources.files.listing import holds_kind
from unlabeled.data.sources.files.lists import one_line, write_lines
from unlabeled.data.sources.open import open_source
from unlabeled.engine.launch import pick_device, pick_precision
from unlabeled.engine.passes.features import Embedder, network_embedder, samples_per_pass
from unlabeled.engine.passes.folder import removed
from unlabeled.engine.passes.run import Work, run_pass
from unlabeled.engine.passes.source import open_split
from unlabeled.engine.restore import Restored, load_run
from unlabeled.errors import UserError
from unlabeled.evaluation.setup import check_samples, own_levels, pick_export, views_of
from unlabeled.methods.base import Export
from unlabeled.ops.distributed import on_rank0, rank
from unlabeled.ops.machine.files import refuse_unwritable, temporary, write_atomically

_FIELD = "feature"
_TOGETHER = 1 << 12  # rows in memory at once


def export_features(run: Path, images: str | Path, out: Path, *, export: str | None = None,
                    precision: Precision = "auto", batch: int = 256, workers: int = 4, max_corrupt: float = 1.0,
                    part: Part = WHOLE, split: str | None = None, root: str | None = None,
                    clip: ClipViews | None = None) -> int | None:
    """Write the features of all images and return how many there are; None while other parts are missing, or if another
    job has finished meanwhile.

    images: a folder, of videos if it holds no images or the network is for clips, or a data card, of which `split` is
    taken. clip: how videos come to such a network. OUT.npy: float32 [n, F]; OUT.safetensors: the same as tensor
    `features`. Beside it OUT.txt: the images' keys (paths below a folder), one per row as `data.lists` writes them.
    Until all are there rows stand in OUT.rows/. Gray levels beyond 8 bits in a folder are read as the run's data
    card says. Unreadable images are left out and printed. Raises UserError for bad input.
    """
    if out.suffix not in (".npy", ".safetensors"):
        raise UserError(f"out={out}: the file must end in .npy or .safetensors")
    device = pick_device()
    chosen = pick_precision(precision, device.type)
    if rank() == 0:
        refuse_unwritable(out, "name a file elsewhere with out=FILE")
    restored = load_run(Path(run), device=device)
    views = clip or ClipViews()
    name, network = pick_export(restored.method, export, clip=views)
    source = _open(images, split, root, restored, network)
    check_samples([network], source)
    embedder = network_embedder(network, device, chosen, views_of(network, views))
    embedder.check()
    work = _work(embedder, name, network, restored.update, ImageMaker(source, embedder.crops), device)
    width = work.fields[_FIELD][1][0]
    rows = out.with_suffix(".rows")
    try:
        store = run_pass(work, source, rows, part=part, batch=samples_per_pass(batch, embedder.crops), workers=workers,
                         device=device, max_corrupt=max_corrupt, more=4 * width * len(source))
    except UserError:
        if not on_rank0(lambda: _finished_elsewhere(rows, out)):
            raise
        return None
    if store is None:
        return None
    readable = np.setdiff1d(np.arange(len(source)), np.array([*store.unreadable], np.int64))
    if rank() == 0:
        _finish(store, source, readable, rows, out)
        print(f"{out}: {len(readable)} x {width} float32 of export {name}{restored.moment}, computed in "
              f"{chosen}; paths in {out.with_suffix('.txt')}")
    return len(readable)


def _open(images: str | Path, split: str | None, root: str | None, restored: Restored, export: Export) -> Source:
    of_card = folder_or_card(str(images), split, root)
    if of_card is not None:
        _, card, chosen = of_card
        return open_split(card, chosen, root)
    folder = Path(images).expanduser()
    videos = export.input.clip is not None or (holds_kind(folder, VIDEOS) and not holds_kind(folder, IMAGES))
    kind = "videofolder" if videos else "folder"
    card = Card.model_validate({"name": folder.name or "folder", "source": {"kind": kind}, "root": None,
                                "levels": own_levels(restored), "splits": {"all": {"path": "."}}})
    return open_source(card, "all", str(folder.absolute()))


def _work(embedder: Embedder, name: str, export: Export, update: int, maker: ImageMaker, device: torch.device) -> Work:
    with torch.inference_mode():
        black = torch.zeros(1, *shape_of(export.crop), dtype=torch.uint8, device=device)
        width = embedder.embed(black).shape[1]
    assert embedder.identity is not None
    about = {"export": name, "update": update, "gives": export.gives, "input": dataclasses.asdict(export.input),
             "precision": embedder.precision, "network": embedder.identity()}
    return Work("features", {_FIELD: ("<f4", (width,))}, about, maker,
                lambda batch: {_FIELD: embedder.whole(batch.crops)})


def _finish(store: Store, source: Source, readable: np.ndarray, rows: Path, out: Path) -> None:
    """Write the file, its list and what is missing in it, then take the rows away."""
    for place, reason in sorted(store.unreadable.items()):
        print(f"left out, cannot be read: {one_line(source.key(place))}: {reason}")
    keys = write_lines(source.key(place) for place in readable.tolist())
    try:
        write_atomically(out.with_suffix(".txt"), lambda file: file.write(keys))
        write_atomically(out, lambda file: _write(file, store, readable, out.suffix))
    except (OSError, RuntimeError, UserError):
        if not removed(rows) or not out.exists():
            raise
        return  # another part finished at the same time, and was faster
    aside = temporary(rows)
    with contextlib.suppress(FileNotFoundError):  # it was faster by less
        os.rename(rows, aside)  # at once: a folder of which a part is gone would be taken for a pass that was cut short
    shutil.rmtree(aside, ignore_errors=True)


def _finished_elsewhere(rows: Path, out: Path) -> bool:
    """Return, with a line, whether another job has written the file and taken the rows away meanwhile."""
    there = removed(rows) and out.exists()
    if there:
        shutil.rmtree(rows, ignore_errors=True)  # blocks of this job that came too late
        print(f"another job has finished meanwhile: {out} is there, and {rows} no longer needed")
    return there


def _write(file: BinaryIO, store: Store, readable: np.ndarray, suffix: str) -> None:
    """Write features [n, F] from row to row: all of them need not fit into memory."""
    shape = (len(readable), *store.header.fields[_FIELD][1])
    if suffix == ".npy":
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    else:
        size = 4 * shape[0] * shape[1]
        head = json.dumps({"features": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}).encode()
        head += b" " * (-len(head) % 8)
        file.write(len(head).to_bytes(8, "little") + head)
    for places in _cut(readable):
        file.write(np.ascontiguousarray(store.rows(places)[_FIELD]).data)


def _cut(places: np.ndarray) -> Iterator[np.ndarray]:
    for first in range(0, len(places), _TOGETHER):
        yield places[first : first + _TOGETHER]
