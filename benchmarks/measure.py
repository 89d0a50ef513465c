"""What all benchmarks share: the clock, taking turns, medians, the machine, and the Markdown that is kept."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
PACKAGES = ("torch", "torchvision", "timm", "accelerate", "numpy", "pillow")


def arguments(name: str, question: str, repeats: int) -> argparse.ArgumentParser:
    """Return a parser with what every benchmark takes."""
    parser = _parser(name, question)
    parser.add_argument("--repeats", type=int, default=repeats, help=f"rounds of turns (default {repeats})")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, one round: shows that the script runs")
    return parser


def arguments_of_seeds(name: str, question: str, kept: str) -> argparse.ArgumentParser:
    """Return a parser with what a benchmark takes that trains for several seeds; kept: what stays in its folder."""
    parser = _parser(name, question)
    folder = Path(f"runs/benchmark-{name}")
    parser.add_argument("--runs", type=Path, default=folder, help=f"folder of {kept} (default {folder})")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0 (default 3)")
    return parser


def _parser(name: str, question: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=question)
    parser.add_argument("--out", type=Path, help="also write the result into this Markdown file")
    return parser


def one_thread() -> None:
    """Compute on one thread: the CPU time of the process is then the cost per core."""
    torch.set_num_threads(1)


def clock(device: torch.device) -> Callable[[Callable[[], object]], float]:
    """Return what times one call, in seconds: CPU time of this process, or wall time of a GPU that has finished."""

    def on_cpu(function: Callable[[], object]) -> float:
        start = time.process_time()
        function()
        return time.process_time() - start

    def on_gpu(function: Callable[[], object]) -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        torch.cuda.synchronize()
        return time.perf_counter() - start

    return on_gpu if device.type == "cuda" else on_cpu


def take_turns(
    variants: Mapping[str, Callable[[], object]],
    repeats: int,
    device: torch.device | str = "cpu",
    prepare: Callable[[str], object] = lambda name: None,
) -> dict[str, list[float]]:
    """Time the variants in turns: seconds by variant, one per round; the first, unmeasured round warms up.

    Every second round runs backwards, so that no variant always follows the same one. prepare: called with the name
    before every turn, not timed.
    """
    measure = clock(torch.device(device))
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(-1, repeats):
        for name in list(variants)[:: -1 if turn % 2 else 1]:
            prepare(name)
            taken = measure(variants[name])
            if turn >= 0:
                seconds[name].append(taken)
    return seconds


def median(values: Sequence[float]) -> float:
    """Return the median."""
    return statistics.median(values)


def ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """Return the median of the rounds' ratios: both of a round saw the same state of the machine."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def spread(values: Sequence[float]) -> float:
    """Return the distance between the quartiles as a share of the median (0 for a single value)."""
    if len(values) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(values, n=4)
    return (high - low) / middle


def cpu_flags() -> list[str]:
    """Return which of FLAGS the CPU has; empty where the system does not say."""
    cpuinfo = Path("/proc/cpuinfo")
    words = set(cpuinfo.read_text().split()) if cpuinfo.exists() else set()
    return [flag for flag in FLAGS if flag in words]


def native_bf16() -> bool:
    """Return whether the CPU multiplies bfloat16 itself; where it does not, bf16 is slower than float32."""
    return bool({"avx512_bf16", "amx_bf16"} & set(cpu_flags()))


def machine() -> str:
    """Describe processor, instruction sets, cores and, where there is one, the GPU."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    lacking = [flag for flag in FLAGS if flag not in cpu_flags()]
    text = f"{model}, {os.cpu_count()} cores seen, has {', '.join(cpu_flags()) or 'none'} of {', '.join(FLAGS)}"
    if lacking and not native_bf16():
        text += " (no bfloat16 of its own)"
    if torch.cuda.is_available():
        text += f"; {torch.cuda.get_device_name()}"
    return text


def versions(*more: str) -> str:
    """Return the versions of Python and of the packages that are installed."""
    found = [f"Python {platform.python_version()}"]
    for name in (*PACKAGES, *more):
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{name} not installed")
    return ", ".join(found)


class Report:
    """The Markdown of one benchmark, printed at the end and kept where `--out` says."""

    def __init__(self, name: str, title: str, question: str, packages: Sequence[str] = ()) -> None:
        command = shlex.join(["python", "-m", f"benchmarks.{name}", *_without_out(sys.argv[1:])])
        malloc = [f"{key}={value}" for key, value in sorted(os.environ.items()) if key.startswith("MALLOC_")]
        self.lines = [f"# {title}", "", f"Question: {question}", ""]
        self.closing = [
            "",
            f"- Command: `{' '.join([*malloc, command])}`",
            f"- Machine: {machine()}; {_threads()}; load when it ended: {os.getloadavg()[0]:.1f}",
            f"- Versions: {versions(*packages)}",
        ]

    def say(self, text: str) -> None:
        """Add a paragraph."""
        self.lines += [text, ""]

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Add a table."""
        self.lines += [_row(header), _row(["---"] * len(header)), *map(_row, rows), ""]

    def finish(self, out: Path | None) -> str:
        """Print the result, write it into `out` if given, and return it."""
        text = "\n".join([*self.lines[:-1], *self.closing, ""])
        print(text)
        if out is not None:
            out.write_text(text)
        return text


def bar(value: float, at_most: float | None = None, at_least: float | None = None, unit: str = "") -> str:
    """Return a bar and whether `value` meets it."""
    if at_most is not None:
        return f"<= {at_most:g}{unit}: {'met' if value <= at_most else 'missed'}"
    assert at_least is not None
    return f">= {at_least:g}{unit}: {'met' if value >= at_least else 'missed'}"


def _threads() -> str:
    count = torch.get_num_threads()
    return "one thread" if count == 1 else f"{count} threads"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _without_out(words: Sequence[str]) -> list[str]:
    """Leave out where the result is written: it is not part of what was measured."""
    kept, skip = [], False
    for word in words:
        if skip or word == "--out" or word.startswith("--out="):
            skip = word == "--out"
            continue
        kept.append(word)
    return kept
