"""What passes that keep label maps or entries cost beside their teacher's own forward passes."""

from __future__ import annotations

import argparse
import contextlib
import io
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import measure, pictures
from unlabeled.augment.geometry import EvalCrop
from unlabeled.augment.photometric import to_input
from unlabeled.augment.replay.crops import drawing
from unlabeled.augment.replay.entries import Law, fields
from unlabeled.backbones.maps import maps
from unlabeled.config.augment import StoredResizedCrop
from unlabeled.config.card import Card
from unlabeled.config.read import read_file
from unlabeled.data.batch import Batch
from unlabeled.data.evaluation import ImageMaker
from unlabeled.data.sources.base import Source
from unlabeled.data.sources.open import open_source
from unlabeled.data.sources.subset import Part
from unlabeled.engine.passes.run import Work, run_pass
from unlabeled.methods.base import Input
from unlabeled.ops.machine.memory import keep_freed_memory
from unlabeled.ops.precision import Resolved, autocast, full_precision
from unlabeled.passes.entries import KIND, EntryMaker
from unlabeled.passes.teachers import Teachers, teach

QUESTION = "how much of the speed of a teacher's own forward passes has a pass that keeps what it says?"
SHARE_BAR, ENTRIES_BAR = 0.9, 0.85
CPU = torch.device("cpu")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH, KEPT = 32, 5  # images at once, logits of a cell
ENTRIES, TOPK = 8, 10  # views of an image, classes that are kept of each


class Setting(NamedTuple):
    """How many threads compute and how many processes read images; the clock that tells of it."""

    threads: int
    workers: int
    clock: Callable[[], float]


