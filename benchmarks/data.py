"""The data path alone: finished views, crops for a device, bytes of shards, beside `lightly` and `webdataset`."""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks import measure
from benchmarks.peer import Lightly, installed
from benchmarks.workload import Options, Product
from unlabeled.errors import UserError

QUESTION = "what do views, crops and bytes cost per image and core, and how much less than elsewhere?"
BARS = {32: 8.0, 224: 1.5}  # views/s over lightly's
CROPS_BAR = 2.4  # ms per image: decode and two uint8 crops of 224 px
READER_BAR = 4.0  # samples/s over webdataset's


def main(words: list[str] | None = None) -> int:
    """Run the parts that the command line asks for."""
    given = _arguments(words)
    measure.one_thread()
    report = measure.Report("data", "The data path", QUESTION, ["webdataset", *([given.peer] if given.peer else [])])
    try:
        if given.peer:
            installed()
        for size in (32, 224):
            with tempfile.TemporaryDirectory() as folder:
                options = Options(size, _batch(given, size), images=_images(given, size), tiny=True)
                product = Product(options, Path(folder))
                _views(report, given, options, product)
                if size == 224:
                    _crops(report, given, options, product)
                    _bytes(report, given, product, Path(folder))
                product.close()
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    report.finish(given.out)
    return 0


def _arguments(words: list[str] | None) -> argparse.Namespace:
    parser = measure.arguments("data", QUESTION, repeats=7)
    parser.add_argument("--peer", choices=["lightly"], help="do the same through this package's transform and loader")
    return parser.parse_args(words)


def _batch(given: argparse.Namespace, size: int) -> int:
    return 8 if given.quick else {32: 512, 224: 32}[size]


def _images(given: argparse.Namespace, size: int) -> int:
    return 16 if given.quick else {32: 2048, 224: 256}[size]


def _repeats(given: argparse.Namespace) -> int:
    return 1 if given.quick else given.repeats


def _views(report: measure.Report, given: argparse.Namespace, options: Options, product: Product) -> None:
    calls: dict[str, Callable[[], object]] = {"unlabeled": product.views}
    if given.peer:
        calls["lightly"] = Lightly(product, options).views
    seconds = measure.take_turns(calls, _repeats(given))
    rows = []
    for name, taken in seconds.items():
        times = measure.ratio(seconds["lightly"], taken) if given.peer else None
        own = name == "unlabeled" and times is not None
        rows.append([
            name, f"{2 * options.batch / measure.median(taken):.0f} ± {measure.spread(taken):.0%}",
            f"{1000 * measure.median(taken) / options.batch:.3f}", f"{times:.2f}" if times else "",
            measure.bar(times, at_least=BARS[options.size]) if own and times else "",
        ])
    source = "images in memory" if options.size == 32 else f"JPEG in tar shards, {_kilobytes(product):.0f} KB each"
    report.say(f"**Two finished float views of {options.size} px** from {source}, batch {options.batch}")
    report.table(["", "views/s per core ± quartiles", "ms per image", "times lightly's views/s", "bar"], rows)


def _crops(report: measure.Report, given: argparse.Namespace, options: Options, product: Product) -> None:
    data = [product.source.raw(i) or b"" for i in range(options.batch)]

    def decode() -> None:
        for each in data:
            np.array(Image.open(io.BytesIO(each)).convert("RGB"))

    seconds = measure.take_turns({"two uint8 crops from JPEG": product.next, "PIL's decoding alone": decode},
                                 _repeats(given))
    rows = []
    for name, taken in seconds.items():
        each = 1000 * measure.median(taken) / options.batch
        met = measure.bar(each, at_most=CROPS_BAR, unit=" ms") if name.startswith("two") else ""
        share = measure.ratio(taken, seconds["PIL's decoding alone"])
        rows.append([name, f"{each:.2f} ± {measure.spread(taken):.0%}", f"{share:.2f}", met])
    report.say("**What a GPU's data path does on the CPU**: read, decode once, cut two crops of 224 px, stay uint8")
    report.table(["", "ms per image and core ± quartiles", "time / PIL's decoding", "bar"], rows)


def _bytes(report: measure.Report, given: argparse.Namespace, product: Product, folder: Path) -> None:
    import webdataset

    source: Any = product.source
    order = np.random.default_rng(0).permutation(len(source)).tolist()
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]

    def own() -> int:
        return sum(len(source.raw(i)) for i in order)

    def theirs() -> int:
        return sum(len(sample["jpg"]) for sample in webdataset.WebDataset(urls, shardshuffle=False))

    assert own() == theirs()
    seconds = measure.take_turns({"unlabeled, in random order": own, "webdataset, in order": theirs}, _repeats(given))
    times = measure.ratio(seconds["webdataset, in order"], seconds["unlabeled, in random order"])
    rows = [[name, f"{len(order) / measure.median(taken):.0f} ± {measure.spread(taken):.0%}",
             measure.bar(times, at_least=READER_BAR) if name.startswith("unlabeled") else ""]
            for name, taken in seconds.items()]
    report.say(f"**Raw bytes of local shards**, {_kilobytes(product):.0f} KB each, file cache warm: {times:.1f} times "
               "webdataset's samples/s")
    report.table(["", "samples/s per core ± quartiles", "bar"], rows)


def _kilobytes(product: Product) -> float:
    source: Any = product.source
    return sum(len(source.raw(i)) for i in range(len(source))) / len(source) / 1000


if __name__ == "__main__":
    torch.manual_seed(0)  # lightly draws from the global generators
    sys.exit(main())
