"""Evaluation: extraction beside the network alone, nearest neighbours beside their product, seven probes at once."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks import measure
from benchmarks.extraction import extraction
from unlabeled.config.card import Card
from unlabeled.config.files import find
from unlabeled.config.protocols.vectors import Linear
from unlabeled.config.read import read_file, read_protocol
from unlabeled.data.sources.open import open_source
from unlabeled.evaluation.vectors.linear import Probe, fit, predict
from unlabeled.evaluation.vectors.scores import Scale, accuracy
from unlabeled.ops.measures import knn

QUESTION = ("what do extraction, kNN and the linear probe cost, beside the least they could and beside doing it "
            "plainly?")
KNN_BAR, PROBE_BAR, ACCURACY_BAR = 1.8, 0.2, 0.2
WIDTH, K, TEMPERATURE, CLASSES = 512, 200, 0.07, 10
EPOCHS, IMAGES = 30, 256  # of the plain probes

Split = tuple[Tensor, Tensor]


def main(words: list[str] | None = None) -> int:
    """Measure all of it, or the parts that are named."""
    given = _arguments(words)
    measure.one_thread()
    report = measure.Report("evaluation", "Evaluation", QUESTION, ["faiss-cpu", "scikit-learn"])
    with contextlib.redirect_stdout(io.StringIO()):  # what the product says meanwhile is no part of the report
        extraction(report, given)
        if given.only is None:
            train, test, about = features(given.quick)
            report.say(f"Features: {about}.")
            _neighbours(report, given, train, test)
            _probes(report, given, train, test)
    report.finish(given.out)
    return 0


def _arguments(words: list[str] | None) -> argparse.Namespace:
    parser = measure.arguments("evaluation", QUESTION, repeats=5)
    parser.add_argument("--queries", type=int, default=2000, help="of the nearest neighbours (default 2000)")
    parser.add_argument("--only", choices=["extraction"], help="leave the others out")
    return parser.parse_args(words)


def features(quick: bool) -> tuple[Split, Split, str]:
    """Return features float32 [n, 512] and labels [n] of train and test, and what they are.

    CIFAR-10 below $DATA if it is there, else ten overlapping clouds: random ReLU features, which need no network.
    """
    weight = torch.randn(3072, WIDTH, generator=torch.Generator().manual_seed(0)) / 3072**0.5
    if "DATA" in os.environ and not quick:
        card = read_file(find("data", "cifar10"), Card)
        splits = [open_source(card, split) for split in ("train", "val")]
        made = []
        for source in splits:
            assert source.images is not None and source.labels is not None
            pixels = torch.from_numpy(source.images.copy()).flatten(1)
            x = torch.cat([(part.float() / 64 - 2) @ weight for part in pixels.split(4096)]).relu_()
            made.append((x, torch.from_numpy(source.labels)))
        return made[0], made[1], f"{WIDTH} random ReLU features of CIFAR-10, {len(made[0][0])} and {len(made[1][0])}"
    sizes = (500, 100) if quick else (50_000, 10_000)
    draw = torch.Generator().manual_seed(1)
    middles = torch.randn(CLASSES, WIDTH, generator=draw)
    clouds = []
    for n in sizes:
        label = torch.randint(CLASSES, (n,), generator=draw)
        clouds.append(((0.15 * middles[label] + torch.randn(n, WIDTH, generator=draw)).relu_(), label))
    return clouds[0], clouds[1], f"ten overlapping clouds in {WIDTH} dimensions, {sizes[0]} and {sizes[1]} points"


def _neighbours(report: measure.Report, given: argparse.Namespace, train: Split, test: Split) -> None:
    (bank, labels), queries = train, test[0][: 50 if given.quick else given.queries]
    unit_bank, unit_queries = (nn.functional.normalize(x) for x in (bank, queries))
    k = min(K, len(bank))

    def product() -> None:
        for chunk in unit_queries.split(512):
            chunk @ unit_bank.T

    calls = {
        "the matrix product alone": product,
        "unlabeled": lambda: knn.predict(bank, labels, queries, [k], TEMPERATURE, CLASSES),
    }
    try:
        import faiss

        faiss.omp_set_num_threads(1)
        calls["unlabeled, search: faiss"] = lambda: knn.predict(
            bank, labels, queries, [k], TEMPERATURE, CLASSES, search="faiss")
    except ImportError:
        pass
    seconds = measure.take_turns(calls, 1 if given.quick else given.repeats)
    limit = seconds["the matrix product alone"]
    rows = []
    for name, taken in seconds.items():
        share = measure.ratio(taken, limit)
        rows.append([name, f"{measure.median(taken):.3g} ± {measure.spread(taken):.0%}", f"{share:.2f}",
                     measure.bar(share, at_most=KNN_BAR) if name == "unlabeled" else ""])
    report.say(f"**kNN**, k = {k}, {len(queries)} queries of a bank of {len(bank)}, exact, float32")
    report.table(["", "CPU s ± quartiles", "time / product", "bar"], rows)


def _probes(report: measure.Report, given: argparse.Namespace, train: Split, test: Split) -> None:
    cfg = read_protocol("linear", [])
    assert isinstance(cfg, Linear)
    scale, cpu = Scale.of(train[0]), torch.device("cpu")
    x, held_out = scale(train[0]), scale(test[0])
    found: dict[str, list[float]] = {"plain": [], "one": []}
    together: list[float] = []

    def at_once() -> None:
        probe = fit(cfg, x, train[1], CLASSES, [(lr, 0.0) for lr in cfg.lr], cpu)
        together[:] = [accuracy(column, test[1]) for column in predict(probe, held_out).T]

    def one(lr: float) -> None:
        probe: Probe = fit(cfg, x, train[1], CLASSES, [(lr, 0.0)], cpu)
        found["one"].append(accuracy(predict(probe, held_out)[:, 0], test[1]))

    def plain(lr: float) -> None:
        probe = plain_probe(x, train[1], lr, 1 if given.quick else EPOCHS)
        with torch.no_grad():
            found["plain"].append(accuracy(probe(held_out).argmax(1), test[1]))

    # the seven are summed, so each is run once; the probe at once in every round between them
    seconds: dict[str, list[float]] = {"at once": [], "one": [], "plain": []}
    clock = measure.clock(cpu)
    for lr in cfg.lr[: 2 if given.quick else None]:
        seconds["plain"].append(clock(partial(plain, lr)))
        seconds["at once"].append(clock(at_once))
        seconds["one"].append(clock(partial(one, lr)))
    taken = measure.median(seconds["at once"])
    rows = [["all learning rates at once (unlabeled)", f"{taken:.3g} ± {measure.spread(seconds['at once']):.0%}",
             "", f"{max(together):.2f}", ""]]
    for name, what in (("plain", f"one after the other, {EPOCHS} epochs of batches of {IMAGES}"),
                       ("one", "one after the other, the same updates as at once")):
        total = sum(seconds[name])
        best, share = max(found[name]), taken / total
        met = f"share {measure.bar(share, at_most=PROBE_BAR)}; accuracy " + measure.bar(
            best - max(together), at_most=ACCURACY_BAR, unit=" below")
        rows.append([what, f"{total:.3g}", f"{share:.3f}", f"{best:.2f}", met if name == "plain" else ""])
    report.say(f"**Linear probe with {len(seconds['plain'])} learning rates**; accuracy of the best on the test set")
    report.table(["", "CPU s ± quartiles", "at once / this", "accuracy %", "bar"], rows)


def plain_probe(x: Tensor, label: Tensor, lr: float, epochs: int) -> nn.Linear:
    """Train one linear classifier as papers do: SGD with momentum 0.9, cosine to zero, batches of 256."""
    probe = nn.Linear(x.shape[1], CLASSES)
    optimizer = torch.optim.SGD(probe.parameters(), lr=lr, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * (len(x) // IMAGES))
    for epoch in range(epochs):
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch))
        for rows in order.split(IMAGES):
            if len(rows) < IMAGES:
                break
            loss = nn.functional.cross_entropy(probe(x[rows]), label[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return probe


if __name__ == "__main__":
    sys.exit(main())
