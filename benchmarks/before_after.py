"""The data path and the update of this checkout beside those of another one, such as the commit before a change."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import measure

QUESTION = "does a change make the data path or the update slower?"
SLOWER = 1.05  # bar: at most so many times the time of before
HERE = Path(__file__).resolve().parents[1]

# runs with the code of either checkout, whose `benchmarks.workload` builds the product; every line in names a call and
# is answered by its CPU seconds
SERVER = """
import sys, time
from pathlib import Path
import torch
from benchmarks.workload import Options, Product
torch.set_num_threads(1)
folder, quick = Path(sys.argv[1]), sys.argv[2] == "quick"
sizes = {32: (16, 64) if quick else (256, 2048), 224: (8, 16) if quick else (32, 256)}
made = {}
for size, (batch, images) in sizes.items():
    (folder / str(size)).mkdir()
    made[size] = Product(Options(size, batch, images=images, tiny=True), folder / str(size))
shards = made[224].source
plain = folder / "plain"
plain.mkdir()
for i in range(len(shards)):
    (plain / f"{i:04d}.jpg").write_bytes(shards.raw(i))
options = Options(224, sizes[224][0], card="folder", root=str(plain), tiny=True)
(folder / "photos").mkdir()
photos = Product(options, folder / "photos")
calls = {
    "two views of 32 px from memory": made[32].views,
    "one update of a small network at 32 px": made[32].step,
    "two crops of 224 px from shards": made[224].next,
    "two crops of 224 px from a folder": photos.next,
    "bytes from shards": lambda: [shards.raw(i) for i in range(len(shards)) for _ in range(10)],
}
print("\\t".join(calls), flush=True)
for line in sys.stdin:
    start = time.process_time()
    calls[line.rstrip("\\n")]()
    print(time.process_time() - start, flush=True)
"""


class Side:
    """One checkout at work in a process of its own."""

    def __init__(self, checkout: Path, folder: Path, quick: bool) -> None:
        folder.mkdir()
        path = os.pathsep.join([str(checkout), str(checkout / "ssl")])
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(folder), "quick" if quick else "whole"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, cwd=folder,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )
        self.calls = self._answer().split("\t")

    def seconds(self, call: str) -> float:
        """Do one call and return its CPU seconds."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{call}\n")
        return float(self._answer())

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()

    def _answer(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().rstrip("\n")
        if not line:
            raise SystemExit("a side ended; what it printed stands above")
        return line


def main(words: list[str] | None = None) -> int:
    """Let both checkouts take turns and write the ratios of their times."""
    parser = measure.arguments("before_after", QUESTION, repeats=25)
    parser.add_argument("before", nargs="?", type=Path, default=HERE,
                        help="root of the other checkout (default: this one, which shows the noise)")
    given = parser.parse_args(words)
    report = measure.Report("before_after", "Before and after a change", QUESTION)
    sides: dict[str, Side] = {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            for name, checkout in (("before", given.before.resolve()), ("after", HERE)):
                sides[name] = Side(checkout, Path(folder) / name, given.quick)
            rows = [_row(call, sides, 1 if given.quick else given.repeats) for call in sides["after"].calls]
        finally:
            for side in sides.values():
                side.close()
    report.say("CPU time of a batch, both checkouts in turns; a ratio is the median of the rounds' ratios.")
    report.table(["", "ms before ± quartiles", "ms after ± quartiles", "after / before", "bar"], rows)
    report.finish(given.out)
    return 0


def _row(call: str, sides: dict[str, Side], repeats: int) -> list[str]:
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(-2, repeats):  # two rounds warm up
        for name in list(sides)[:: -1 if turn % 2 else 1]:
            taken = sides[name].seconds(call)
            if turn >= 0:
                seconds[name].append(taken)
    times = measure.ratio(seconds["after"], seconds["before"])
    each = [f"{1000 * measure.median(taken):.2f} ± {measure.spread(taken):.0%}" for taken in seconds.values()]
    return [call, *each, f"{times:.3f}", measure.bar(times, at_most=SLOWER)]


if __name__ == "__main__":
    sys.exit(main())
