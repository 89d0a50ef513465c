"""Tiny runs of every method, in this process or in several: what the battery and the engine's tests train."""

from __future__ import annotations

import functools
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.util import Finalize
from pathlib import Path

import numpy as np
import tiny_stores
import torch
from data.toy_videos import write_video
from tiny_maps import labelmaps

from unlabeled.config.read import read_recipe
from unlabeled.config.recipe import Recipe
from unlabeled.config.yaml.write import to_yaml
from unlabeled.data.batch import Batch
from unlabeled.data.stream import TrainStream
from unlabeled.engine import build, launch
from unlabeled.engine.exports.networks import write_exports
from unlabeled.engine.method import build_method
from unlabeled.engine.plan import make_plan
from unlabeled.engine.run.folder import RunFolder
from unlabeled.engine.steps import make_step
from unlabeled.engine.updater import Updater
from unlabeled.methods.base import Losses, Method, Step
from unlabeled.ops.distributed import rank, world

UPDATES = 6
BATCH = 24  # divides by 1, 2, 3 and 4 processes

_DIGITS = ["data.train.card=digits", "data.workers=0"]

_DISTIL = "name: distil, teacher: '@teacher', crop: {kind: padded, size: 8}"

_SSLD = "name: ssld, teacher: '@teacher', crop: {kind: paddle, size: 8, area: [0.5, 1.0]}"
_BLOCKS = ["data.train.batch=64", "train.blocks=4"]  # of 16 images, the fewest that a teacher's statistics need
# crops of 16 pixels, whose last map has 2 x 2 cells
_FEATURE_DISTIL = "name: feature-distil, teacher: '@teacher:backbone', crop: {size: 16, area: [0.5, 1.0]}"
_REINFORCEMENT = "name: reinforcement, crop: {kind: padded, size: 8, flip: 0.5}"
_ENTRIES = [*_DIGITS, "data.train.records={reinforcement: '@entries'}"]

# two batch sizes; a bank of three updates, which six updates fill twice; confident enough for every image
_SIMMATCHV2 = ["data.labeled.batch=12", "method.bank=72", "method.topn=7", "method.threshold=0.1"]

# narrow heads, and crops of 32 pixels, whose last map has 4 x 4 cells
_PIXPRO = [
    "data.train.card=digits",
    "backbone.stem=cifar",
    "method.hidden=24",
    "method.dim=12",
    "method.crop={kind: resized, size: 32, area: [0.3, 1.0]}",
]

# sub-networks of two blocks of the batch in every process; crops of 4 x 4 and of 2 x 2 patches; two heads
_POA = [
    *_DIGITS,
    "train.blocks=4",
    "train.nonfinite=stop",
    "backbone={name: elastic_vit_tiny, options: {widths: [4, 12, 4], depths: [2, 3], head_width: 4, patch_size: 2, "
    "img_size: 8, layer_scale: 1.0, drop_path_rate: 0.3}}",
    "method.prototypes=[10, 14]",
    "method.hidden=16",
    "method.bottleneck=8",
    "method.crop={size: 8, area: [0.5, 1.0]}",
    "method.local_crop={size: 4, area: [0.2, 0.5]}",
]

_GRID = "name: linear-grid, crop: {kind: padded, size: 8}, lr: [0.1, 0.5]"
# clips of four frames of videos of twelve, a crop of 16 pixels, two hidden layers of the head
_CVRL = [
    "data.train.card=videos",
    "data.train.root='@videos'",
    "backbone.width=0.5",
    "method.clip={frames: 4, stride: 2}",
    "method.head={layers: 2, hidden: 12, out_dim: 8}",
    "method.crop.size=16",
    "method.augment={blur_p: [1.0, 0.1]}",
]

# a clip of each with its label
_CLIPS = ["data.train.card=classvideos", "data.train.root='@videos'", "backbone.width=0.5"]
_OF_CLIPS = "clip: {frames: 4, stride: 2}, crop: {size: 16, area: [0.3, 1.0]}"

