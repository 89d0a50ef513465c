"""Extraction of features beside the network's own forward passes: speed, memory, and what keeping them saves."""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import measure
from unlabeled.augment.geometry import EvalCrop
from unlabeled.augment.photometric import to_input
from unlabeled.backbones.build import build_backbone
from unlabeled.config.card import Card
from unlabeled.config.files import find
from unlabeled.config.protocols.vectors import Linear
from unlabeled.config.read import read_file, read_protocol
from unlabeled.config.recipe import Backbone
from unlabeled.data.sources.arrays import ArraySource
from unlabeled.data.sources.open import open_source
from unlabeled.engine.passes.features import Embedder, Features, extract, network_embedder
from unlabeled.engine.passes.kept_features import LIMIT, KeptFeatures
from unlabeled.evaluation.vectors import linear
from unlabeled.evaluation.vectors.scores import accuracy
from unlabeled.methods.base import Export, Input
from unlabeled.ops.measures import knn
from unlabeled.ops.precision import Resolved, autocast, full_precision

CPU = torch.device("cpu")
SHARE_BAR, COPIES_BAR, POINTS_BAR = 0.9, 2.0, 0.2
BATCH = 256  # the protocols' own
VIT = {"img_size": 32, "patch_size": 4}
# name -> network, side of the images, images per turn
NETWORKS = {
    "ResNet-18, 32 px": (Backbone(name="resnet18", stem="cifar"), 32, BATCH),
    "ResNet-50, 64 px": (Backbone(name="resnet50"), 64, BATCH),
    "ViT-S/4, 32 px": (Backbone(name="vit_small_patch16_224", options=VIT), 32, BATCH // 2),
}
QUICK = {"ResNet-18, 32 px": (Backbone(name="resnet18", width=0.125, stem="cifar"), 32, 32)}


def extraction(report: measure.Report, given: argparse.Namespace) -> None:
    """Add speed, memory, the cost of a second protocol, and what bfloat16 changes."""
    _speed(report, given)
    _memory(report, given.quick)
    _second(report, given.quick)
    _points(report, given.quick)


def _speed(report: measure.Report, given: argparse.Namespace) -> None:
    rows = []
    for name, (backbone, size, images) in (QUICK if given.quick else NETWORKS).items():
        network, source = _network(backbone, size), _noise(images, size)
        for precision in _precisions(given):
            for threads in (1, 2):
                with _threads(threads):
                    seconds = _turns(network, source, size, precision, 1 if given.quick else given.repeats,
                                     time.process_time if threads == 1 else time.perf_counter)
                share = measure.ratio(seconds["forward"], seconds["extraction"])
                each = [f"{1e3 * measure.median(taken) / images:.2f} ± {measure.spread(taken):.0%}"
                        for taken in seconds.values()]
                met = measure.bar(share, at_least=SHARE_BAR)
                rows.append([name, precision, f"{threads}", *each, f"{share:.3f}", met])
    report.say(f"**Extraction** beside the network's own forward passes on ready tensors, images in memory, one batch "
               f"of {BATCH} (ViT: {BATCH // 2}), ms per image; one thread: CPU time, two: wall time")
    report.table(["network", "precision", "threads", "forward alone", "extraction", "share", "bar"], rows)


def _turns(network: nn.Module, source: ArraySource, size: int, precision: Resolved, repeats: int,
           clock: Callable[[], float]) -> dict[str, list[float]]:
    image = Input(size, (0.5,) * 3, (0.25,) * 3)
    embedder = network_embedder(Export(lambda: network, "vector", image), CPU, precision)
    assert source.images is not None
    crops = torch.from_numpy(source.images).permute(0, 3, 1, 2)
    ready = to_input(crops, image.mean, image.std).contiguous(memory_format=torch.channels_last)
    calls = {"forward": lambda: _forward(network, ready, precision), "extraction": lambda: _extract(embedder, source)}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(-1, repeats):
        for name in list(calls)[:: -1 if turn % 2 else 1]:
            start = clock()
            calls[name]()
            if turn >= 0:
                seconds[name].append(clock() - start)
    return seconds


@torch.inference_mode()
def _forward(network: nn.Module, ready: Tensor, precision: Resolved) -> None:
    with full_precision(CPU), autocast(CPU, precision):
        for part in ready.split(BATCH):
            network(part)


def _extract(embedder: Embedder, source: ArraySource, kept: KeptFeatures | None = None) -> Features:
    found = extract({"network": embedder}, source, batch=BATCH, workers=0, device=CPU, max_corrupt=0, kept=kept)
    return found["network"]


def _memory(report: measure.Report, quick: bool) -> None:
    """Measure what stands in memory at most beside the images, with a network that itself needs next to nothing."""
    n, width = (2_000, 64) if quick else (50_000, 2048)
    source = _noise(n, 8)
    weight = torch.randn(192, width)
    embedder = Embedder((EvalCrop(8),), lambda crops: crops.flatten(1).float() @ weight)
    held: list[Features] = []
    label = torch.arange(n) % 10
    cfg = read_protocol("linear", ["min_updates=5", "epochs=1", "lr=[0.1]", "weight_decay=[0.0]"])
    assert isinstance(cfg, Linear)

    def probe() -> None:
        train = Features(held[0].x, held[0].index, label)
        linear.run(cfg, train, Features(held[0].x[:100], held[0].index[:100], label[:100]), 10, CPU)

    size = n * width * 4
    first = _peak(lambda: held.append(_extract(embedder, source)))
    rows = []
    for name, peak in (("extraction", first), ("linear probe, beside the features", _peak(probe))):
        copies = peak / size
        rows.append([name, f"{peak / 1e6:.0f}", f"{copies:.2f}", measure.bar(copies, at_most=COPIES_BAR)])
    report.say(f"**Memory**: peak above what stood in memory before, features [{n}, {width}] of {size / 1e6:.0f} MB")
    report.table(["", "MB", "copies of the features", "bar"], rows)


def _peak(work: Callable[[], object]) -> float:
    """Return by how many bytes the resident memory of this process rises at most; NaN where the system does not say."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = _status("VmRSS")
        work()
        return _status("VmHWM") - before
    except OSError:
        work()
        return float("nan")


def _status(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * float(next(line for line in lines if line.startswith(key)).split()[1])


def _second(report: measure.Report, quick: bool) -> None:
    """Time a protocol that computes features, and the next one, which finds them again."""
    backbone, size, _ = (QUICK if quick else NETWORKS)["ResNet-18, 32 px"]
    train, test = (_noise(n, size, seed) for seed, n in enumerate((64, 32) if quick else (4000, 1000)))
    label = torch.arange(len(train)) % 10
    asked: list[int] = []
    network = _network(backbone, size)
    network.register_forward_hook(lambda module, inputs, output: asked.append(len(inputs[0])))
    rows = []
    with tempfile.TemporaryDirectory() as folder, _environment(XDG_CACHE_HOME=folder, **{LIMIT: "10"}):
        for turn in ("first protocol", "second protocol"):
            before, start = sum(asked), time.perf_counter()
            embedder = network_embedder(Export(lambda: network, "vector", Input(size)), CPU)
            bank, queries = (_extract(embedder, part, KeptFeatures(CPU)) for part in (train, test))
            knn.predict(bank.x, label, queries.x, [20], 0.07, 10)
            rows.append([turn, f"{time.perf_counter() - start:.2f}", f"{sum(asked) - before}"])
    rows[1].append(measure.bar(float(rows[1][2]), at_most=0, unit=" images"))
    report.say(f"**kNN twice** with ResNet-18, {len(train)} and {len(test)} images: what is kept is found again")
    report.table(["", "wall s", "images through the network", "bar"], [[*row, ""][:4] for row in rows])


def _points(report: measure.Report, quick: bool) -> None:
    """Compare the numbers on features in float32 and in bfloat16."""
    if "DATA" in os.environ and not quick:
        card = read_file(find("data", "cifar10"), Card)
        parts = [_first(open_source(card, split), n) for split, n in (("train", 10_000), ("val", 10_000))]
        what = "CIFAR-10, its first 10,000 images of each split"
    else:
        card = read_file(find("data", "digits"), Card)
        parts = [_first(open_source(card, split), 200 if quick else 1297) for split in ("train", "val")]
        what = "digits"
    assert parts[0].images is not None
    size = parts[0].images.shape[1]
    network = _network(Backbone(name="resnet18", width=0.25, stem="cifar"), size)
    updates = 10 if quick else 300
    rows = _compared("untrained", network, size, *parts)
    _train(network, parts[0], updates)
    rows += _compared("trained", network, size, *parts)
    report.say(f"**What bfloat16 changes**: a ResNet-18 of a quarter of the width on {what}, untrained and after "
               f"{updates} updates with labels")
    report.table(["network", "number", "fp32", "bf16", "images judged otherwise, %", "points apart", "bar"], rows)


def _compared(name: str, network: nn.Module, size: int, bank: ArraySource, queries: ArraySource) -> list[list[str]]:
    cfg = read_protocol("linear", ["lr=[0.1]", "weight_decay=[0.0]", "min_updates=50"])
    assert isinstance(cfg, Linear)
    found: dict[str, list[Tensor]] = {}
    for precision in ("fp32", "bf16"):
        embedder = network_embedder(Export(lambda: network, "vector", Input(size)), CPU, precision)
        train, test = _extract(embedder, bank), _extract(embedder, queries)
        assert train.label is not None and test.label is not None
        probe, scale = linear.fit_rows(cfg, train.x, train.label, np.arange(len(train.x)), 10, [(0.1, 0.0)], CPU)
        near = knn.predict(train.x, train.label, test.x, [20], 0.07, 10)[20]
        found[precision] = [near, linear.predict(probe, test.x, scale)[:, 0]]
    rows = []
    for number, exact, half in zip(("knn20@.07", "linear"), *found.values(), strict=True):
        values = [accuracy(each, test.label) for each in (exact, half)]
        apart = abs(values[0] - values[1])
        rows.append([name, number, *(f"{value:.2f}" for value in values), f"{100 - accuracy(exact, half):.2f}",
                     f"{apart:.2f}", measure.bar(apart, at_most=POINTS_BAR)])
    return rows


def _train(network: nn.Module, source: ArraySource, updates: int) -> None:
    """Train the network with labels, in place: features that tell something."""
    assert source.images is not None and source.labels is not None
    images, labels = torch.from_numpy(source.images).permute(0, 3, 1, 2), torch.from_numpy(source.labels)
    head = nn.Linear(network.num_features, 10)  # type: ignore[arg-type]
    optimizer = torch.optim.SGD([*network.parameters(), *head.parameters()], lr=0.05, momentum=0.9)
    draw = torch.Generator().manual_seed(0)
    network.train()
    for _ in range(updates):
        rows = torch.randint(len(images), (128,), generator=draw)
        loss = nn.functional.cross_entropy(head(network(to_input(images[rows], None, None))), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval()


def _network(backbone: Backbone, size: int) -> nn.Module:
    torch.manual_seed(0)
    network = build_backbone(backbone)
    for module in network.modules():  # open residual branches, as the untrained baseline has
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    return network.to(memory_format=torch.channels_last).eval()


def _noise(n: int, size: int, seed: int = 0) -> ArraySource:
    pixels = np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), np.uint8)
    return ArraySource("noise", f"split {seed}", pixels)


def _first(source: object, n: int) -> ArraySource:
    images, labels = source.images, source.labels  # type: ignore[attr-defined]
    return ArraySource("part", "first", np.array(images[:n]), labels[:n])


def _precisions(given: argparse.Namespace) -> list[Resolved]:
    return ["fp32", "bf16"] if given.quick or measure.native_bf16() else ["fp32"]


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value
