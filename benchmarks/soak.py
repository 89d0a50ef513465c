"""A run that is killed again and again beside one that is not: the same bits, flat memory, nothing left behind."""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import measure

ROOT = Path(__file__).parents[1]
QUESTION = "does a run that is killed again and again end as one that is not, in flat memory, with no leftovers?"
GROWTH_BAR = 2.0  # % of resident memory over a run, after its first third
TIMES = ("images_per_s", "data_wait")  # what metrics.jsonl holds of the clock
IMAGES = 240


class Memory(threading.Thread):
    """Resident memory of a process and of each of its children, MiB, read twice a second."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid = pid
        self.samples: dict[int, list[tuple[float, float]]] = {}

    def run(self) -> None:
        """Read until the process is gone."""
        while resident(self.pid):
            for pid in [self.pid, *children(self.pid)]:
                if (size := resident(pid)) > 0:
                    self.samples.setdefault(pid, []).append((time.monotonic(), size))
            time.sleep(0.5)

    def growth(self, pid: int) -> tuple[float, float]:
        """Return the mean and the growth in % of a line through all but the first third."""
        when, size = np.array(self.samples[pid][len(self.samples[pid]) // 3 :]).T
        if len(when) < 3:
            return float(size.mean()), 0.0
        slope = np.polyfit(when - when[0], size, 1)[0]
        return float(size.mean()), float(100 * slope * (when[-1] - when[0]) / size.mean())


def resident(pid: int) -> float:
    """Return the resident memory of a process in MiB; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text("utf-8", "replace").splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS:")), 0.0)


def children(pid: int) -> list[int]:
    """Return the children of the main thread of a process."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


class Soak:
    """Two runs of one recipe on one folder of small images, in a folder of their own."""

    def __init__(self, folder: Path, given: argparse.Namespace) -> None:
        self.folder, self.given = folder, given
        self.random = random.Random(given.seed)
        self.save_every = max(5, given.every // 4)
        self.seen: set[int] = set()  # all processes there were
        digits(folder / "digits")

    def start(self, run: Path) -> subprocess.Popen[bytes]:
        """Start or go on with a run."""
        settings = {
            "run": run, "data.train.card": "folder", "data.train.root": self.folder / "digits", "data.train.batch": 12,
            "data.workers": self.given.workers, "backbone.width": 0.125, "method.crop.size": 8, "train.epochs": "null",
            "train.updates": self.given.updates, "train.checkpoint_every": self.save_every, "train.log_every": 1,
            "optim.warmup_epochs": 0, "eval.every": 5, "eval.at_end": "[]",
        }
        words = [sys.executable, "-m", "unlabeled.cli.main", "pretrain", "demo/simclrv2"]
        words += [f"{key}={value}" for key, value in settings.items()]
        env = {**os.environ, "PYTHONPATH": str(ROOT / "ssl"), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(words, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def whole(self, run: Path) -> Memory:
        """Train without a break and return what memory it took."""
        process = self.start(run)
        memory = Memory(process.pid)
        memory.start()
        self.finish(process)
        memory.join()
        return memory

    def killed(self, run: Path) -> list[str]:
        """Train with kills, every second one while a checkpoint is written, and return where they came."""
        kills: list[str] = []
        reached = 0
        while True:
            process = self.start(run)
            goal = reached + self.random.randint(self.given.every // 2, self.given.every)
            if goal >= self.given.updates:
                self.finish(process)
                return kills
            saving = len(kills) % 2 == 1
            self.wait(process, run, goal, saving)
            reached = updates(run)
            self.seen |= {process.pid, *children(process.pid)}
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills.append(f"{reached}{' (saving)' if saving else ''}")

    def wait(self, process: subprocess.Popen[bytes], run: Path, goal: int, saving: bool) -> None:
        """Wait until `goal` updates are done and, for `saving`, the next checkpoint is half written."""
        while updates(run) < goal or (saving and not list(run.glob("checkpoints/.*.tmp"))):
            if process.poll() is not None:
                if saving and process.returncode == 0:
                    return  # it was at its end before it could be caught
                raise RuntimeError(f"the run has ended by itself: {process.communicate()[1].decode()}")
            time.sleep(0 if updates(run) >= goal else 0.01)

    def finish(self, process: subprocess.Popen[bytes]) -> None:
        """Wait for an end that must be a good one."""
        while process.poll() is None:
            self.seen |= {process.pid, *children(process.pid)}
            time.sleep(0.2)
        if process.returncode:
            raise RuntimeError(f"exit code {process.returncode}: {process.communicate()[1].decode()}")

    def leftovers(self, shared_before: set[str]) -> list[str]:
        """Return temporary files, shared memory and processes that are still there."""
        left = [str(path.relative_to(self.folder)) for path in self.folder.rglob("*")
                if path.name.endswith((".tmp", ".part"))]
        left += sorted(shared() - shared_before)
        until = time.monotonic() + 5
        while (alive := [pid for pid in self.seen if resident(pid)]) and time.monotonic() < until:
            time.sleep(0.1)
        return left + [f"process {pid}" for pid in alive]


def digits(folder: Path) -> None:
    """Write scikit-learn's scans of digits as image files."""
    from PIL import Image
    from sklearn.datasets import load_digits

    folder.mkdir()
    for number, image in enumerate(load_digits().images[:IMAGES]):
        Image.fromarray((image * 15).astype(np.uint8)).save(folder / f"{number:04d}.png")


