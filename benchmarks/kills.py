"""Runs of every method that are killed at random moments and go on: to the bits of a run that was left alone."""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks.soak import children, differences, updates

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests"))  # its tiny runs of every method

from processes import free_port  # noqa: E402
from tiny import TINY, tiny_case  # noqa: E402

from unlabeled.config.recipe import Recipe  # noqa: E402
from unlabeled.config.yaml.write import to_yaml  # noqa: E402

QUESTION = "does a run of any method that is killed at any moment go on to the bits of one that was left alone?"
UPDATES = 16
KINDS = ("group", "write", "rank", "worker")
PATIENCE = 300.0  # seconds for one start
_STARTING = 6.0  # seconds in which a process starts, about
_EARLY = 0.2  # share of the kills that come while it does


@dataclass(frozen=True)
class Point:
    """One kill. kind: of all processes; of all while a checkpoint is written; of one rank; of one loader process.

    after: updates that are done before it comes, None: none need be. wait: seconds from then on, or from the start.
    """

    number: int
    method: str
    variant: str
    processes: int
    kind: str
    after: int | None
    wait: float
    checkpoint_every: int

    @property
    def case(self) -> tuple[str, str, int]:
        """Return what its result is compared with: method, variant, processes."""
        return self.method, self.variant, self.processes


def point(seed: int, number: int) -> Point:
    """Draw a point; methods take turns."""
    drawn = random.Random(f"{seed}/{number}")
    method = list(TINY)[number % len(TINY)]
    variant = drawn.choice(list(TINY[method]))
    processes = drawn.choice([count for count in (1, 2, 3) if _divides(method, variant, count)])
    kind = drawn.choice([kind for kind in KINDS if processes > 1 or kind != "rank"])
    early = kind == "group" and drawn.random() < _EARLY
    after = None if early else drawn.randrange(1, UPDATES - 2)
    wait = drawn.uniform(0, _STARTING) if early else drawn.uniform(0, 0.3)
    return Point(number, method, variant, processes, kind, after, wait, drawn.randint(1, 5))


@functools.cache
def recipe_of(method: str, variant: str) -> Recipe:
    """Return a tiny recipe of a method, longer than the tests' own."""
    longer = [f"train.updates={UPDATES}", "train.log_every=1", "eval.every=5"]
    return tiny_case(method, variant).read(longer)


def _divides(method: str, variant: str, processes: int) -> bool:
    recipe = recipe_of(method, variant)
    batches = [stream.batch for stream in recipe.data.streams().values()]
    parts = processes * recipe.train.grad_accum
    return all(batch % parts == 0 for batch in batches) and (recipe.train.blocks or parts) % parts == 0


