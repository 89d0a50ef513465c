"""Updates that gave a NaN or an infinity, kept with all that a replay needs: batches, keys, seed, the weights before.

RUN/nonfinite/update-UUUUUUUU holds `update.json`, `weights.pt` and, of every process, its micro-batches in
`rank-RRRR.pt` and the keys of their samples in `rank-RRRR.json`.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unlabeled.data.batch import Batch
from unlabeled.data.sources.base import Source
from unlabeled.data.sources.fingerprint import Names
from unlabeled.errors import UserError
from unlabeled.methods.base import Method
from unlabeled.ops.distributed import on_rank0, raise_together, rank, world
from unlabeled.ops.machine.files import disk_error, read_json, sha256, temporary, write_atomically

FOLDER = "nonfinite"
MOST = 3  # kept updates of a run, each as large as its weights and its batch
_NAME = re.compile(r"update-(\d{8,})")

Micros = list[dict[str, Batch]]


@dataclass(frozen=True)
class Kept:
    """A kept update. about: what `update.json` says. state: of the method before it, without the optimizer's."""

    folder: Path
    about: dict[str, Any]
    state: dict[str, Any]

    @property
    def update(self) -> int:
        """Its number, from 0."""
        number: int = self.about["update"]
        return number

    def batches(self, number: int) -> Micros:
        """Return the micro-batches of process `number`. Raises UserError if they are damaged."""
        parts = _load(self.folder, f"rank-{number:04d}.pt", self.about)
        return [{name: Batch(**batch) for name, batch in micro.items()} for micro in parts["micros"]]

    def keys(self, number: int) -> list[dict[str, list[str]]]:
        """Return the keys of the samples of process `number`, by micro-batch and stream."""
        keys: list[dict[str, list[str]]] = _json(self.folder / f"rank-{number:04d}.json")["keys"]
        return keys


def keep_update(run: Path, method: Method, micros: Micros, sources: Mapping[str, Source], about: dict[str, Any],
                most: int = MOST) -> str:
    """Keep an update whose loss or gradient was not finite and that has changed nothing; call it on all ranks at once.

    about: what `update.json` says besides hashes, with the number `update`. most: of updates in the run. Returns one
    line for people: where it is and how large, or why it is not; nothing where enough are kept.
    """
    folder = run / FOLDER / f"update-{about['update']:08d}"
    try:
        beside = on_rank0(lambda: _begin(folder, most))
        if beside is None:
            return _told(run, folder) if on_rank0(folder.is_dir) else ""
        problem: Exception | None = None
        try:
            _write_rank(beside, micros, sources)
        except (UserError, OSError) as error:
            problem = error
        raise_together(problem, next(method.parameters()).device)
        on_rank0(lambda: _finish(beside, folder, method, about))
    except (UserError, OSError) as error:
        return f"It could not be kept for a replay: {error}"
    return _told(run, folder)


def read_kept(run: Path, update: int | None = None) -> Kept:
    """Return a kept update of a run, its last one if none is named. Raises UserError if there is none or it is damaged.
    """
    names = [path for path in (run / FOLDER).glob("update-*") if _NAME.fullmatch(path.name)]
    places = {int(path.name.removeprefix("update-")): path for path in names}
    if not places:
        raise UserError(f"{run} has kept no update for a replay: its losses and gradients were finite, or "
                        f"{run / FOLDER} was removed")
    if update is not None and update not in places:
        raise UserError(f"{run} has not kept update {update}; kept: {', '.join(map(str, sorted(places)))}")
    folder = places[max(places) if update is None else update]
    about = _json(folder / "update.json")
    wanted = {"update": int, "seed": int, "world": int, "grad_accum": int, "precision": str, "device": str,
              "nonfinite": list, "sha256": dict}
    wrong = next((key for key, kind in wanted.items() if not isinstance(about.get(key), kind)), None)
    if wrong is not None or not 0 < about["world"] < 1 << 16:
        raise UserError(f"{folder / 'update.json'} is damaged: '{wrong or 'world'}' is missing or of another form")
    return Kept(folder, about, _load(folder, "weights.pt", about))


def _begin(folder: Path, most: int) -> Path | None:
    """Return the folder to fill; None where this update is kept already, or as many as may be."""
    there = [path for path in folder.parent.glob("update-*") if _NAME.fullmatch(path.name)]
    if folder in there or len(there) >= most:
        return None
    beside = temporary(folder)
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
    except OSError as error:
        raise disk_error(folder, error) from error
    return beside