_RELABEL = "name: relabel, crop: {size: 8, area: [0.2, 1.0]}"
_MAPS = ["data.train.records={labelmap: '@labelmaps'}"]

# random depth and dropout of a ViT of two blocks, whose tokens are rows of 4
DROPS = (
    "{name: vit_tiny_patch16_224, options: {img_size: 8, patch_size: 4, depth: 2, embed_dim: 8, num_heads: 1, "
    "global_pool: avg, class_token: false, drop_path_rate: 0.5, proj_drop_rate: 0.3, pos_drop_rate: 0.2}}"
)

# method -> variants, each a recipe and overrides; together the variants use every part of the method
TINY: dict[str, dict[str, tuple[str, list[str]]]] = {
    "cvrl": {
        "plain": ("demo/cvrl", [*_CVRL]),
        "frames": ("demo/cvrl", [*_CVRL, "method.augment.per_frame=true", "method.interval.law=increasing"]),
    },
    "distil": {
        "plain": ("cifar10/rotnet-cpu", [*_DIGITS, f"method={{{_DISTIL}}}"]),
        "labels": (
            "cifar10/rotnet-cpu",
            [
                *_DIGITS,
                f"method={{{_DISTIL}, temperature: 2.0, alpha: 0.7, labels: {{share: 0.5}}}}",
            ],
        ),
    },
    "feature-distil": {
        "pooled": ("cifar10/rotnet-cpu", [*_DIGITS, f"method={{{_FEATURE_DISTIL}}}"]),
        "cells": (
            "cifar10/rotnet-cpu",
            [
                *_DIGITS,
                f"method={{{_FEATURE_DISTIL}, pooled: 0.0, cells: 1.0, loss: {{kind: smooth_l1}}}}",
                f"backbone={DROPS.replace('img_size: 8', 'img_size: 16')}",
            ],
        ),
        "both": (
            "cifar10/rotnet-cpu",
            [*_DIGITS, f"method={{{_FEATURE_DISTIL}, cells: 0.5, standardise: vectors}}"],
        ),
    },
    "finetune": {
        "plain": ("cifar10/rotnet-cpu", [*_DIGITS, "method={name: finetune, crop: {kind: padded, size: 8}}"]),
        "regularised": (
            "cifar10/rotnet-cpu",
            [
                *_DIGITS,
                "method={name: finetune, crop: {kind: padded, size: 8}, layer_decay: 0.7, randaugment: {}, "
                "erasing: 0.5, smoothing: 0.1}",
            ],
        ),
        "drops": (
            "cifar10/rotnet-cpu",
            [*_DIGITS, "method={name: finetune, crop: {kind: padded, size: 8}}", f"backbone={DROPS}"],
        ),
        "average": (
            "cifar10/rotnet-cpu",
            [*_DIGITS, "method={name: finetune, crop: {kind: padded, size: 8}, ema: 0.7}"],
        ),
        "clips": ("demo/cvrl", [*_CLIPS, f"method={{name: finetune, {_OF_CLIPS}, dropout: 0.5}}"]),
    },
    "linear-grid": {
        "tokens": (
            "cifar10/rotnet-cpu",
            [
                *_DIGITS,
                f"method={{{_GRID}}}",
                f"backbone={DROPS.replace('global_pool: avg, class_token: false, ', '')}",
            ],
        ),
        "vector": ("cifar10/rotnet-cpu", [*_DIGITS, f"method={{{_GRID}}}"]),
    },
    "pixpro": {
        "plain": ("demo/pixpro", [*_PIXPRO, "method.head_output_bias=true"]),
        "instance": (
            "demo/pixpro",
            [*_PIXPRO, "method.pixel.transform_layers=2", "method.instance={kind: byol, predictor_hidden: 16}"],
        ),
        "contrast": (
            "demo/pixpro",
            [*_PIXPRO, "method.pixel={kind: contrast}", "method.instance={kind: infonce, weight: 0.5}"],
        ),
        "fpn": (
            "demo/pixpro",
            [*_PIXPRO, "method.fpn={levels: [3, 4, 5], width: 16}", "method.pixel.sharpness=1.0"],
        ),
    },
    "probe": {
        "heads": (
            "cifar10/rotnet-cpu",
            [
                *_DIGITS,
                "method={name: probe, crop: {kind: padded, size: 8}, heads: {output: {}, "
                "pooled: {block: layer1, pool: 2, norm: true}, mlp: {kind: mlp, block: layer2, width: 9}, "
                "conv: {kind: conv, block: layer1}}}",
            ],
        ),
        "clips": (
            "demo/cvrl",
            [
                *_CLIPS,
                f"method={{name: probe, {_OF_CLIPS}, heads: {{output: {{normalize: true}}, "
                "pooled: {block: layer2, pool: 2, norm: true}, mlp: {kind: mlp, block: layer1, width: 9}}}",
            ],
        ),
    },
    "poa": {
        "sinkhorn": ("demo/poa", [*_POA]),
        "centering": ("demo/poa", [*_POA, "method.targets=centering", "method.elastic.same_view=false"]),
        "intact": ("demo/poa", [*_POA, "method.elastic=null", "method.local_crops=0", "method.koleo=0"]),
        "later": ("demo/poa", [*_POA, "method.patches.start_epoch=0.02", "method.elastic.cross_view=false"]),
    },
    "reinforcement": {
        "plain": ("cifar10/rotnet-cpu", [*_ENTRIES, f"method={{{_REINFORCEMENT}, replay: 0.6}}"]),
        "mixed": (
            "cifar10/rotnet-cpu",
            [
                *_DIGITS,
                "data.train.records={reinforcement: '@mixed-entries'}",
                "method={name: reinforcement, mix: true, crop: {size: 8, flip: 0.0, interpolation: bilinear}, "
                "replay: 1.0}",
            ],
        ),
        "label": ("cifar10/rotnet-cpu", [*_ENTRIES, f"method={{{_REINFORCEMENT}, targets: label}}"]),
        "none": ("cifar10/rotnet-cpu", [*_DIGITS, f"method={{{_REINFORCEMENT}, replay: 0.0, randaugment: null}}"]),
    },
    "relabel": {
        "plain": ("cifar10/rotnet-cpu", [*_DIGITS, f"method={{{_RELABEL}, cutmix: {{off_last_epochs: 0}}}}", *_MAPS]),
        "whole": (
            "cifar10/rotnet-cpu",
            [
                *_DIGITS,
                f"method={{{_RELABEL}, pooling: whole, cutmix: {{p: 0.5, beta: 0.7, off_last_epochs: 0}}}}",
                *_MAPS,
                "optim={name: adamp, lr: {base: 0.01}, nesterov: true, weight_decay: 0.01}",
            ],
        ),
        "labels": (
            "cifar10/rotnet-cpu",
            [*_DIGITS, f"method={{{_RELABEL}, targets: label, smoothing: 0.1, cutmix: {{off_last_epochs: 0}}}}"],
        ),
    },
    "rotnet": {
        "all": ("cifar10/rotnet-cpu", [*_DIGITS, "method.crop={kind: padded, size: 8, pad: 1}"]),
        "one": (
            "cifar10/rotnet-cpu",
            [*_DIGITS, "method.crop={kind: square, size: 12, proportion: 0.8}", "method.all_rotations=false"],
        ),
    },
    "simmatchv2": {
        "plain": ("demo/simmatchv2", _SIMMATCHV2),
        "multicrop": (
            "demo/simmatchv2",
            [
                *_SIMMATCHV2,
                "method.ema.kind=eman",
                "method.align=false",
                "method.feature_norm=false",
                "method.bank_init=uniform",
                "method.crop={kind: resized, size: 12, area: [0.5, 1.0]}",
                "method.strong=[{size: 12, area: [0.3, 1.0]}, {size: 10, area: [0.2, 0.9]}, {size: 8}]",
                "method.augment={kind: color, blur_p: 0.5}",
            ],
        ),
        "randaugment": (
            "demo/simmatchv2",
            [
                *_SIMMATCHV2,
                "method.crop={kind: padded, size: 8, pad: 1, border: reflect}",
                "method.strong=[{kind: padded, size: 8, pad: 1, border: reflect}]",
                "method.augment={kind: randaugment}",
            ],
        ),
    },
    "ssld": {
        "batch": (
            "cifar10/rotnet-cpu",
            [*_DIGITS, *_BLOCKS, f"method={{{_SSLD}}}"],
        ),
        "running": (
            "cifar10/rotnet-cpu",
            [*_DIGITS, f"method={{{_SSLD}, teacher_bn: running, loss: soft_ce, policy: autoaugment}}"],
        ),
    },
    "simclrv2": {
        "plain": ("demo/simclrv2", []),
        "colour": ("demo/simclrv2-shapes", ["method.augment.blur_p=0.5"]),
        "memory": ("demo/simclrv2", ["method.memory={size: 120, decay: 0.9}", "method.online_probe=true"]),
    },
}
VARIANTS = [(method, variant) for method, variants in TINY.items() for variant in variants]


