"""From a recipe to its data, and what the method may know of it and of the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from unlabeled.config.base.objects import load_object
from unlabeled.config.batches import block_problem
from unlabeled.config.recipe import Recipe
from unlabeled.config.tables import METHODS
from unlabeled.data.batch import Batch
from unlabeled.data.stream import BatchShare, Reading, TrainStream
from unlabeled.data.streams import OpenStream, open_streams
from unlabeled.engine.plan import Plan
from unlabeled.engine.run.record import read_record
from unlabeled.errors import UserError
from unlabeled.methods.base import Info, Method, StreamInfo
from unlabeled.ops.distributed import rank, world


def method_class(recipe: Recipe) -> type[Method]:
    """Return the class that the recipe's method names: of the table, or `module:Class` of one's own."""
    found: type[Method] = load_object(recipe.method.name, {name: path for name, (_, path) in METHODS.items()})
    return found


def open_data(recipe: Recipe) -> dict[str, OpenStream]:
    """Open what the streams of the recipe read, with what is stored of their samples and its method asks for."""
    wanted = method_class(recipe).streams(recipe.method)
    return open_streams(recipe, {name: [record.name for record in stream.records] for name, stream in wanted.items()})


def train_streams(
    recipe: Recipe, opened: dict[str, OpenStream], plan: Plan, pin_memory: bool = False
) -> dict[str, TrainStream]:
    """Return this process's part of every stream that the method reads, by name."""
    return {
        name: TrainStream(
            opened[name].source,
            stream,
            BatchShare(recipe.data.streams()[name].batch, rank(), world(), recipe.train.grad_accum),
            Reading(recipe.data.workers, pin_memory, recipe.train.patience / 4),
            name=name,
            seed=recipe.train.seed,
            updates_per_epoch=plan.updates_per_epoch,
        )
        for name, stream in method_class(recipe).streams(recipe.method).items()
    }


def micro_batches(
    streams: dict[str, TrainStream], start: int, stop: int, waiting: Callable[[], None] = lambda: None
) -> Iterator[list[dict[str, Batch]]]:
    """Yield this process's micro-batches of each update in [start, stop), by stream; see `TrainStream.updates`."""
    for parts in zip(*(stream.updates(start, stop, waiting) for stream in streams.values()), strict=True):
        yield [dict(zip(streams, batches, strict=True)) for batches in zip(*parts, strict=True)]


def make_info(recipe: Recipe, opened: dict[str, OpenStream]) -> Info:
    """Collect what the method may know of the run."""
    kind = method_class(recipe)
    clock = opened[kind.clock]
    # the classes are those of the labels that are read
    labelled = [opened[name] for name, stream in kind.streams(recipe.method).items() if stream.labels]
    streams = {}
    for name, stream in opened.items():
        labels = stream.source.labels
        streams[name] = StreamInfo(
            len(stream.source), recipe.data.streams()[name].batch, None if labels is None else torch.as_tensor(labels),
            stream.source.records_about(),
        )
    names = tuple((labelled or [clock])[0].source.classes or ()) or None
    count = len(names) if names else None
    accum = recipe.train.grad_accum
    blocks = recipe.train.blocks or world() * accum
    return Info(recipe.train.seed, rank(), world(), count, streams, clock.card.mean, clock.card.std, names, accum,
                blocks)


def kept_blocks(recipe: Recipe, info: Info, run: Path) -> int:
    """Return the blocks of a batch that a run was begun with, where it goes on and its method works by them.

    A recipe that states their number has it. Raises UserError if they cannot be shared by the processes of this start.
    """
    if recipe.train.blocks is not None or not recipe.method.works_by_blocks():
        return info.block_count
    kept = read_record(run)["info"].get("blocks", info.block_count)
    if not isinstance(kept, int):
        raise UserError(f"{run / 'run.json'} is damaged: 'info.blocks' is {kept!r}; remove the file and give the "
                        "command again, which writes it anew")
    clock = info.streams[method_class(recipe).clock]
    if problem := block_problem(kept, clock.batch, info.world, info.grad_accum):
        raise UserError(f"{run} was begun with {kept} blocks per batch, by which its method works and which it keeps: "
                        f"{problem}. Start it with a number of processes that divides {kept // info.grad_accum}")
    return kept


def block_lines(recipe: Recipe, info: Info) -> list[str]:
    """Say how the global batch is cut into blocks, if the method works by them."""
    if not recipe.method.works_by_blocks():
        return []
    images = info.streams[method_class(recipe).clock].batch // info.block_count
    return [f"{info.block_count} block{'s' * (info.block_count > 1)} of {images} images per update (train.blocks)"]


def info_record(info: Info) -> dict[str, Any]:
    """Return what `run.json` keeps of `info`, so that the method can be built again without its data."""
    streams = {name: {"samples": s.samples, "batch": s.batch, "records": s.records} for name, s in info.streams.items()}
    return {
        "classes": info.classes, "streams": streams, "mean": info.mean, "std": info.std, "names": info.names,
        "blocks": info.block_count,
    }  # fmt: skip


def stored_info(run: Path, recipe: Recipe) -> Info:
    """Return what the method of a run may know, from its `run.json`. Raises UserError if that is damaged."""
    record = read_record(run)
    try:
        return info_from_record(record["info"], recipe.train.seed)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{run / 'run.json'} is damaged: 'info' lacks or misplaces {error}; give the run's own command "
                        "again, which writes it anew") from error


def info_from_record(record: dict[str, Any], seed: int) -> Info:
    """Undo `info_record`, for one process and without labels."""
    streams = {name: StreamInfo(**s) for name, s in record["streams"].items()}
    mean, std = (tuple(x) if x else None for x in (record["mean"], record["std"]))
    names = record.get("names")  # older runs do not have them
    return Info(seed, 0, 1, record["classes"], streams, mean, std, tuple(names) if names else None,
                block_count=record.get("blocks", 1))
