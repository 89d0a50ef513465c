"""What a user waits for before anything happens: help, errors, imports, and the first training step."""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import measure, pictures

QUESTION = "how long does a user wait for help, for an error, and for the first training step?"
ROOT = Path(__file__).resolve().parents[1]
FIRST_STEP_BAR = 1.5  # seconds more than the bare loop
COMMANDS = {  # what is typed -> (arguments, bar in seconds)
    "unlabeled --help": (["--help"], 0.3),
    "unlabeled --version": (["--version"], 0.3),
    "unlabeled pretrain --help": (["pretrain", "--help"], 0.3),
    "unlabeled recipes": (["recipes"], 0.3),
    "a misspelt key: unlabeled pretrain demo/simclrv2 optim.weigth_decay=0": (
        ["pretrain", "demo/simclrv2", "optim.weigth_decay=0"], 0.5),
    "unlabeled schema": (["schema"], None),
    "unlabeled pretrain demo/simclrv2 --print": (["pretrain", "demo/simclrv2", "--print"], None),
}
IMPORTS = ("numpy", "torch", "torchvision", "timm", "accelerate", "sklearn", "matplotlib.pyplot", "rich.progress")


def main(words: list[str] | None = None) -> int:
    """Start many short processes."""
    given = _arguments(words)
    repeats = 1 if given.quick else given.repeats
    report = measure.Report("startup", "Start-up", QUESTION, ["pydantic", "rich"])
    commands = dict(list(COMMANDS.items())[: 2 if given.quick else None])
    report.say("CPU seconds of a new process, user and system, files warm; the median. Python alone is part of each.")
    rows = []
    seconds = _turns({name: ["-m", "unlabeled.cli.main", *words] for name, (words, _) in commands.items()}, repeats)
    for name, (_, bar) in commands.items():
        taken = measure.median(seconds[name])
        shown = f"`{name}`" if name.startswith("unlabeled") else name
        rows.append([shown, _shown(seconds[name]), measure.bar(taken, at_most=bar, unit=" s") if bar else ""])
    report.table(["command", "CPU s ± quartiles", "bar"], rows)
    with tempfile.TemporaryDirectory() as folder:
        pictures.array_set(Path(folder), pictures.photographs(128, 32, 32))
        steps = {name: ["-m", "benchmarks.first_step", name, folder] for name in ("bare", "product")}
        seconds = _turns(steps, repeats)
    more = measure.median([a - b for a, b in zip(seconds["product"], seconds["bare"], strict=True)])
    report.table(["to the end of the first step", "CPU s ± quartiles", "bar"], [
        ["bare loop: torch, torchvision, timm", _shown(seconds["bare"]), ""],
        ["`unlabeled pretrain`, the same work", _shown(seconds["product"]),
         f"{more:+.2f} s, {measure.bar(more, at_most=FIRST_STEP_BAR, unit=' s')}"],
    ])
    imports = IMPORTS[: 1 if given.quick else None]
    seconds = _turns({"Python alone": ["-c", ""], **{name: ["-c", f"import {name}"] for name in imports}}, repeats)
    report.table(["import, in a process of its own", "CPU s ± quartiles"],
                 [[name, _shown(taken)] for name, taken in seconds.items()])
    report.finish(given.out)
    return 0


def _arguments(words: list[str] | None) -> argparse.Namespace:
    return measure.arguments("startup", QUESTION, repeats=7).parse_args(words)


def _shown(taken: list[float]) -> str:
    return f"{measure.median(taken):.2f} ± {measure.spread(taken):.0%}"


def _turns(starts: dict[str, list[str]], repeats: int) -> dict[str, list[float]]:
    """Start Python with each list of arguments in turns: CPU seconds by name; before several rounds one warms files."""
    seconds: dict[str, list[float]] = {name: [] for name in starts}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'ssl'}{os.pathsep}{ROOT}"}
    for turn in range(-1 if repeats > 1 else 0, repeats):
        for name, words in starts.items():
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            done = subprocess.run([sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True,
                                  check=False)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            if done.returncode not in (0, 2):  # 2: the error that was asked for
                raise RuntimeError(f"{name}: {done.stderr}")
            if turn >= 0:
                seconds[name].append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return seconds


if __name__ == "__main__":
    sys.exit(main())