class Runs:
    """The folder in which runs are made, and what they are compared with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.whole: dict[tuple[str, str, int], Path] = {}

    def check(self, point: Point) -> list[str]:
        """Kill a run at a point and let it go on; return what is lost: what differs at its end, or how it ended."""
        run = self.folder / f"point-{point.number}"
        try:
            problem = self.kill(point, run) or self.finish(self.start(point, run))
            if problem:
                return [problem]
            return differences(run, self.left_alone(point), UPDATES) + _exports(run, self.left_alone(point))
        finally:
            shutil.rmtree(run, ignore_errors=True)

    def left_alone(self, point: Point) -> Path:
        """Return the folder of the same run without a kill."""
        if point.case not in self.whole:
            run = self.folder / "-".join(map(str, point.case))
            if problem := self.finish(self.start(point, run)):
                raise RuntimeError(f"{point.case}: a run that is left alone ended badly: {problem}")
            self.whole[point.case] = run
        return self.whole[point.case]

    def start(self, point: Point, run: Path) -> subprocess.Popen[bytes]:
        """Start or go on with a run of a point by the command that users give."""
        file = self.folder / f"{point.method}-{point.variant}.yaml"
        if not file.exists():
            file.write_text(to_yaml(recipe_of(point.method, point.variant)))
        launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(point.processes), "--master_addr",
                    "127.0.0.1", "--master_port", str(free_port())] if point.processes > 1 else []
        words = [sys.executable, *launcher, str(ROOT / "pretrain.py"), str(file), f"run={run}",
                 f"train.checkpoint_every={point.checkpoint_every}", f"data.workers={int(point.kind == 'worker')}"]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
        with open(self.folder / "output", "wb") as output:
            return subprocess.Popen(words, env=env, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)

    def finish(self, process: subprocess.Popen[bytes]) -> str:
        """Wait for the end; return what is wrong with it, or nothing."""
        try:
            code = process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            _kill([process.pid, *descendants(process.pid)])
            return f"hangs: {self._last_words()}"
        return f"exit code {code}: {self._last_words()}" if code else ""

    def kill(self, point: Point, run: Path) -> str:
        """Start a run, kill what the point says at its moment, and wait for the end; return what went wrong."""
        process, begin = self.start(point, run), time.monotonic()
        while point.after is not None and updates(run) < point.after:
            if process.poll() is not None or time.monotonic() - begin > PATIENCE:
                return f"it ended before the kill, with exit code {process.poll()}: {self._last_words()}"
            time.sleep(0.005)
        time.sleep(point.wait)
        if point.kind == "write":  # one is written soon, or the run is at its end
            while process.poll() is None and not list(run.glob("checkpoints/.*.tmp")):
                time.sleep(0)
        everything = [process.pid, *descendants(process.pid)]
        ranks = children(process.pid) if point.processes > 1 else [process.pid]
        if point.kind == "rank":
            _kill(ranks[point.number % max(1, len(ranks)) :][:1])
            self.finish(process)  # its end is a bad one; that of the next start counts
        elif point.kind == "worker":
            _kill([pid for rank in ranks for pid in children(rank)][:1])
            return self.finish(process)
        else:
            _kill(everything)
            process.wait()
        return ""

    def _last_words(self) -> str:
        return " / ".join((self.folder / "output").read_text("utf-8", "replace").splitlines()[-3:])


def descendants(pid: int) -> list[int]:
    """Return all processes below one."""
    return [each for child in children(pid) for each in (child, *descendants(child))]


def _kill(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _exports(run: Path, whole: Path) -> list[str]:
    """Return the files of networks to take away that differ."""
    names = {file.name for folder in (run, whole) for file in (folder / "export").glob("*.safetensors")}
    return [f"export {name}" for name in sorted(names) if _content(run, name) != _content(whole, name)]


def _content(run: Path, name: str) -> bytes | None:
    file = run / "export" / name
    return file.read_bytes() if file.exists() else None


def main(words: list[str] | None = None) -> int:
    """Do the points that are not done yet and say what came of all; the exit code is 1 if anything was lost."""
    parser = measure.arguments("kills", QUESTION, repeats=1)
    parser.add_argument("--points", type=int, default=200, help="kills, over all methods in turn (default 200)")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn")
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark-kills"), help="where results are kept: "
                        "the same command goes on with the points that are not there (default runs/benchmark-kills)")
    given = parser.parse_args(words)
    if given.quick:
        given.points = min(given.points, 10)
    with tempfile.TemporaryDirectory() as folder:
        kept_in = Path(folder) if given.quick else given.runs
        kept_in.mkdir(parents=True, exist_ok=True)
        file = kept_in / f"points-{given.seed}.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        results = {line["number"]: line for line in map(json.loads, lines)}
        runs = Runs(Path(folder))
        for number in range(given.points):
            if number not in results:
                results[number] = _tried(runs, point(given.seed, number))
                with open(file, "a", encoding="utf-8") as kept:
                    kept.write(json.dumps(results[number]) + "\n")
    chosen = [results[number] for number in range(given.points)]
    report = measure.Report("kills", "Killed at random moments", QUESTION)
    _tables(report, chosen, given)
    report.finish(given.out)
    return int(any(line["lost"] for line in chosen))


def _tried(runs: Runs, point: Point) -> dict[str, Any]:
    lost = runs.check(point)
    print(f"{point.number}: {point.method}-{point.variant}, {point.processes} processes, {point.kind} after "
          f"{point.after}: {', '.join(lost[:3]) if lost else 'nothing lost'}", file=sys.stderr)
    return {**asdict(point), "lost": lost}


def _tables(report: measure.Report, lines: list[dict[str, Any]], given: argparse.Namespace) -> None:
    for key in ("method", "kind", "processes"):
        total = Counter(line[key] for line in lines)
        lost = Counter(line[key] for line in lines if line["lost"])
        report.table([key, "kills", "lost"], [[str(name), str(total[name]), str(lost[name])] for name in total])
    bad = [f"{line['number']} ({line['method']}-{line['variant']}): {line['lost'][0]}" for line in lines
           if line["lost"]]
    row = ["points at which anything was lost", "; ".join(bad) or "none", f"none: {'missed' if bad else 'met'}"]
    report.table([f"{len(lines)} points of seed {given.seed}, runs of {UPDATES} updates", "found", "bar"], [row])


if __name__ == "__main__":
    sys.exit(main())
