"""Damaged files: every one must give the pixels that PIL gives, or be refused in one line.

    python -m benchmarks.fuzz --minutes 30 --seed 0
    python -m benchmarks.fuzz --seed 0 --case 1234 --keep FOLDER

Cases are numbered: a case is a kind of set, damaged as (seed, case) says. They run in a process of their own, with a
limit on time and memory, so that hangs and crashes are found too; --case runs one here and shows its traceback.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.fuzz_images import Kind
from benchmarks.fuzz_sets import kinds
from unlabeled.data.sources.base import CorruptSample
from unlabeled.data.sources.tar import stream as tar_stream
from unlabeled.errors import UserError

_FORK = multiprocessing.get_context("fork")
SECONDS = 20  # of one case, at most
_MEMORY = 2 << 30  # bytes that a case may take beyond what the process holds at its start
_PIXELS = 4_000_000  # PIL's limit in here: images of twice as many are refused


@dataclass(frozen=True)
class Finding:
    """A case that ended in something else than pixels or a refusal."""

    case: int
    kind: str
    file: str
    what: str


def main(words: list[str] | None = None) -> int:
    """Run the cases that the command line asks for; return 1 if one of them ended badly, else 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=1.0, help="how long to go on (default 1)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case, to go on from")
    parser.add_argument("--only", default="", help="kinds whose names begin with this, such as image-, npz, coco")
    parser.add_argument("--case", type=int, help="run this one case, with its traceback")
    parser.add_argument("--keep", type=Path, help="folder for the files of bad cases")
    given = parser.parse_args(words)
    chosen = {name: kind for name, kind in kinds().items() if name.startswith(given.only)}
    if not chosen:
        parser.error(f"no kind begins with {given.only}; there are: {', '.join(kinds())}")
    if given.case is not None:
        finding, ending = attempt(chosen, given.case, given.seed, given.keep, show=True)
        print(finding or ending)
        return int(finding is not None)
    findings, endings, last = search(chosen, given.first, given.seed, seconds=60 * given.minutes, keep=given.keep)
    counts = ", ".join(f"{count} {ending}" for ending, count in endings.items())
    print(f"cases {given.first} to {last}, seed {given.seed}: {counts}")
    for place, (count, number) in _groups(findings).items():
        print(f"  {place}: {count} cases, the first: --seed {given.seed} --case {number}")
    return int(bool(findings))


def search(all_kinds: dict[str, Kind], first: int, seed: int, *, cases: int = sys.maxsize, seconds: float = math.inf,
           keep: Path | None = None) -> tuple[list[Finding], Counter[str], int]:
    """Run cases from `first` on, so many or so long, in another process; return findings, endings and the last case."""
    findings: list[Finding] = []
    endings: Counter[str] = Counter()
    until, case = time.monotonic() + seconds, first
    while case < first + cases and time.monotonic() < until:
        here, there = _FORK.Pipe(duplex=False)
        numbers = range(case, min(first + cases, sys.maxsize))
        child = _FORK.Process(target=_run, args=(there, all_kinds, numbers, seed, until, keep))
        child.start()
        there.close()
        running: tuple[int, str] | None = None
        for message in _messages(here, child):
            if len(message) == 2:
                running = message
                continue
            finding, ending = message[1:]
            endings[ending] += 1
            findings += _said([finding] if finding is not None else [])
            case, running = message[0] + 1, None
        child.join()
        if running is not None:  # it died in the middle of a case
            what = "stood still" if child.exitcode == -signal.SIGKILL else f"ended with exit code {child.exitcode}"
            findings += _said([Finding(*running, "", f"the process {what}")])
            endings["bad"] += 1
            case = running[0] + 1
        elif child.exitcode:
            raise SystemExit(f"the process of the cases ended with exit code {child.exitcode}")
    return findings, endings, case - 1