def updates(run: Path) -> int:
    """Return how many updates `metrics.jsonl` tells of."""
    try:
        return (run / "metrics.jsonl").read_bytes().count(b"\n")
    except OSError:
        return 0


def shared() -> set[str]:
    """Return what lies in shared memory."""
    return set(os.listdir("/dev/shm")) if Path("/dev/shm").is_dir() else set()


def differences(run: Path, whole: Path, last: int) -> list[str]:
    """Return the tensors of the last checkpoint whose bits differ, and the lines of the metrics that do."""
    name = f"checkpoints/update-{last:08d}.pt"
    states = [flat(torch.load(folder / name, weights_only=True)) for folder in (run, whole)]
    found = sorted(states[0].keys() ^ states[1].keys())
    found += [key for key, value in states[0].items() if key in states[1] and not same(value, states[1][key])]
    lines = [[json.loads(line) for line in (f / "metrics.jsonl").read_text().splitlines()] for f in (run, whole)]
    for ours, theirs in zip(*lines, strict=False):
        if {k: v for k, v in ours.items() if k not in TIMES} != {k: v for k, v in theirs.items() if k not in TIMES}:
            found.append(f"metrics of update {theirs['update']}")
    return found + (["number of lines of the metrics"] if len(lines[0]) != len(lines[1]) else [])


def flat(state: Any, prefix: str = "") -> dict[str, Any]:
    """Return the leaves of nested mappings and lists by their paths."""
    pairs = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list) else None
    if pairs is None:
        return {prefix: state}
    return {name: leaf for key, value in pairs for name, leaf in flat(value, f"{prefix}.{key}").items()}


def same(a: Any, b: Any) -> bool:
    """Return whether two leaves are equal to the bit."""
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def main(words: list[str] | None = None) -> int:
    """Do both runs and say what came of it; the exit code is 1 if anything is not as it should be."""
    parser = measure.arguments("soak", QUESTION, repeats=1)
    parser.add_argument("--updates", type=int, default=2000, help="length of the run")
    parser.add_argument("--workers", type=int, default=2, help="loader processes")
    parser.add_argument("--every", type=int, default=300, help="a kill comes after at most so many updates")
    parser.add_argument("--seed", type=int, default=0, help="of the places where kills come")
    given = parser.parse_args(words)
    if given.quick:
        given.updates, given.every = 60, 50
    report = measure.Report("soak", "Killed again and again", QUESTION)
    before = shared()
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(Path(folder), given)
        memory = soak.whole(Path(folder) / "whole")
        kills = soak.killed(Path(folder) / "killed")
        differing = differences(Path(folder) / "killed", Path(folder) / "whole", given.updates)
        left = soak.leftovers(before)
    rows = [[f"kills, at update {', '.join(kills)}", str(len(kills)), "-"],
            ["tensors, numbers and lines that differ", _some(differing), _met(not differing)],
            ["temporary files, shared memory and processes left", _some(left), _met(not left)]]
    good = not differing and not left
    for pid, samples in memory.samples.items():
        if len(samples) < len(memory.samples[memory.pid]) // 4:
            continue  # workers of a measurement, which live for a second
        mean, growth = memory.growth(pid)
        good &= growth <= GROWTH_BAR or given.quick
        name = "training process" if pid == memory.pid else "loader process"
        rows.append([f"{name}: {mean:.0f} MiB, growth", f"{growth:+.2f} %", measure.bar(growth, at_most=GROWTH_BAR)])
    report.table([f"{given.updates} updates, {given.workers} loader processes", "found", "bar"], rows)
    report.finish(given.out)
    return 0 if good else 1


def _some(names: list[str]) -> str:
    return f"{len(names)}: {', '.join(names[:5])}" if names else "none"


def _met(good: bool) -> str:
    return f"none: {'met' if good else 'missed'}"


if __name__ == "__main__":
    sys.exit(main())