_SMALL = [
    "train.epochs=null",
    f"train.updates={UPDATES}",
    "train.precision=fp32",
    "optim.warmup_epochs=0",
    "eval.at_end=[]",
    "eval.every=0",
]


@dataclass(frozen=True)
class Case:
    """What the checks of the battery run on: a recipe by name or path, at tiny size.

    batch: images per update of every stream, None being the recipe's. dtype: in which exactness is asked. processes:
    how many share an update. In overrides @teacher and the like stand for what a method may start from (`_MADE`).
    """

    name: str
    recipe: str
    overrides: tuple[str, ...] = ()
    batch: int | None = None
    dtype: torch.dtype = torch.float64
    processes: tuple[int, ...] = (2, 4)

    def read(self, more: Sequence[str] = ()) -> Recipe:
        """Read the recipe with its overrides, and `more` of them."""
        return read_recipe(self.recipe, self.settings(more))

    def settings(self, more: Sequence[str] = ()) -> list[str]:
        """Return all overrides, as a command line takes them."""
        own = [_placed(text) for text in self.overrides]
        if self.batch is None:
            return [*_SMALL, *own, *more]
        streams = read_recipe(self.recipe, [*_SMALL, *own, *more]).data.streams()
        batches = [f"data.{stream}.batch={self.batch}" for stream in streams]
        return [*_SMALL, *batches, *own, *more]