def _messages(here: Connection, child: BaseProcess) -> Iterator[Any]:
    """Yield what the process of the cases says until it ends; one that stands still, beyond signals, is ended."""
    while True:
        if not here.poll(2 * SECONDS):
            child.kill()
        try:
            yield here.recv()
        except EOFError:
            return


def attempt(all_kinds: dict[str, Kind], case: int, seed: int, keep: Path | None = None, *, show: bool = False,
            ) -> tuple[Finding | None, str]:
    """Run one case; return what is wrong with its end, if anything is, and how it ended: read, refused or bad."""
    name, random = kind_of(all_kinds, case), np.random.default_rng([seed, case])
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    file, what = "", ""
    try:
        file = all_kinds[name].write(folder, random)
        with _limits(folder):
            all_kinds[name].read(folder)
        return None, "read"
    except UserError as error:
        text = str(error)
        if not text or "\n" in text or len(text) > 1000 + len(str(folder)):
            what = f"a refusal that is no line of text: {text!r:.300}"
        elif str(folder) not in text:
            what = f"a refusal without the file: {text}"
    except CorruptSample as error:
        what = "" if error.reason and error.key else f"a refusal without name or reason: {error}"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        if show:
            traceback.print_exc()
        where = traceback.extract_tb(error.__traceback__)
        own = next((frame for frame in reversed(where) if f"{os.sep}unlabeled{os.sep}" in frame.filename), where[-1])
        what = f"{type(error).__name__} in {Path(own.filename).name}:{own.name}: {str(error).replace(str(folder), '')}"
    finally:
        if what and keep is not None:
            shutil.copytree(folder, keep / f"{seed}-{case}-{name}", dirs_exist_ok=True)
        shutil.rmtree(folder)
    return (Finding(case, name, file, what), "bad") if what else (None, "refused")


def kind_of(all_kinds: dict[str, Kind], case: int) -> str:
    """Return the kind of a case: single images and whole sets in turn."""
    images = [name for name in all_kinds if name.startswith("image-")]
    sets = [name for name in all_kinds if not name.startswith("image-")]
    if not images or not sets:
        return list(all_kinds)[case % len(all_kinds)]
    chosen = sets if case % 2 else images
    return chosen[case // 2 % len(chosen)]


@contextlib.contextmanager
def _limits(folder: Path) -> Iterator[None]:
    """Limit a case's time, its pixels and the waiting between tries; its indexes stay in its own folder."""
    def late(*_: object) -> None:
        raise TimeoutError(f"more than {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, late), Image.MAX_IMAGE_PIXELS, tar_stream.WAIT
    cache = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(folder / ".cache")
    Image.MAX_IMAGE_PIXELS, tar_stream.WAIT = _PIXELS, 0.0
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before[0])
        Image.MAX_IMAGE_PIXELS, tar_stream.WAIT = before[1:]
        os.environ.pop("XDG_CACHE_HOME")
        if cache is not None:
            os.environ["XDG_CACHE_HOME"] = cache


def _run(report: Connection, all_kinds: dict[str, Kind], cases: range, seed: int, until: float, keep: Path | None,
         ) -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY,) * 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libraries warn of every damaged file
    for case in cases:
        if time.monotonic() > until:
            return
        report.send((case, kind_of(all_kinds, case)))
        report.send((case, *attempt(all_kinds, case, seed, keep)))


def _said(findings: list[Finding]) -> list[Finding]:
    for finding in findings:
        print(f"case {finding.case}: {finding.kind}, {finding.file}: {finding.what:.300}", flush=True)
    return findings


def _groups(findings: list[Finding]) -> dict[str, tuple[int, int]]:
    groups: dict[str, tuple[int, int]] = {}
    for finding in findings:
        place = f"{finding.kind}: {finding.what.partition(': ')[0]:.80}"
        count, number = groups.get(place, (0, finding.case))
        groups[place] = (count + 1, number)
    return groups


if __name__ == "__main__":
    sys.exit(main())
