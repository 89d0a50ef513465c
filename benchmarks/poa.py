"""What POA's elastic student does for the slices of a network: the same run with it and without it, on real images."""

from __future__ import annotations

import contextlib
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import measure
from unlabeled.augment.geometry import EvalCrop
from unlabeled.augment.photometric import to_input
from unlabeled.backbones.elastic.sizes import Grid, Size
from unlabeled.config.read import read_card, read_recipe
from unlabeled.data.evaluation import eval_batches
from unlabeled.data.sources.base import Source
from unlabeled.data.sources.open import open_source
from unlabeled.data.sources.subset import Part
from unlabeled.engine.exports.networks import open_residuals
from unlabeled.engine.passes.features import Embedder, Features, extract, network_embedder
from unlabeled.engine.restore import load_run
from unlabeled.engine.train import train
from unlabeled.errors import UserError
from unlabeled.evaluation.vectors.pixels import pixel_embedder
from unlabeled.methods.base import Export
from unlabeled.methods.poa.losses import cross_entropy
from unlabeled.ops.measures.health import effective_rank, thin
from unlabeled.ops.measures.knn import predict
from unlabeled.ops.targets.sinkhorn import sinkhorn

QUESTION = ("what do the slices of a network learn from an elastic student that they lack without it, on CIFAR-10, in "
            "two CPU minutes?")
NEAR, FAR, RANK, KNN = 0.06, 0.15, 1.5, 1  # bars: losses, losses without it, factor of the ranks, points
ELASTIC, ALONE, UNTRAINED = "elastic", "alone", "untrained"
KINDS = {ELASTIC: [], ALONE: ["method.elastic=null"]}
CPU, SIDE = torch.device("cpu"), 32
NEIGHBOURS, TEMPERATURE = 20, 0.07
# what `--quick` changes: few images of another set, and a smaller network
SMALL = ["data.train.card=digits", "data.train.batch=16", "method.prototypes=[16]",
         "backbone.options={widths: [8, 16, 8], depths: [1, 2], head_width: 8, patch_size: 8, img_size: 32}"]


@dataclass(frozen=True)
class Slice:
    """What is measured of one size of a network.

    loss: cross-entropy of the student under the whole teacher's targets; of an untrained network NaN. rank, rankme: the
    effective ranks of the teacher's vectors, of variances and of singular values. knn: their accuracy, percent.
    """

    loss: float
    rank: float
    rankme: float
    knn: float


Slices = dict[Size, Slice]


def main(words: list[str] | None = None) -> int:
    """Train with and without the elastic student for every seed, and measure all slices of both."""
    parser = measure.arguments("poa", QUESTION, repeats=3)
    parser.add_argument("--updates", type=int, default=600, help="of every run, of 32 images (default 600)")
    parser.add_argument("--folder", type=Path, help="keep the runs here; the same command goes on (default: nowhere)")
    parser.add_argument("--images", type=int, default=5000, help="that are tested; the bank has twice as many (5000)")
    given = parser.parse_args(words)
    if given.quick:
        given.repeats, given.updates, given.images = 1, 4, 128
    measure.one_thread()
    report = measure.Report("poa", "POA on CIFAR-10, a small vision transformer on a CPU", QUESTION)
    sets = Sets("digits" if given.quick else "cifar10", given.images)
    with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        seeds = [_measured(folder, seed, given.updates, SMALL if given.quick else [], sets)
                 for seed in range(given.repeats)]
        pixels = sets.knn({"": pixel_embedder(sets.test, SIDE)})[""]
    report.table(["", *(f"seed {seed}" for seed in range(given.repeats)), "mean", "bar"], _bars(seeds))
    report.say("Means of the seeds. Loss: cross-entropy of a slice of the student under the targets of the whole "
               "teacher, same image. Of the teacher's slices: effective rank, exp of the entropy of the variances of "
               "the principal directions; RankMe, that of the singular values (arXiv 2210.02885); kNN, %.")
    beside = [f"{name} {kind}" for name in ("rank", "RankMe", "kNN") for kind in ("with", "without", "untrained")]
    report.table(["size", "loss with", "loss without", *beside], _sizes(seeds))
    report.say(f"kNN of raw pixels: {pixels:.1f}. k = {NEIGHBOURS}, temperature {TEMPERATURE}; {len(sets.bank)} "
               f"training images vote on {len(sets.test)} test images, both spread evenly over their splits; ranks and "
               "losses are of the test images. Targets: Sinkhorn at the teacher's temperature over as many images at "
               "once as an update has global crops. Untrained: the network before its first update, its residual "
               f"branches open. {given.updates} updates, the last one measured; recipe `cifar10/poa-vit-tiny`, and "
               "without the elastic student `method.elastic=null`.")
    report.finish(given.out)
    return 0


def _measured(folder: Path, seed: int, updates: int, more: Sequence[str], sets: Sets) -> dict[str, Slices]:
    """Return the slices of both runs of a seed, and of the network that they began with."""
    found: dict[str, Slices] = {}
    for kind, settings in KINDS.items():
        run = folder / f"{kind}-s{seed}"
        common = [f"train.updates={updates}", f"train.seed={seed}", "train.precision=fp32"]
        if not train(read_recipe("cifar10/poa-vit-tiny", [*common, *more, *settings]), run).finished:
            raise UserError(f"{run} was ended before its last update; the same command goes on")
        method = load_run(run).method
        found[kind] = sets.slices(method.exports()["teacher"], slice_losses(method, sets.test))
    blank = load_run(folder / f"{ELASTIC}-s{seed}", random_init=True).method
    found[UNTRAINED] = sets.slices(open_residuals(blank.exports()["teacher"]), {})
    return found


