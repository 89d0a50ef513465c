"""A GPU for some minutes: its tests, the training throughput and CIFAR-10, each within its time and kept at once.

    python -m benchmarks.gpu_day                    all parts, in eight minutes
    python -m benchmarks.gpu_day part=train minutes=3

Settings: part=tests|speed|train; minutes=8 for the parts that run; out=FOLDER (default runs/gpu-day) keeps results and
logs; root=FOLDER holds the shards of CIFAR-10 (default $DATA/cifar10); quick=true is a small run, also on a CPU.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from benchmarks import measure
from unlabeled.cli.arguments import take, truth
from unlabeled.errors import UserError

ROOT = Path(__file__).parents[1]
QUESTION = "does everything run on a GPU as on a CPU, how fast does it train, and what does it learn in minutes?"
SHARES = {"tests": 0.3, "speed": 0.4, "train": 0.3}  # of the time; what a part leaves goes to those after it
SETTINGS = {"part": None, "minutes": "8", "out": "runs/gpu-day", "root": None, "quick": "false"}
EPOCH, PROBE = 50_000, 100  # images of CIFAR-10; updates by which its speed is known
AT_LEAST = {"32": 0.0, "224": 2000.0}  # images/s that are aimed at on an H200
RESULT = re.compile(r"(PASSED|FAILED|ERROR|SKIPPED)")


@dataclass
class Result:
    """What a part found: rows (what, number, bar), whether all is well, and the commands that ran."""

    part: str
    rows: list[tuple[str, str, str]] = field(default_factory=list)
    good: bool = True
    seconds: float = 0.0
    commands: list[str] = field(default_factory=list)


@dataclass
class Day:
    """Where results are kept, and when the part that runs must have ended (time.monotonic)."""

    out: Path
    root: str | None
    quick: bool
    until: float = 0.0
    cuda: bool = field(default_factory=torch.cuda.is_available)

    def left(self) -> float:
        """Return the seconds that are left of the part."""
        return self.until - time.monotonic()

    def run(self, result: Result, words: Sequence[str], log: str, seconds: float | None = None, **env: str) -> str:
        """Run `python WORDS` within the time, else end it with all that it started; return what it said.

        Adds a row and takes `good` away from the result if it fails.
        """
        result.commands.append(" ".join(["python", *words]))
        limit = max(1.0, min(self.left(), seconds or self.left()))
        around = {**os.environ, "PYTHONPATH": os.pathsep.join(["ssl", os.environ.get("PYTHONPATH", "")]), **env}
        path = self.out / log
        with path.open("w") as file:
            process = subprocess.Popen([sys.executable, "-u", *words], cwd=ROOT, env=around, stdout=file,
                                       stderr=subprocess.STDOUT, start_new_session=True)
            try:
                code = process.wait(limit)
                problem = f"exit code {code}" if code else ""
            except subprocess.TimeoutExpired:
                problem = f"ended after {limit:.0f} s"
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if problem:
            result.good = False
            result.rows.append((log, problem, "missed"))
        return path.read_text("utf-8", "replace")


def tests(day: Day, result: Result) -> None:
    """Run tests/gpu; on a CPU in a small part, which only shows that they run."""
    words = ["-m", "pytest", "tests/gpu", "-v", "-rfE", "-p", "no:cacheprovider"]
    env = {} if day.cuda else {"GPU_TESTS_ON": "cpu"}
    if day.quick:
        words += ["-k", "does_not_vote or update_is_that_of and rotnet-one"]
    elif day.cuda and find_spec("xdist"):  # most of the time goes into the CPU's part
        count = max(1, min(6, (os.cpu_count() or 1) // 2))
        words += ["-n", str(count), "--dist", "worksteal"]
        env["OMP_NUM_THREADS"] = "2"
    said = day.run(result, words, "tests.log", **env)
    found = outcomes(said)
    bad = [name for name, outcome in found.items() if outcome in ("FAILED", "ERROR")]
    passed = sum(outcome == "PASSED" for outcome in found.values())
    result.good &= not bad and passed > 0
    result.rows.append(("tests passed", str(passed), f"all: {'met' if result.good else 'missed'}"))
    result.rows.append(("tests skipped", str(sum(outcome == "SKIPPED" for outcome in found.values())), ""))
    result.rows += [("failed", name, "missed") for name in bad]


def outcomes(said: str) -> dict[str, str]:
    """Return what became of every test, from pytest's verbose lines, which may end early."""
    found = {}
    for line in said.splitlines():
        word, test = RESULT.search(line), re.search(r"tests/gpu/\S+\.py::.+", line)
        if word and test and " - " not in line:
            name = re.sub(r" (PASSED|FAILED|ERROR|SKIPPED).*", "", test[0]).strip()
            found[name] = word[0]
    return found


