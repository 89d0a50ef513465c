"""From a recipe to its data and its method."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any, cast

import torch

from unlabeled.backbones.build import build_backbone
from unlabeled.config.card import Card
from unlabeled.config.files import find
from unlabeled.config.read import read_file
from unlabeled.config.recipe import Recipe
from unlabeled.config.tables import METHODS
from unlabeled.data.source import Source, open_source
from unlabeled.data.stream import TrainStream
from unlabeled.engine.plan import Plan
from unlabeled.engine.steps import seed_everything
from unlabeled.methods.base import BackboneModule, Info, Method, StreamInfo
from unlabeled.ops.distributed import rank, world


@dataclass(frozen=True)
class OpenStream:
    """A stream's card and the opened split."""

    card: Card
    source: Source


def method_class(recipe: Recipe) -> type[Method]:
    """Return the class that the recipe's method names: of the table, or `module:Class` of one's own."""
    name = recipe.method.name
    module, _, attribute = (METHODS[name][1] if name in METHODS else name).partition(":")
    return getattr(import_module(module), attribute)


def open_streams(recipe: Recipe) -> dict[str, OpenStream]:
    """Open the split of every stream of the recipe."""
    opened = {}
    for name, stream in recipe.data.streams().items():
        card = read_file(find("data", stream.card), Card)
        opened[name] = OpenStream(card, open_source(card, stream.split, stream.root))
    return opened


def train_streams(
    recipe: Recipe, opened: dict[str, OpenStream], plan: Plan, pin_memory: bool = False
) -> dict[str, TrainStream]:
    """Return this process's part of every stream that the method reads, by name."""
    return {
        name: TrainStream(
            opened[name].source,
            stream,
            name=name,
            seed=recipe.train.seed,
            batch=recipe.data.streams()[name].batch,
            rank=rank(),
            world=world(),
            grad_accum=recipe.train.grad_accum,
            workers=recipe.data.workers,
            updates_per_epoch=plan.updates_per_epoch,
            pin_memory=pin_memory,
        )
        for name, stream in method_class(recipe).streams(recipe.method).items()
    }


def make_info(recipe: Recipe, opened: dict[str, OpenStream]) -> Info:
    """Collect what the method may know of the run."""
    clock = opened[method_class(recipe).clock]
    streams = {}
    for name, stream in opened.items():
        labels = stream.source.labels
        streams[name] = StreamInfo(
            len(stream.source), recipe.data.streams()[name].batch, None if labels is None else torch.as_tensor(labels)
        )
    classes = clock.source.classes
    count = len(classes) if classes else None
    return Info(recipe.train.seed, rank(), world(), count, streams, clock.card.mean, clock.card.std)


def info_record(info: Info) -> dict[str, Any]:
    """Return what `run.json` keeps of `info`, so that the method can be built again without its data."""
    streams = {name: {"samples": s.samples, "batch": s.batch} for name, s in info.streams.items()}
    return {"classes": info.classes, "streams": streams, "mean": info.mean, "std": info.std}


def info_from_record(record: dict[str, Any], seed: int) -> Info:
    """Undo `info_record`, for one process and without labels."""
    streams = {name: StreamInfo(**s) for name, s in record["streams"].items()}
    mean, std = (tuple(x) if x else None for x in (record["mean"], record["std"]))
    return Info(seed, 0, 1, record["classes"], streams, mean, std)


def build_method(recipe: Recipe, info: Info) -> Method:
    """Build the method with its random initial weights, the same on every rank."""
    seed_everything(info.seed, "init")
    backbones: list[BackboneModule] = []

    def make_backbone() -> BackboneModule:
        backbones.append(cast(BackboneModule, build_backbone(recipe.backbone)))
        return backbones[-1]

    method = method_class(recipe)(recipe.method, make_backbone, info)
    if recipe.train.compile:
        for backbone in backbones:
            backbone.compile()
    return method
