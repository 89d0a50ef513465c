"""Protocols that train a method on top of the run, by the same engine, in RUN/eval/NAME, and score its classifiers."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, cast

import torch

from unlabeled.config.augment import Clip
from unlabeled.config.protocols.vectors import ClipViews, Trained
from unlabeled.config.recipe import Data, Eval, Recipe, StreamData, Train
from unlabeled.config.sources import public, sized
from unlabeled.data.clips import Spacing
from unlabeled.data.sources.base import Source
from unlabeled.engine.exports.inflated import CLIP
from unlabeled.engine.passes.features import Features
from unlabeled.engine.public.networks import BACKBONE
from unlabeled.engine.restore import Restored, load_run
from unlabeled.engine.train import train
from unlabeled.errors import UserError
from unlabeled.evaluation.choice import choose_and_score, held_out_rule
from unlabeled.evaluation.classify import score_classifiers
from unlabeled.evaluation.setup import (
    Splits,
    inflated_backbone,
    pick_export,
    refuse_images_for_clips,
    scored_stream,
    shown,
)
from unlabeled.evaluation.vectors.scores import Score
from unlabeled.methods.base import Choosing, Export
from unlabeled.ops.distributed import world

# keys of the recipe that `recipe_on` makes, and of the protocol
_KEYS = (
    ("data.train.card", "card"),
    ("data.train.root", "root"),
    ("data.train.split", "train"),
    ("data.train", "data"),
    ("data.workers", "workers"),
    ("data.max_corrupt", "max_corrupt"),
    ("train.epochs", "epochs"),
    ("train.seed", "seed"),
    ("train.precision", "precision"),
    ("train.sync_bn", "sync_bn"),
)


def train_and_score(
    name: str, cfg: Trained, restored: Restored, splits: Splits, device: torch.device
) -> tuple[str, dict[str, dict[str, Score]], Features]:
    """Train `cfg` on the run and, if wanted, on its network at random initialisation; score the last update on test.

    Returns the export's name, scores by kind (network, random_init) and by number, and the test images as they were
    read; on other ranks than 0 the scores are empty. Raises UserError for bad input, or if a training was interrupted.
    """
    assert splits.test is not None
    export, _ = pick_export(restored.method, cfg.export)
    scores: dict[str, dict[str, Score]] = {}
    for kind, folder in (("network", name), ("random_init", f"{name}-random-init")):
        if kind == "random_init" and not cfg.random_init:
            continue
        path = restored.run / "eval" / folder
        try:
            result = train(recipe_on(cfg, restored, splits.train, trained=kind == "network"), path)
        except UserError as error:
            raise UserError(protocol_keys(str(error))) from None
        if not result.finished:
            raise UserError(f"{path} was interrupted after update {result.update}; the same command goes on from there")
        method = load_run(path, device=device).method
        # cfg.export is what was trained upon; what was trained in batches can be scored in them
        clip = next(iter(method.exports().values())).input.clip
        images = max(1, cfg.data.batch // world()) * (1 if clip is None else clip.frames)
        own = cfg.model_copy(update={"export": None, "batch": min(cfg.batch, images),
                                     "clip": ClipViews() if clip is None else cfg.clip})
        if cfg.held_out is None:
            scores[kind], found = score_classifiers(method, own, splits.test, device)
        else:
            scores[kind], found = choose_and_score(cast(Choosing, method), own, splits.train, splits.test, device)
    return export, scores, found


def protocol_keys(message: str) -> str:
    """Return what the engine says of a recipe in the words of the protocol that it was made of."""
    for recipe, protocol in _KEYS:
        message = re.sub(rf"\b{re.escape(recipe)}\b", protocol, message)
    return message


def recipe_on(cfg: Trained, restored: Restored, source: Source, *, trained: bool = True) -> Recipe:
    """Return the recipe that trains `cfg` on the run's export, with the labels of `source`; trained: False at random.

    Raises UserError for options of clips where there are none.
    """
    export, chosen = pick_export(restored.method, cfg.export, cfg.size)
    if cfg.inflate is not None:
        chosen = replace(chosen, input=replace(chosen.input, clip=CLIP))
    own = None if cfg.card else scored_stream(restored)[1]
    learnt = {"subset": held_out_rule(cfg, complement=True)} if cfg.held_out else {}
    part, own_size = sized(export), restored.recipe.backbone.size
    init = {"init": _source(restored, export), "init_weights": trained, "size": part.size if part else own_size}
    backbone = restored.recipe.backbone if cfg.inflate is None else inflated_backbone(cfg.inflate, restored)
    return Recipe(
        method=_fitted(cfg, chosen, source),
        backbone=backbone.model_copy(update=init),
        data=Data(
            workers=cfg.workers,
            max_corrupt=cfg.max_corrupt,
            train=StreamData(
                card=own.card if own else cfg.card,
                root=cfg.root or (own.root if own else None),
                split=source.split,
                **{**dict(cfg.data), **learnt},
            ),
        ),
        optim=cfg.optim,
        train=Train(
            epochs=cfg.epochs,
            seed=cfg.seed,
            precision=cfg.precision,
            sync_bn=cfg.sync_bn,
            checkpoint_every=cfg.checkpoint_every,
            allow_changed_data=cfg.allow_changed_data,
            allow_rescale=True,  # whoever evaluates did not choose the processes of a run
        ),
        eval=Eval(every=0),
    )


def _source(restored: Restored, export: str) -> str:
    """Return the name under which a recipe starts from an export. Raises UserError for a part of a public network."""
    named = public(restored.public or "")
    if named is None:
        return f"{restored.run.resolve()}:{export}"
    if export != BACKBONE:
        raise UserError(f"export={export}: what trains on {named} starts from its backbone; leave the export out")
    return str(replace(named, file=named.file and named.file.resolve()))


def _fitted(cfg: Trained, export: Export, source: Source) -> Any:
    """Return the method's options with crops of the network's own size and its clips, unless the protocol gives them.

    Of images, and by a method for them, a network for clips sees single frames. Raises UserError if a protocol asks for
    clips where there are none.
    """
    spacing, given = shown(export, None, cfg.clip).input.clip, cfg.clip.model_fields_set
    crop, update = getattr(cfg.method, "crop", None), dict[str, Any]()
    if crop is not None and "size" not in crop.model_fields_set:
        update["crop"] = crop.model_copy(update={"size": export.input.size})
    if spacing is not None and given:
        refuse_images_for_clips(export, source)
    if export.input.clip is not None and source.has_clips and getattr(cfg.method, "clip", export) is None:
        spacing = spacing or Spacing(1)  # single frames are drawn from anywhere in a video
        update["clip"] = Clip(frames=spacing.frames, stride=spacing.stride, per_second=spacing.per_second)
    return cfg.method.model_copy(update=update)