class Sets:
    """Images whose neighbours vote, and images that are tested, of a card's `train` and `val`."""

    def __init__(self, card: str, images: int) -> None:
        self.bank, self.test = (_spread(open_source(read_card(card), split), count)
                                for split, count in (("train", 2 * images), ("val", images)))

    def features(self, source: Source, embedders: dict[str, Embedder]) -> dict[str, Features]:
        """Return the features of a set by embedder."""
        return extract(embedders, source, batch=250, workers=0, device=CPU, max_corrupt=0.0)

    def knn(self, embedders: dict[str, Embedder]) -> dict[str, float]:
        """Return accuracies by embedder, percent."""
        bank, test = self.features(self.bank, embedders), self.features(self.test, embedders)
        return {name: accuracy(bank[name], test[name]) for name in embedders}

    def slices(self, export: Export, losses: dict[Size, float]) -> Slices:
        """Return the measures of every size of an exported elastic network."""
        network: Any = export.build()
        embedders = {str(size): network_embedder(replace(export, build=partial(network.extract, size)), CPU)
                     for size in network.grid.sizes}
        bank, test = self.features(self.bank, embedders), self.features(self.test, embedders)
        return {size: Slice(losses.get(size, float("nan")), variance_rank(test[str(size)].x),
                            effective_rank(test[str(size)].x), accuracy(bank[str(size)], test[str(size)]))
                for size in network.grid.sizes}


def _spread(source: Source, count: int) -> Part:
    return Part(source, thin(torch.arange(len(source)), count).numpy())


def variance_rank(x: Tensor) -> float:
    """Return exp of the entropy of the shares of variance of the principal directions of vectors [n, F]."""
    variances = torch.linalg.eigvalsh(torch.cov(x.double().T)).clamp_min(0)
    return float(torch.special.entr(variances / variances.sum()).sum().exp())


def accuracy(bank: Features, test: Features) -> float:
    """Return the accuracy of the vote of the nearest neighbours, percent."""
    assert bank.label is not None and test.label is not None
    classes = int(bank.label.max()) + 1
    vote = predict(bank.x, bank.label, test.x, [NEIGHBOURS], TEMPERATURE, classes)[NEIGHBOURS]
    return 100 * float((vote == test.label).double().mean())


@torch.inference_mode()
def slice_losses(method: Any, source: Source) -> dict[Size, float]:
    """Return the mean cross-entropy of every size of the student under the whole teacher, over heads and images.

    Sinkhorn sees as many images at once as an update has global crops; what is left over at the end is left out.
    """
    cfg, image = method.cfg, method.input
    at_once = 2 * method.info.streams["train"].batch
    grid: Grid = method.student.backbone.grid
    losses: dict[Size, list[float]] = {size: [] for size in grid.sizes}
    for batch in eval_batches(source, EvalCrop(image.size), 0, 1, at_once):
        if len(batch.index) < at_once:
            continue
        x = to_input(batch.crops[0], image.mean, image.std)
        vector = method.teacher.backbone.features(x).vector
        targets = [sinkhorn(head(vector), cfg.teacher_temperature) for head in method.teacher.heads]
        for size, kept in losses.items():
            vector = method.student.backbone.features(x, size).vector
            each = [cross_entropy(target, head(vector), cfg.student_temperature).mean()
                    for target, head in zip(targets, method.student.heads, strict=True)]
            kept.append(float(torch.stack(each).mean()))
    return {size: statistics.mean(kept) for size, kept in losses.items()}


def _bars(seeds: Sequence[dict[str, Slices]]) -> list[list[str]]:
    """Return the rows of what has a bar; each seed is to meet it, of kNN their mean."""
    full, small = list(seeds[0][ELASTIC])[-1], next(iter(seeds[0][ELASTIC]))

    def above(kind: str) -> list[float]:
        return [seed[kind][small].loss - seed[kind][full].loss for seed in seeds]

    def over(kind: str, measured: str) -> list[float]:
        return [getattr(seed[ELASTIC][small], measured) / getattr(seed[kind][small], measured) for seed in seeds]

    with_, without = above(ELASTIC), above(ALONE)
    ranks = [(f"{title} of {small} / {beside}", over(kind, measured))
             for measured, title in (("rank", "rank of variances"), ("rankme", "RankMe"))
             for kind, beside in ((ALONE, "without the elastic student"), (UNTRAINED, "untrained"))]
    gain = [seed[ELASTIC][full].knn - seed[UNTRAINED][full].knn for seed in seeds]
    return [
        _row(f"loss of {small} above that of {full}", with_, "{:.3f}", measure.bar(max(with_), at_most=NEAR)),
        _row("the same without the elastic student", without, "{:.3f}", measure.bar(min(without), at_least=FAR)),
        *(_row(name, values, "{:.2f}", measure.bar(min(values), at_least=RANK)) for name, values in ranks),
        _row(f"kNN of {full} above untrained, points", gain, "{:+.1f}",
             measure.bar(statistics.mean(gain), at_least=KNN, unit=" in the mean")),
    ]


def _row(name: str, values: Sequence[float], form: str, bar: str) -> list[str]:
    return [name, *(form.format(value) for value in (*values, statistics.mean(values))), bar]


def _sizes(seeds: Sequence[dict[str, Slices]]) -> list[list[str]]:
    columns = [("loss", kind, "{:.3f}") for kind in KINDS]
    columns += [(name, kind, "{:.1f}") for name in ("rank", "rankme", "knn") for kind in (*KINDS, UNTRAINED)]
    return [[str(size), *(form.format(statistics.mean(getattr(seed[kind][size], name) for seed in seeds))
                          for name, kind, form in columns)] for size in seeds[0][ELASTIC]]


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(str(error))
