"""What a set of 150,000,000 samples costs a process: its start, its memory, the change of an epoch; without images."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from benchmarks import measure, pictures
from unlabeled.data.sources.fingerprint import Names
from unlabeled.data.sources.tar.index import TarIndex, make_index, stamp_of, write_index

QUESTION = "what does a set of 150,000,000 samples in 15,000 shards cost a process that trains on it?"
START_BAR, MEMORY_BAR, EPOCH_BAR, INDEX_BAR = 30.0, 500.0, 0.1, 30.0  # s, MB, s, s
ENTRIES = 1_000_000  # members of the tar file whose headers are read
BATCH, READ = 256, 20_000
CLASSES = 1000
_BLOCK = 512


def main(words: list[str] | None = None) -> int:
    """Make a set that is nothing but indexes, and start processes on it."""
    parser = measure.arguments("scale", QUESTION, repeats=3)
    parser.add_argument("--samples", type=int, default=150_000_000, help="of the set (default 150000000)")
    parser.add_argument("--shards", type=int, default=15_000, help="of the set (default 15000)")
    parser.add_argument("--folder", type=Path, help="an empty folder for the set, 100 bytes per sample; it is kept")
    parser.add_argument("--start", nargs="+", help=argparse.SUPPRESS)  # what the started processes are given
    given = parser.parse_args(words)
    if given.start:
        print(json.dumps(start(given.start)))
        return 0
    if given.quick:
        given.repeats, given.samples, given.shards = 1, 1_200_000, 12
    report = measure.Report("scale", "Scale of the data", QUESTION)
    with _folder(given.folder) as folder:
        _starts(report, folder, given)
        _headers(report, folder, ENTRIES // 100 if given.quick else ENTRIES)
    report.finish(given.out)
    return 0


def make_set(folder: Path, samples: int, shards: int) -> str:
    """Make the shards and their kept indexes, and return the card; `small` is the split of the first tenth of shards.

    Every shard holds one image, and all places of its index lead to it.
    """
    image = pictures.jpeg(pictures.photographs(1, 96, 96)[0])
    bounds = [samples * shard // shards for shard in range(shards + 1)]
    head = _headers_of(["0.jpg"], len(image)).tobytes()
    for shard in range(shards):
        tar = folder / f"train-{shard:06d}.tar"
        tar.write_bytes(head + image + bytes(-len(image) % _BLOCK + 2 * _BLOCK))
        numbers = np.arange(bounds[shard], bounds[shard + 1])
        spots = np.tile(np.array([_BLOCK, len(image)]), (len(numbers), 1))
        index = TarIndex(_names(numbers), ["jpg"], spots[:, :1], spots[:, 1:], numbers % CLASSES)
        with open(tar.with_name(tar.name + ".index"), "wb") as file:
            write_index(file, stamp_of(tar, "cls"), index)
    card = folder / "simulated.yaml"
    few = -(-shards // 10) - 1
    card.write_text(yaml.safe_dump({
        "name": "simulated", "source": {"kind": "shards", "label": "cls"}, "root": str(folder),
        "classes": [f"class {number}" for number in range(CLASSES)],
        "splits": {"train": {"path": f"train-{{000000..{shards - 1:06d}}}.tar", "samples": samples},
                   "small": {"path": f"train-{{000000..{few:06d}}}.tar"}}}))
    return str(card)


def start(overrides: Sequence[str]) -> dict[str, Any]:
    """Do what a process does until its first batch, in the middle of an epoch; return seconds, and MB of memory."""
    times: dict[str, float] = {}
    clock = time.perf_counter()

    def lap(what: str) -> None:
        nonlocal clock
        times[what], clock = time.perf_counter() - clock, time.perf_counter()

    from unlabeled.config.read import read_recipe
    from unlabeled.engine import build
    from unlabeled.engine.online import Online
    from unlabeled.engine.plan import make_plan
    from unlabeled.engine.run.data import data_record

    lap("imports")
    before = memory()
    recipe = read_recipe("demo/simclrv2", overrides)
    opened = build.open_data(recipe)
    lap("open")
    at_once = memory()
    record = data_record(opened)
    lap("fingerprint")
    source = opened["train"].source
    build.make_info(recipe, opened)
    plan = make_plan(recipe, "train", len(source), 1)
    Online(recipe, plan, source, torch.device("cpu"))
    stream = build.train_streams(recipe, opened, plan)["train"]
    lap("what is measured while training")
    middle = plan.updates_per_epoch // 2
    ((batch,),) = stream.updates(middle, middle + 1)
    lap("first batch")
    after = memory() | {"CPU": time.process_time()}
    for index in np.random.default_rng(0).integers(0, len(source), READ).tolist():
        source.raw(index)
    lap("reads")
    epochs = []
    for epoch in range(1, 6):
        begin = time.perf_counter()
        stream.unit(epoch * plan.updates_per_epoch, 0)
        epochs.append(time.perf_counter() - begin)
    return {"times": times, "before": before, "opened": at_once, "after": after, "later": memory(),
            "epoch": measure.median(epochs), "samples": len(source), "index": batch.index.tolist(),
            "data": record["train"]}


def memory() -> dict[str, float]:
    """Return MB of this process: private (pages that no other process has), anonymous (those that are in no file)."""
    text = Path("/proc/self/smaps_rollup").read_text()
    sizes = {name: int(kilobytes) / 1000 for name, kilobytes in re.findall(r"^(\w+): +(\d+) kB", text, re.MULTILINE)}
    return {"private": sizes["Private_Clean"] + sizes["Private_Dirty"], "anonymous": sizes["Anonymous"]}


def _starts(report: measure.Report, folder: Path, given: argparse.Namespace) -> None:
    begin = time.perf_counter()
    card = make_set(folder, given.samples, given.shards)
    os.sync()  # what is not on the disk yet counts as a process's own
    report.say(f"{given.samples:,} samples in {given.shards:,} shards, with labels; every shard holds one image, to "
               f"which its kept index leads {given.samples // given.shards:,} times. The set was made in "
               f"{time.perf_counter() - begin:.0f} s.")
    plain = f"data.train={{card: {card}, batch: {BATCH}}}"
    mix = (f"data.train={{batch: {BATCH}, epoch_samples: {given.samples // 2}, mix: [{{card: {card}, labels: false, "
           f"weight: 3}}, {{card: {card}, split: small, labels: false, weight: 1}}]}}")
    rows = [_row("joined first", first_batch(plain))]
    os.sync()
    rows += [_row("every start", run) for run in (first_batch(plain) for _ in range(given.repeats))]
    if not given.quick:
        first_batch(mix)  # joins the second set
    rows += [_row("weighted mix", run) for run in (first_batch(mix) for _ in range(given.repeats))]
    kept = {file.name: file.stat().st_size for file in folder.glob("simulated-*.index")}
    report.table(["process", "start to first batch, s", "its CPU time, s", "imports, s", "opening, s",
                  "fingerprint, s", "private memory, MB", "after imports alone, MB",
                  f"after {READ:,} samples more, MB", "anonymous, MB", "change of epoch, ms", "bars"], rows)
    report.say("A start is what a process does from its first line to the first batch of "
               f"{BATCH} images at the middle of an epoch: imports, opening, fingerprint, the parts that are measured "
               "while training, decoding and two crops of each image; no network. Private memory is Private_Clean and "
               "Private_Dirty of smaps_rollup, so pages of mapped files that no other process has are in it; anonymous "
               "memory is in no file. The first process joins the kept indexes of all shards in files of "
               f"{', '.join(f'{size / 1e9:.2f} GB' for size in sorted(kept.values(), reverse=True))}.")


def first_batch(override: str) -> dict[str, Any]:
    """Start a process; return what `start` in it returns, and its seconds until the first batch."""
    begin = time.perf_counter()
    run = subprocess.run([sys.executable, "-m", "benchmarks.scale", "--start", override, "data.workers=0",
                          "train.epochs=10"], capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(run.stderr)
    seconds = time.perf_counter() - begin
    about: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return about | {"seconds": seconds - about["times"]["reads"]}


def _row(name: str, run: dict[str, Any]) -> list[str]:
    first, bars = name == "joined first", []
    if not first:
        bars = [measure.bar(run["seconds"], at_most=START_BAR, unit=" s"),
                measure.bar(run["after"]["private"], at_most=MEMORY_BAR, unit=" MB"),
                measure.bar(run["epoch"], at_most=EPOCH_BAR, unit=" s")]
    times = run["times"]
    return [name, f"{run['seconds']:.1f}", f"{run['after']['CPU']:.1f}", f"{times['imports']:.1f}",
            f"{times['open']:.1f}", f"{times['fingerprint']:.2f}",
            f"{run['after']['private']:.0f}", f"{run['before']['private']:.0f}", f"{run['later']['private']:.0f}",
            f"{run['after']['anonymous']:.0f}", f"{1000 * run['epoch']:.1f}", "; ".join(bars)]


def _headers(report: measure.Report, folder: Path, entries: int) -> None:
    """Read the headers of a tar file of so many members."""
    tar = folder / "entries.tar"
    with open(tar, "wb") as file:
        for first in range(0, entries, 1 << 16):
            names = [f"{number:09d}.jpg" for number in range(first, min(first + (1 << 16), entries))]
            blocks = np.zeros((len(names), 2, _BLOCK), np.uint8)
            blocks[:, 0] = _headers_of(names, 100)
            file.write(blocks.data)
        file.write(bytes(2 * _BLOCK))
    begin = time.process_time()
    index = make_index(tar, None)
    seconds = time.process_time() - begin
    assert len(index.keys) == entries
    report.say(f"The headers of a shard of {entries:,} entries are read in {seconds:.1f} s of one core's time; "
               f"{measure.bar(seconds, at_most=INDEX_BAR, unit=' s')}.")
    tar.unlink()


def _headers_of(names: Sequence[str], size: int) -> np.ndarray:
    """Return ustar headers of files of `size` bytes, uint8 [n, 512]; names of one length."""
    headers = np.zeros((len(names), _BLOCK), np.uint8)
    text = np.frombuffer("".join(names).encode(), np.uint8).reshape(len(names), -1)
    headers[:, : text.shape[1]] = text
    fixed = {100: b"0000644\0", 124: f"{size:011o}\0".encode(), 136: b"00000000000\0", 148: b"        ", 156: b"0",
             257: b"ustar\x0000"}
    for place, value in fixed.items():
        headers[:, place : place + len(value)] = np.frombuffer(value, np.uint8)
    sums = headers.sum(1, dtype=np.int64)
    for digit in range(6):
        headers[:, 148 + digit] = ord("0") + (sums >> 3 * (5 - digit) & 7)
    headers[:, 154] = 0
    return headers


def _names(numbers: np.ndarray) -> Names:
    """Return the names of samples: their numbers, in ten digits."""
    digits = (numbers[:, None] // 10 ** np.arange(9, -1, -1) % 10 + ord("0")).astype(np.uint8)
    return Names.from_buffers(digits.tobytes(), np.arange(1, len(numbers) + 1) * 10)


@contextmanager
def _folder(given: Path | None) -> Iterator[Path]:
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        yield given
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


if __name__ == "__main__":
    sys.exit(main())