def _write_rank(beside: Path, micros: Micros, sources: Mapping[str, Source]) -> None:
    keys = [{name: _keys(sources[name], batch) for name, batch in micro.items()} for micro in micros]
    text = json.dumps({"rank": rank(), "keys": keys}, indent=1).encode()
    write_atomically(beside / f"rank-{rank():04d}.json", lambda file: file.write(text))
    plain = [{name: vars(_plain(batch)) for name, batch in micro.items()} for micro in micros]
    write_atomically(beside / f"rank-{rank():04d}.pt", lambda file: torch.save({"micros": plain}, file))


def _plain(batch: Batch) -> Batch:
    """Return a batch on the CPU, whose keys are plain strings: a restricted reader knows no others."""
    batch = batch.to(torch.device("cpu"))
    batch.corrupt = [str(key) for key in batch.corrupt]
    return batch


def _keys(source: Source, batch: Batch) -> list[str]:
    if source.random_access:
        return [source.key(index) for index in batch.index.tolist()]
    # of a streamed set the index is the shard's number and the place in it
    shards: Names | list[str] = source.names() or []
    return [f"{shards[index >> 32]}, sample {index & 0xFFFFFFFF}" for index in batch.index.tolist()]


def _finish(beside: Path, folder: Path, method: Method, about: dict[str, Any]) -> None:
    """Write weights and `update.json`, and give the folder its name."""
    stored = method.state_dict()
    others = {name: buffer for name, buffer in method.named_buffers() if name not in stored}
    write_atomically(beside / "weights.pt", lambda file: torch.save({"method": stored, "buffers": others}, file))
    sums = {file.name: sha256(file) for file in sorted(beside.glob("*.pt"))}
    text = json.dumps({**about, "world": world(), "sha256": sums}, indent=1).encode()
    write_atomically(beside / "update.json", lambda file: file.write(text))
    try:
        beside.rename(folder)
    except OSError as error:
        raise disk_error(folder, error) from error


def _told(run: Path, folder: Path) -> str:
    size = sum(file.stat().st_size for file in folder.iterdir())
    return (f"Its batch and the weights before it are kept ({folder}, {size / 1e6:.1f} MB): unlabeled replay {run} "
            f"update={int(folder.name.removeprefix('update-'))} says which module first gave it")


def _json(file: Path) -> dict[str, Any]:
    try:
        value = read_json(file)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}") from error
    except ValueError:
        raise UserError(f"{file} is damaged: it is no JSON") from None
    if not isinstance(value, dict):
        raise UserError(f"{file} is damaged: it holds something else")
    return value


def _load(folder: Path, name: str, about: Mapping[str, Any]) -> dict[str, Any]:
    """Read a file of tensors, whose hash must be the one that was written. Raises UserError."""
    file = folder / name
    try:
        if sha256(file) != about["sha256"].get(name):
            raise UserError(f"{file} is damaged: its hash differs from the one in update.json")
        value = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}") from error
    except (UserError, MemoryError):
        raise
    except Exception as error:  # torch and pickle raise almost anything
        raise UserError(f"{file} holds something else than tensors: {str(error).partition(chr(10))[0]}") from error
    if not isinstance(value, dict):
        raise UserError(f"{file} holds something else")
    return value


def joined(parts: Sequence[Micros]) -> Micros:
    """Return the micro-batches that one process would have in the place of several, given those of each in rank order.
    """
    return [{name: _concatenated([micro[name] for micro in several]) for name in several[0]}
            for several in zip(*parts, strict=True)]


def _concatenated(batches: list[Batch]) -> Batch:
    def cat(values: Sequence[Tensor | None]) -> Tensor | None:
        tensors = [value for value in values if value is not None]
        return torch.cat(tensors) if len(tensors) == len(values) else None

    first = batches[0]
    crops = [torch.cat([batch.crops[i] for batch in batches]) for i in range(len(first.crops))]
    boxes = [cat([batch.boxes[i] for batch in batches]) for i in range(len(first.boxes))]
    records = {name: {key: torch.cat([batch.records[name][key] for batch in batches]) for key in fields}
               for name, fields in first.records.items()}
    return Batch(crops, boxes, torch.cat([batch.index for batch in batches]), cat([batch.label for batch in batches]),
                 [key for batch in batches for key in batch.corrupt], records)