def _cpu_seconds() -> float:
    """Return the CPU time of this process and its ended children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


SETTINGS = {"CPU time, one thread, one process reads": Setting(1, 1, _cpu_seconds),
            "wall time, two threads, two processes read": Setting(2, 2, time.perf_counter)}


def main(words: list[str] | None = None) -> int:
    """Time forward passes on ready tensors and the pass over JPEG files, in turns."""
    parser = measure.arguments("passes", QUESTION, repeats=5)
    parser.add_argument("--images", type=int, default=192, help="of the long pass; the short one has a third "
                        "(default 192)")
    given = parser.parse_args(words)
    if given.quick:
        given.repeats, given.images = 1, 24
    keep_freed_memory()
    report = measure.Report("passes", "Passes", QUESTION)
    size = 64 if given.quick else 224
    name = "resnet18" if given.quick else "resnet50"
    teacher = _teacher(name)
    with tempfile.TemporaryDirectory() as folder:
        images = pictures.photographs(given.images, 375, 500)
        source = open_source(read_file(pictures.jpeg_set(Path(folder), images), Card), "train")
        settings = [(precision, clock) for precision in _precisions(given) for clock in SETTINGS]
        rows = [[precision, clock, *_labelmaps(teacher, source, size, precision, SETTINGS[clock], given)]
                for precision, clock in settings]
        views = [[precision, clock, *_entries(teacher, source, size, precision, SETTINGS[clock], given)]
                 for precision, clock in settings]
    report.say(f"**Label maps** of JPEG files, 500 x 375 pixels, file cache warm: {name} at {size} px, "
               f"batches of {BATCH}, the {KEPT} largest logits of every cell kept in blocks, passes over "
               f"{given.images} and {given.images // 3} images, whose difference is what an image takes; what starts "
               "and ends a pass, such as the processes that read, is apart; ms per image")
    columns = ["precision", "clock", "forward alone", "pass", "start and end, s", "share", "bar"]
    report.table(columns, rows)
    report.say(f"**Entries** of an eighth of these files: {ENTRIES} views of each, cropped, with RandAugment and "
               f"erasing, the {TOPK} most probable classes kept; ms per view")
    report.table(columns, views)
    report.finish(given.out)
    return 0


def _precisions(given: argparse.Namespace) -> list[Resolved]:
    return ["fp32", "bf16"] if measure.native_bf16() and not given.quick else ["fp32"]


def _teacher(name: str) -> nn.Module:
    import timm

    torch.manual_seed(0)
    network: nn.Module = timm.create_model(name)
    return network.to(memory_format=torch.channels_last).eval()


def _labelmaps(teacher: nn.Module, source: Source, size: int, precision: Resolved, setting: Setting,
               given: argparse.Namespace) -> list[str]:
    ready = _prepared(ImageMaker(source, [EvalCrop(size)]).make(np.arange(len(source))).crops[0])

    def run(images: int) -> None:
        part = _first(source, images)
        _pass(teacher, part, ImageMaker(part, [EvalCrop(size)]), precision, setting.workers)

    return _compared(partial(_forward, teacher, ready, precision), run, len(source), 1, SHARE_BAR, setting, given)


def _entries(teacher: nn.Module, source: Source, size: int, precision: Resolved, setting: Setting,
             given: argparse.Namespace) -> list[str]:
    def maker(images: int) -> EntryMaker:
        part = _first(source, images)
        return EntryMaker(part, drawing(StoredResizedCrop(size=size)), Law(size, 9, 0.25), ENTRIES, seed=0)

    count = len(source) // ENTRIES
    ready = _prepared(maker(count).make(np.arange(count)).crops[0].flatten(0, 1))
    panel = Teachers([teacher], [Input(size, MEAN, STD)], precision)

    def run(images: int) -> None:
        work = Work(KIND, fields(ENTRIES, TOPK, mix=False), {}, maker(images),
                    lambda batch: teach(batch, panel, TOPK, BATCH))
        _run(work, _first(source, images), BATCH // ENTRIES, setting.workers)

    return _compared(partial(_forward, teacher, ready, precision), run, count, ENTRIES, ENTRIES_BAR, setting, given)


def _first(source: Source, images: int) -> Part:
    return Part(source, np.arange(images))


def _compared(forward: Callable[[], None], run: Callable[[int], None], images: int, views: int, bar: float,
              setting: Setting, given: argparse.Namespace) -> list[str]:
    """Return ms of both per view, the seconds that start and end a pass, and the share of the speed, in turns.

    forward: over `images` times `views`. run: a pass over so many images.
    """
    before = torch.get_num_threads()
    short = images // 3
    calls: dict[str, Callable[[], None]] = {
        "forward": forward, "long": partial(run, images), "short": partial(run, short)}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    torch.set_num_threads(setting.threads)
    try:
        for turn in range(-1, given.repeats):
            for name in list(calls)[:: -1 if turn % 2 else 1]:
                start = setting.clock()
                calls[name]()
                if turn >= 0:
                    seconds[name].append(setting.clock() - start)
    finally:
        torch.set_num_threads(before)
    alone = [taken / (images * views) for taken in seconds["forward"]]
    within = [(a - b) / ((images - short) * views) for a, b in zip(seconds["long"], seconds["short"], strict=True)]
    once = measure.median(seconds["short"]) - measure.median(within) * short * views
    share = measure.ratio(alone, within)
    each = [f"{1e3 * measure.median(taken):.1f} ± {measure.spread(taken):.0%}" for taken in (alone, within)]
    return [*each, f"{once:.1f}", f"{share:.3f}", measure.bar(share, at_least=bar)]


@torch.inference_mode()
def _forward(teacher: nn.Module, ready: Tensor, precision: Resolved) -> None:
    with full_precision(CPU), autocast(CPU, precision):
        for part in ready.split(BATCH):
            teacher(part)


def _pass(teacher: nn.Module, source: Source, maker: ImageMaker, precision: Resolved, workers: int) -> None:
    linear = teacher.get_classifier()  # type: ignore[operator]

    def compute(batch: Batch) -> dict[str, Tensor]:
        with autocast(CPU, precision):
            cells = maps(teacher, _prepared(batch.crops[0]))[-1]
        logits, classes = linear(cells.float().movedim(1, -1)).topk(KEPT)
        return {"logit": logits, "class": classes}

    side = maker.geometries[0].size // 32
    kept = {"logit": ("<f2", (side, side, KEPT)), "class": ("<u2", (side, side, KEPT))}
    _run(Work("labelmap", kept, {}, maker, compute), source, BATCH, workers)


def _run(work: Work, source: Source, batch: int, workers: int) -> None:
    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(io.StringIO()):
        run_pass(work, source, Path(out), batch=batch, workers=workers, device=CPU, max_corrupt=0.0)


def _prepared(crops: Tensor) -> Tensor:
    return to_input(crops, MEAN, STD).contiguous(memory_format=torch.channels_last)


if __name__ == "__main__":
    sys.exit(main())
