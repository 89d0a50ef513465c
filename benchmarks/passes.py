"""What a pass that keeps label maps costs beside its teacher's own forward passes."""

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
from unlabeled.backbones.maps import maps
from unlabeled.config.card import Card
from unlabeled.config.read import read_file
from unlabeled.data.batch import Batch
from unlabeled.data.evaluation import ImageMaker
from unlabeled.data.sources.base import Source
from unlabeled.data.sources.open import open_source
from unlabeled.engine.passes.run import Work, run_pass
from unlabeled.ops.machine.memory import keep_freed_memory
from unlabeled.ops.precision import Resolved, autocast, full_precision

QUESTION = "how much of the speed of a teacher's own forward passes has a pass that keeps what it says of every cell?"
SHARE_BAR = 0.9
CPU = torch.device("cpu")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH, KEPT = 32, 5  # images at once, logits of a cell


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
    parser.add_argument("--images", type=int, default=128, help="of a turn (default 128)")
    given = parser.parse_args(words)
    if given.quick:
        given.repeats, given.images = 1, 4
    keep_freed_memory()
    report = measure.Report("passes", "Passes", QUESTION)
    size = 64 if given.quick else 224
    name = "resnet18" if given.quick else "resnet50"
    teacher = _teacher(name)
    with tempfile.TemporaryDirectory() as folder:
        images = pictures.photographs(given.images, 375, 500)
        source = open_source(read_file(pictures.jpeg_set(Path(folder), images), Card), "train")
        rows = [[precision, clock, *_compared(teacher, source, size, precision, setting, given)]
                for precision in _precisions(given) for clock, setting in SETTINGS.items()]
    report.say(f"**Label maps** of JPEG files, 500 x 375 pixels, file cache warm: {name} at {size} px, "
               f"batches of {BATCH}, the {KEPT} largest logits of every cell kept in blocks, {given.images} images a "
               "turn; starting the processes that read counts too; ms per image")
    report.table(["precision", "clock", "forward alone", "pass", "share", "bar"], rows)
    report.finish(given.out)
    return 0


def _precisions(given: argparse.Namespace) -> list[Resolved]:
    return ["fp32", "bf16"] if measure.native_bf16() and not given.quick else ["fp32"]


def _teacher(name: str) -> nn.Module:
    import timm

    torch.manual_seed(0)
    network: nn.Module = timm.create_model(name)
    return network.to(memory_format=torch.channels_last).eval()


def _compared(teacher: nn.Module, source: Source, size: int, precision: Resolved, setting: Setting,
              given: argparse.Namespace) -> list[str]:
    maker, before = ImageMaker(source, [EvalCrop(size)]), torch.get_num_threads()
    ready = _prepared(maker.make(np.arange(len(source))).crops[0])
    calls = {"forward": partial(_forward, teacher, ready, precision),
             "pass": partial(_pass, teacher, source, maker, precision, setting.workers)}
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
    share = measure.ratio(seconds["forward"], seconds["pass"])
    each = [f"{1e3 * measure.median(taken) / len(source):.1f} ± {measure.spread(taken):.0%}"
            for taken in seconds.values()]
    return [*each, f"{share:.3f}", measure.bar(share, at_least=SHARE_BAR)]


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
    fields = {"logit": ("<f2", (side, side, KEPT)), "class": ("<u2", (side, side, KEPT))}
    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(io.StringIO()):
        run_pass(Work("labelmap", fields, {}, maker, compute), source, Path(out), batch=BATCH, workers=workers,
                 device=CPU, max_corrupt=0.0)


def _prepared(crops: Tensor) -> Tensor:
    return to_input(crops, MEAN, STD).contiguous(memory_format=torch.channels_last)


if __name__ == "__main__":
    sys.exit(main())