def speed(day: Day, result: Result) -> None:
    """Measure the two lines of benchmarks/README.md, shortened: the model alone, the data, and both together."""
    cores = str(len(os.sched_getaffinity(0)))
    lines = {
        "224": ["--batch", "512", "--steps", "12", "--workers", cores, "--images", "4096", "--repeats", "2"],
        "32": ["--batch", "512", "--steps", "60", "--repeats", "3"],
    }
    for size, words in lines.items():
        how = ["--precision", "bf16", "--compile", *words]
        if day.quick:
            if size == "224":
                continue
            how = ["--precision", "fp32", "--quick"]
        kept = f"throughput-{size}.md"
        share = 0.7 * day.left() if size == "224" else None
        command = ["-m", "benchmarks.throughput", "--size", size, *how, "--out", str(day.out / kept)]
        day.run(result, command, f"speed-{size}.log", share)
        if (day.out / kept).exists():
            result.rows += throughput_rows(size, (day.out / kept).read_text())


def throughput_rows(size: str, text: str) -> list[tuple[str, str, str]]:
    """Return the rows of a table of benchmarks.throughput: images/s, and their share of the model alone."""
    rows = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 5 and cells[0] in ("limit", "data", "end to end"):
            bars = [cells[4]] if cells[4] else []
            if cells[0] == "end to end" and AT_LEAST[size]:
                bars.append(measure.bar(float(cells[2]), at_least=AT_LEAST[size], unit=" images/s"))
            rows.append((f"{size} px, {cells[0]}", f"{cells[2]} images/s, time / limit {cells[3]}", "; ".join(bars)))
    rows += [(f"{size} px", line, "") for line in re.findall(r"peak [\d.]+ GiB[^\n]*", text)]
    return rows


def train(day: Day, result: Result) -> None:
    """Train SimCLR on CIFAR-10 for as many epochs as fit, with kNN at the end."""
    if day.quick:
        recipe = ["demo/simclrv2", "train.epochs=1", "optim.warmup_epochs=0"]
        epochs = 1
    else:
        recipe = ["cifar10/simclrv2"]
        recipe += [f"data.train.root={day.root}"] if day.root else []
        recipe += ["data.train.batch=64"] if not day.cuda else []
        rate = _rate(day, result, recipe)
        # a fifth of the time for start, kNN and the untrained network beside it
        epochs = max(1, int(rate * (0.8 * day.left() - 20) / EPOCH))
        recipe += [f"train.epochs={epochs}", f"optim.warmup_epochs={min(10, epochs // 10)}"]
    run = day.out / "cifar10"
    ends = ["train.log_every=5", "eval.every=0", "eval.at_end=[knn]", f"run={run}", "fresh=true"]
    day.run(result, ["-m", "unlabeled.cli.main", "pretrain", *recipe, *ends], "train.log")
    result.rows.append(("epochs", str(epochs), ""))
    for line in _lines(run)[-1:]:
        result.rows.append(("loss", f"{line['loss']:.3f}", ""))
    if rates := sorted(line["images_per_s"] for line in _lines(run)[1:]):
        result.rows.append(("images/s while training", f"{rates[len(rates) // 2]:.0f}", ""))
    for file in sorted((run / "eval").glob("knn-*.json")):
        result.rows += knn_rows(json.loads(file.read_text()))