def tiny_case(method: str, variant: str, *more: str, name: str = "") -> Case:
    """Return a variant as a case, with more overrides under a name of its own; the first ones run on four too."""
    recipe, own = TINY[method][variant]
    processes = (2, 4) if variant == next(iter(TINY[method])) else (2,)
    small = "backbone.width=0.125"
    return Case(name or f"{method}-{variant}", recipe, (small, *own, *more), BATCH, processes=processes)


def tiny_recipe(method: str, variant: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a variant at tiny size."""
    return tiny_case(method, variant).read(overrides)


@functools.cache
def teacher() -> Path:
    """Make what a finished fine-tuning run leaves behind, equal in every process: a classifier with random weights."""
    run = Path(tempfile.mkdtemp(prefix="teacher-"))
    Finalize(None, shutil.rmtree, [run, True], exitpriority=0)  # also runs where a process of multiprocessing ends
    recipe = tiny_recipe("finetune", "plain")
    info = build.make_info(recipe, build.open_data(recipe))
    method = build_method(recipe, info)
    torch.nn.init.normal_(method.classifier.linear.weight)
    (run / "recipe.yaml").write_text(to_yaml(recipe))
    (run / "run.json").write_text(json.dumps({"info": build.info_record(info)}))
    write_exports(RunFolder(run), recipe, method, 0, info.names)
    return run


@functools.cache
def videos() -> Path:
    """Write 40 videos of twelve frames in two class folders, equal in every process."""
    folder = Path(tempfile.mkdtemp(prefix="videos-"))
    Finalize(None, shutil.rmtree, [folder, True], exitpriority=0)
    random = np.random.default_rng(0)
    for number in range(40):
        frames = random.integers(0, 256, (12, 4, 4, 3), np.uint8).repeat(6, 1).repeat(6, 2)
        file = folder / "train" / "ab"[number % 2] / f"{number:02}.mkv"
        write_video(file, frames, "ffv1")  # x264 writes other bytes in every process
    return folder


# what overrides may name -> what makes it
_MADE: dict[str, Callable[[], Path]] = {
    "@teacher": teacher,
    "@labelmaps": labelmaps,
    "@videos": videos,
    "@entries": functools.partial(tiny_stores.reinforcement, mix=False),
    "@mixed-entries": functools.partial(tiny_stores.reinforcement, mix=True),
}


def _placed(text: str) -> str:
    """Return an override with the places of what it names."""
    return re.sub(r"@[\w-]+", lambda name: str(_MADE[name[0]]()), text)


@dataclass
class Tiny:
    """One process's part of a tiny run."""

    updater: Updater
    streams: dict[str, TrainStream]

    def micros(self, update: int) -> list[dict[str, Batch]]:
        """Return the micro-batches of `update` of this process."""
        parts = [next(stream.updates(update, update + 1)) for stream in self.streams.values()]
        return [dict(zip(self.streams, batches, strict=True)) for batches in zip(*parts, strict=True)]

    def train(self, start: int, stop: int) -> list[float]:
        """Do the updates [start, stop) and return their losses."""
        return [float(self.updater.update(u, self.micros(u), [0]).values["loss"]) for u in range(start, stop)]

    def losses(self, update: int) -> tuple[dict[str, torch.Tensor], Step, Losses]:
        """Return views, step and losses of the first micro-batch of `update`, without stepping."""
        views = self.updater.views(update, 0, self.micros(update)[0])
        step = make_step(self.updater.plan, update, 0, self.updater.seed, rank())
        return views, step, self.updater.model(views, step)

    def first_gradients(self) -> tuple[dict[str, torch.Tensor], torch.Tensor, dict[str, torch.Tensor]]:
        """Return views, loss and gradients of the first update, without stepping."""
        views, _, losses = self.losses(0)
        loss = sum(losses.terms.values())
        loss.backward()
        named = self.updater.method.named_parameters()
        return views, loss.detach(), {name: p.grad for name, p in named if p.requires_grad}


class _Typed(Updater):
    """Gives the method its views in its own dtype."""

    def views(self, update: int, micro: int, batch: dict[str, Batch]) -> dict[str, torch.Tensor]:
        dtype = next(self.method.parameters()).dtype
        views = super().views(update, micro, batch)
        return {name: x.to(dtype) if x.is_floating_point() else x for name, x in views.items()}


def tiny_run(
    recipe: Recipe, dtype: torch.dtype = torch.float32, change: Callable[[Method], None] | None = None
) -> Tiny:
    """Build the run in this process, which may be one of several; `change` its networks before they are wrapped."""
    accelerator = launch.start(recipe.train)
    opened = build.open_data(recipe)
    clock = build.method_class(recipe).clock
    plan = make_plan(recipe, clock, len(opened[clock].source), world())
    method = build_method(recipe, build.make_info(recipe, opened)).to(dtype)
    if change:
        change(method)
    streams = build.train_streams(recipe, opened, plan)
    return Tiny(_Typed(method, recipe, plan, accelerator), streams)


def snapshot(tiny: Tiny) -> dict[str, torch.Tensor]:
    """Return a copy of the method's state."""
    return {name: x.clone() for name, x in tiny.updater.method.state_dict().items()}


def differing(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> list[str]:
    """Return the names whose bits differ."""
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]
