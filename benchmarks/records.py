"""What stored rows cost: opening the store of a million samples, and reading the row of a sample."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks import measure
from unlabeled.data.records.rows import Record, stored_rows
from unlabeled.data.records.store import HEADER, Header, keys_digest, open_store, write_block
from unlabeled.data.sources.base import Source
from unlabeled.engine.passes.folder import block_rows

QUESTION = "what do stored rows cost a training: opening them, and reading the row of a sample?"
OPENING_BAR, READING_BAR = 1.0, 20.0  # s, us
BATCH = 256
# kind -> fields, and whether a row holds entries
KINDS: dict[str, tuple[dict[str, tuple[str, tuple[int, ...]]], bool]] = {
    "label maps, 15 x 15 cells, 5 classes": ({"logit": ("<f2", (5, 15, 15)), "index": ("<u2", (5, 15, 15))}, False),
    "400 entries, 10 classes": (
        {"crop": ("<u2", (400, 4)), "flip": ("|u1", (400,)), "op": ("|u1", (400, 2)), "magnitude": ("<f4", (400, 2)),
         "erase": ("<u2", (400, 4)), "class": ("<u2", (400, 10)), "prob": ("<f2", (400, 10))},
        True,
    ),
}  # fmt: skip


class Numbers(Source):
    """A set of so many samples, of which there is nothing but the number."""

    def __init__(self, samples: int) -> None:
        super().__init__("numbers", "train")
        self.samples = samples

    def __len__(self) -> int:
        return self.samples

    def names(self) -> None:
        """Return nothing: samples are numbers."""


def main(words: list[str] | None = None) -> int:
    """Write stores, open them, and read rows of random samples in batches, as a training does."""
    parser = measure.arguments("records", QUESTION, repeats=20)
    parser.add_argument("--samples", type=int, default=1_000_000, help="of the store that is opened (default 1000000)")
    parser.add_argument("--read", type=int, default=20_000, help="samples of the stores that are read (default 20000)")
    given = parser.parse_args(words)
    if given.quick:
        given.repeats, given.samples, given.read = 2, 5000, 512
    measure.one_thread()
    report = measure.Report("records", "Stored rows", QUESTION)
    with tempfile.TemporaryDirectory() as folder:
        source = Numbers(given.samples)
        store = _written(Path(folder) / "opened", source, {"x": ("<f4", (1,))})
        opened = [_seconds(lambda: open_store(store, source, "numbers")) for _ in range(given.repeats)]
        files = len(list(store.glob("rows-*")))
        middle = measure.median(opened)
        report.say(f"Opening a store of {given.samples} rows in {files} files: {middle:.2f} s ± "
                   f"{measure.spread(opened):.0%}; {measure.bar(middle, at_most=OPENING_BAR, unit=' s')}")
        rows = []
        for number, (kind, (fields, entry)) in enumerate(KINDS.items()):
            source = Numbers(given.read)
            source.stores["rows"] = open_store(_written(Path(folder) / f"{number}", source, fields), source, "numbers")
            rows.append([kind, *_reading(source, Record("rows", entry), given.repeats)])
    report.table(["row", "bytes", "us per sample", "bar"], rows)
    report.say(f"Batches of {BATCH} random samples of {given.read}, all blocks mapped, file cache warm, CPU time; of "
               "entries one is drawn and taken out of its row.")
    report.finish(given.out)
    return 0


def _written(folder: Path, source: Source, fields: dict[str, tuple[str, tuple[int, ...]]]) -> Path:
    width = np.dtype([(name, *field) for name, field in fields.items()]).itemsize
    header = Header("numbers", fields, len(source), block_rows(len(source), width), source.name, source.split,
                    keys_digest(source), {})
    folder.mkdir()
    (folder / HEADER).write_bytes(header.to_json())
    for number in range(header.blocks):
        write_block(folder, header, number, np.zeros(len(header.places(number)), header.dtype), {})
    return folder


def _reading(source: Numbers, record: Record, repeats: int) -> list[str]:
    """Return bytes of a row, microseconds for each sample, and the bar."""
    random = np.random.default_rng(0)
    positions = np.arange(BATCH)

    def read() -> None:
        indices = random.integers(0, len(source), BATCH)
        stored_rows(source, [record], indices, positions, seed=0, stream="train", epoch=0)

    source.record("rows", np.arange(len(source)))  # every block is mapped
    each = [1e6 * _seconds(read) / BATCH for _ in range(repeats)]
    width = source.record("rows", np.arange(1)).dtype.itemsize
    middle = measure.median(each)
    return [f"{width:,}", f"{middle:.1f} ± {measure.spread(each):.0%}",
            measure.bar(middle, at_most=READING_BAR, unit=" us")]


def _seconds(call: Callable[[], object]) -> float:
    """Return the CPU seconds of a call."""
    start = time.process_time()
    call()
    return time.process_time() - start


if __name__ == "__main__":
    sys.exit(main())