def _rate(day: Day, result: Result, recipe: list[str]) -> float:
    """Return images/s of a short run, its later half."""
    probe = day.out / "probe"
    words = [*recipe, "train.epochs=null", f"train.updates={PROBE}", "optim.warmup_epochs=0", "eval.every=0",
             "eval.at_end=[]", "train.log_every=10", f"run={probe}", "fresh=true"]  # fmt: skip
    day.run(result, ["-m", "unlabeled.cli.main", "pretrain", *words], "probe.log", 0.4 * day.left())
    rates = [line["images_per_s"] for line in _lines(probe)]
    return min(rates[len(rates) // 2 :], default=1.0)


def _lines(run: Path) -> list[dict[str, float]]:
    file = run / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def knn_rows(report: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return the numbers of a report, with those of chance, the untrained network and raw pixels."""
    return [(each["name"], _beside(each), "") for each in report["numbers"]]


def _beside(number: dict[str, Any]) -> str:
    kinds = {"": number["network"], "untrained ": number["random_init"], "pixels ": number["raw_pixels"]}
    found = [f"{words}{each['value']:.1f}" for words, each in kinds.items() if each]
    return ", ".join([*found, f"chance {number['chance']:.1f}"]) + " %"


PARTS: dict[str, Callable[[Day, Result], None]] = {"tests": tests, "speed": speed, "train": train}


def main(words: Sequence[str] | None = None) -> int:
    """Run the parts; 0 if all went well, 1 if not, 2 for a wrong setting."""
    begin = time.monotonic()
    try:
        rest, own = take(sys.argv[1:] if words is None else words, SETTINGS)
        if rest or own["part"] not in (None, *PARTS):
            raise UserError(f"'{' '.join(rest) or own['part']}': settings are part=tests|speed|train, minutes=8, "
                            "out=FOLDER, root=FOLDER, quick=true")
        seconds, quick = 60 * float(own["minutes"] or 8), truth("quick", own["quick"])
    except (UserError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    day = Day(Path(own["out"] or "").expanduser().resolve(), own["root"], quick)
    day.out.mkdir(parents=True, exist_ok=True)
    chosen = [own["part"]] if own["part"] else list(PARTS)
    good = True
    for name in chosen:
        share = SHARES[name] / sum(SHARES[part] for part in chosen[chosen.index(name) :])
        now = time.monotonic()
        day.until = now + share * (begin + seconds - now)
        result = Result(name)
        try:
            PARTS[name](day, result)
        except Exception as error:  # the other parts are worth having
            result.good = False
            result.rows.append((name, f"{type(error).__name__}: {error}", "missed"))
        result.seconds = round(time.monotonic() - now, 1)
        (day.out / f"{name}.json").write_text(json.dumps(asdict(result), indent=1))
        (day.out / "gpu.md").write_text(written(day))
        good &= result.good
    print((day.out / "gpu.md").read_text())
    return 0 if good else 1


def written(day: Day) -> str:
    """Return the results of all parts that have run as Markdown."""
    files = [day.out / f"{name}.json" for name in PARTS]
    results = [json.loads(file.read_text()) for file in files if file.exists()]
    commands = [command.replace(str(day.out), "OUT").replace(f"root={day.root}", "root=ROOT")
                for each in results for command in each["commands"]]  # fmt: skip
    rows = [[each["part"], *(cell.replace("|", "/").replace(str(day.out), "OUT") for cell in row)]
            for each in results for row in each["rows"]]  # fmt: skip
    rows += [[each["part"], "seconds", f"{each['seconds']:.0f}", ""] for each in results]
    table = [["part", "what", "found", "bar"], ["---"] * 4, *rows]
    lines = ["# A GPU for some minutes", "", f"Question: {QUESTION}", ""]
    lines += [f"| {' | '.join(row)} |" for row in table]
    lines += ["", f"- Machine: {measure.machine()}", f"- Versions: {measure.versions()}"]
    return "\n".join([*lines, *(f"- Command: `{command}`" for command in commands), ""])


if __name__ == "__main__":
    sys.exit(main())
