"""Small mistakes, planted one at a time: do the tests of their area notice them?

    python -m benchmarks.mutants
    python -m benchmarks.mutants area=losses,ema --jobs 2

The mistakes stand in benchmarks/mistakes/AREA.yaml. Each is planted in a scratch copy of the project, in which the
tests of its group run until one fails. Every mistake has a process of its own, forked from one that has imported the
libraries. What was found is kept in a file of lines, and found again there while the file with the mistake is the same,
and the test that caught it, or of a survivor all of its tests; --fresh plants all anew.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from benchmarks import measure

ROOT = Path(__file__).parents[1]
LISTS = ROOT / "benchmarks" / "mistakes"
QUESTION = "which small mistakes in the code do the tests of its area miss?"
BAR = 95.0  # % of the mistakes that must be caught
PACKAGE = Path("ssl/unlabeled")
_IMPORT = " (import)"  # behind the name of a file of tests that could not be read
# what the tests import, but for the package itself, which must be read from the scratch copy
LIBRARIES = ("torch", "torchvision", "timm", "accelerate", "sklearn.linear_model", "sklearn.datasets", "scipy.io",
             "PIL.Image", "matplotlib.pyplot", "pydantic", "rich.console", "safetensors.torch", "simplejpeg",
             "webdataset", "pytest")
LIMIT = 180.0  # seconds that the tests of a mistake may take; without it they take less than half


@dataclass(frozen=True)
class Mistake:
    """One small mistake: `old`, which stands once in `file` (below the package), becomes `new`.

    tests: what ought to notice: FILE, FILE::FUNCTION, or FILE (WORD WORD) for those that have all words in their names.
    why: why nothing can notice it, empty of most.
    """

    area: str
    file: Path
    old: str
    new: str
    tests: tuple[str, ...]
    why: str = ""

    @property
    def title(self) -> str:
        """The place and the lines that change, on one line."""
        return f"{self.file}: {_one_line(self.old)} -> {_one_line(self.new) or '(nothing)'}"

    def planted(self, root: Path) -> str:
        """Return the text of the file with the mistake. Raises ValueError unless `old` stands in it exactly once."""
        text = (root / PACKAGE / self.file).read_text("utf-8")
        if (count := text.count(self.old)) != 1:
            raise ValueError(f"{self.area}.yaml: {_one_line(self.old)!r} stands {count} times in {self.file}, not once")
        return text.replace(self.old, self.new)

    def key(self, root: Path) -> str:
        """Return a hash of the mistake and of the file that it is in."""
        return _hash(self.old, self.new, self.file.as_posix(), (root / PACKAGE / self.file).read_text("utf-8"))

    def proof(self, root: Path, trial: Trial) -> str:
        """Return a hash of what a trial rests on: the test that caught the mistake, or else all of its tests."""
        if trial.outcome == "caught" and "::" in trial.by:
            return _hash(trial.by, _function(root, trial.by))
        return _hash(*self.tests, *(_text(root, file_of(test)) for test in self.tests))


@dataclass
class Trial:
    """What became of a mistake: `outcome` is caught, hung (caught, too) or survived; `by` is the test that failed.

    proof: see `Mistake.proof`.
    """

    key: str
    title: str
    outcome: str
    by: str = ""
    seconds: float = 0.0
    proof: str = ""


def main(words: list[str] | None = None) -> int:
    """Plant the mistakes that the command line asks for; return 1 if too many survive, else 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mutants", description=QUESTION)
    parser.add_argument("areas", nargs="*", metavar="area=NAME,...", help="only these lists (default: all)")
    parser.add_argument("--jobs", type=int, default=1, help="mistakes at a time (default 1)")
    parser.add_argument("--only", default="", metavar="TEXT", help="only those whose file or lines hold this text")
    parser.add_argument("--first", type=int, metavar="N", help="only the first N in the order of the seed")
    parser.add_argument("--seed", type=int, default=0, help="of the order (default 0)")
    parser.add_argument("--fresh", action="store_true", help="forget what was found before")
    parser.add_argument("--found", type=Path, default=ROOT / ".mutants.jsonl", help="file of what was found")
    parser.add_argument("--out", type=Path, help="also write the result into this Markdown file")
    given = parser.parse_args(words)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what is running is ended too
    chosen = areas(given.areas, parser.error)
    mistakes = [mistake for area in chosen for mistake in read(LISTS / f"{area}.yaml") if given.only in mistake.title]
    random.Random(given.seed).shuffle(mistakes)
    if given.fresh:
        given.found.unlink(missing_ok=True)
    trials = Workshop(ROOT, given.found, given.jobs).run(mistakes[: given.first])
    return report(trials, given.out)


def areas(words: Sequence[str], refuse: Callable[[str], object]) -> list[str]:
    """Return the areas that `area=NAME,...` names, or all of them."""
    known = sorted(file.stem for file in LISTS.glob("*.yaml"))
    named = [name for word in words for name in word.removeprefix("area=").split(",")]
    if unknown := [name for name in named if name not in known]:
        refuse(f"no area '{unknown[0]}'; there are {', '.join(known)}")
    return named or known


def read(file: Path) -> list[Mistake]:
    """Return the mistakes of a list: groups that share `file` and `tests`, which a mistake of theirs may replace."""
    return [
        Mistake(file.stem, Path(one.get("file", group.get("file"))), one["old"], one["new"],
                tuple(one.get("tests", group.get("tests"))), one.get("why", ""))
        for group in yaml.safe_load(file.read_text("utf-8")) for one in group["mistakes"]
    ]


@dataclass
class Job:
    """A process that runs tests in a scratch copy. deadline: of the clock, by which it must have ended."""

    copy: Path
    tests: tuple[str, ...]
    begun: float
    deadline: float
    pid: int
    done: Callable[[Trial], object]
    trial: Trial


@dataclass
class Workshop:
    """Runs the tests of mistakes, `jobs` at a time, and keeps what it finds in the file `found`.

    libraries: imported once, before the processes are forked.
    """

    root: Path
    found: Path
    jobs: int = 1
    libraries: Sequence[str] = LIBRARIES
    limit: float = LIMIT
    say: Callable[[str], object] = print
    known: dict[str, Trial] = field(default_factory=dict)

    def run(self, mistakes: Sequence[Mistake]) -> list[tuple[Mistake, Trial]]:
        """Plant every mistake whose trial is not known yet and return all trials.

        Raises ValueError for a mistake that does not fit its file, and if a test that caught one fails without it too.
        """
        keys = {mistake: mistake.key(self.root) for mistake in mistakes if mistake.planted(self.root)}
        self.known = {trial.key: trial for trial in self._kept()}
        left = [mistake for mistake in mistakes if not self._stands(mistake, self.known.get(keys[mistake]))]
        self.say(f"{len(mistakes)} mistakes, {len(mistakes) - len(left)} of them tried before")
        unproved = self._unproved([(mistake, self.known[keys[mistake]]) for mistake in mistakes if mistake not in left])
        if left or unproved:
            for library in self.libraries:
                with suppress(ImportError):
                    import_module(library)
            with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
                copies = [Path(folder) / str(number) for number in range(self.jobs)]
                for copy in copies:
                    copy_of(self.root, copy)
                self._try_all(left, keys, copies)
                self._prove(self._unproved([(mistake, self.known[keys[mistake]]) for mistake in mistakes]), copies[0])
        return [(mistake, self.known[keys[mistake]]) for mistake in mistakes]

    def _stands(self, mistake: Mistake, trial: Trial | None) -> bool:
        return trial is not None and trial.proof == mistake.proof(self.root, trial)

    def _try_all(self, mistakes: list[Mistake], keys: dict[Mistake, str], copies: list[Path]) -> None:
        stamps = iter(range(1, len(mistakes) + 1))  # a file's time, by which Python tells whether to compile it again
        waiting, free, running = list(mistakes), list(copies), list[Job]()
        try:
            while waiting or running:
                while waiting and free:
                    running.append(self._start(waiting.pop(0), keys, free.pop(), next(stamps)))
                time.sleep(0.02)
                for job in [job for job in running if self._has_ended(job)]:
                    running.remove(job)
                    free.append(job.copy)
        finally:
            for job in running:
                end(job.pid)

    def _start(self, mistake: Mistake, keys: dict[Mistake, str], copy: Path, stamp: int) -> Job:
        place = copy / PACKAGE / mistake.file
        sound, before = place.read_text("utf-8"), place.stat()
        place.write_text(mistake.planted(self.root), "utf-8")
        os.utime(place, (stamp, stamp))

        def done(trial: Trial) -> None:
            place.write_text(sound, "utf-8")
            os.utime(place, ns=(before.st_atime_ns, before.st_mtime_ns))
            trial.proof = mistake.proof(copy, trial)
            self._keep(trial)
            about = f"by {trial.by}" if trial.by else ""
            self.say(f"{trial.outcome:8} {trial.seconds:5.1f} s  {mistake.area}  {mistake.title}  {about}")

        return self._fork(copy, mistake.tests, self.limit, Trial(keys[mistake], mistake.title, "survived"), done)

    def _unproved(self, trials: Sequence[tuple[Mistake, Trial]]) -> dict[str, str]:
        """Return the tests that caught a mistake and were not yet seen to pass without any, by key of their trial."""
        tests = {test for mistake, trial in trials if trial.outcome == "caught"
                 for test in ([trial.by.removesuffix(_IMPORT)] if _is_test(trial.by) else mistake.tests)}
        keys = {f"sound-{_hash(test, _function(self.root, test))}": test for test in sorted(tests)}
        return {key: test for key, test in keys.items() if key not in self.known}

    def _prove(self, tests: dict[str, str], copy: Path) -> None:
        """Run tests without a mistake. Raises ValueError if one fails."""
        if not tests:
            return
        self.say(f"{len(tests)} tests that caught a mistake are run without any")
        job = self._fork(copy, tuple(tests.values()), 3600.0, Trial("", "no mistake", "survived"), lambda trial: None)
        while not self._has_ended(job):
            time.sleep(0.02)
        if job.trial.outcome != "survived":
            raise ValueError(f"tests fail where nothing is wrong: {job.trial.by or 'their time is over'}")
        for key, test in tests.items():
            self._keep(Trial(key, f"no mistake: {test}", "survived"))

    def _fork(self, copy: Path, tests: tuple[str, ...], limit: float, trial: Trial, done: Callable[[Trial], object],
              ) -> Job:
        shutil.rmtree(copy / ".tmp", ignore_errors=True)
        (copy / ".tmp").mkdir()
        sys.stdout.flush()
        if (pid := os.fork()) == 0:
            run_tests(copy, tests)
        begun = time.monotonic()
        return Job(copy, tests, begun, begun + limit, pid, done, trial)

    def _has_ended(self, job: Job) -> bool:
        pid, status = os.waitpid(job.pid, os.WNOHANG)
        job.trial.seconds = round(time.monotonic() - job.begun, 2)
        if pid == 0:
            if time.monotonic() < job.deadline:
                return False
            end(job.pid)
            job.trial.outcome = "hung"
        else:
            end(job.pid, reap=False)  # what its tests have left running
            job.trial.outcome = "survived" if status == 0 else "caught"
            failed = job.copy / ".tmp" / "failed"
            job.trial.by = failed.read_text() if failed.exists() else "" if status == 0 else f"exit status {status}"
        job.done(job.trial)
        return True

    def _keep(self, trial: Trial) -> None:
        self.known[trial.key] = trial
        with open(self.found, "a", encoding="utf-8") as file:
            file.write(json.dumps(trial.__dict__) + "\n")

    def _kept(self) -> Iterator[Trial]:
        if self.found.exists():
            for line in self.found.read_text("utf-8").splitlines():
                with suppress(ValueError):  # cut off
                    yield Trial(**json.loads(line))


def copy_of(root: Path, target: Path) -> None:
    """Copy the project's files, as git knows them, or all of a folder that git does not know."""
    listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=root,
                            capture_output=True, text=True, check=False).stdout.split("\0")
    names = [name for name in listed if name] or [str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()]
    for name in names:
        if (root / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, target / name)


def run_tests(copy: Path, tests: Sequence[str]) -> None:
    """Run the tests in a scratch copy until one fails, and end this process: 0 if all passed, else 1."""
    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        silence = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(silence, descriptor)
        os.chdir(copy)
        temporary = copy / ".tmp"
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        sys.dont_write_bytecode = False  # else all is compiled again for every mistake
        os.environ.update(PYTHONPATH=str(copy / "ssl"), TMPDIR=str(temporary), XDG_CACHE_HOME=str(temporary / "cache"))
        tempfile.tempdir = None
        # the parent's own root must not be found before the copy
        sys.path[:] = [str(copy), *(p for p in sys.path if p and Path(p).resolve() not in (ROOT, ROOT / "ssl"))]
        import pytest

        options = ["-x", "-q", "-p", "no:cacheprovider", "--rootdir", str(copy)]
        places = [test if "::" in test else file_of(test) for test in tests]
        code = int(pytest.main([*options, *dict.fromkeys(places)], [_First(temporary), _Chosen(tests)]))
    except BaseException:
        (copy / ".tmp" / "failed").write_text(traceback.format_exc(limit=-1).splitlines()[-1])
    finally:
        os._exit(min(code, 1))


class _Chosen:
    """Leaves out the tests of a file that lack the words which are asked for."""

    def __init__(self, tests: Sequence[str]) -> None:
        self.words: dict[str, list[list[str]]] = {}
        for test in tests:
            if "::" not in test:
                words = test.partition(" ")[2].strip("()").split()
                self.words.setdefault(file_of(test), []).append(words)

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items[:] = [item for item in items if any(all(word in item.name for word in words)
                                                  for words in self.words.get(file_of(item.nodeid), [[]]))]


def _is_test(by: str) -> bool:
    return file_of(by).endswith(".py")


def _function(root: Path, test: str) -> str:
    """Return the text of a test function with its decorators, or that of the file where none is named."""
    text, name = _text(root, file_of(test)), test.partition("::")[2].partition("[")[0]
    for node in ast.walk(ast.parse(text)) if name else ():
        if isinstance(node, ast.FunctionDef) and node.name == name:
            first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
            return "\n".join(text.splitlines()[first - 1 : node.end_lineno])
    return text


def _text(root: Path, file: str) -> str:
    return (root / file).read_text("utf-8") if (root / file).is_file() else ""


def _hash(*texts: str) -> str:
    return blake2b(json.dumps(texts).encode(), digest_size=12).hexdigest()


def file_of(test: str) -> str:
    """Return the file of a test of a list."""
    return test.partition("::")[0].partition(" ")[0]


class _First:
    """Writes down which test failed first."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "failed"

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed and not self.file.exists():
            self.file.write_text(report.nodeid)

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed and not self.file.exists():
            self.file.write_text(f"{report.nodeid}{_IMPORT}")


def end(pid: int, reap: bool = True) -> None:
    """End a process of ours with all of its session."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    if reap:
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)


def report(trials: Sequence[tuple[Mistake, Trial]], out: Path | None) -> int:
    """Print how many were caught by area, and those that survive; return 1 if less than BAR % are caught, else 0."""
    areas = {area: [trial for mistake, trial in trials if mistake.area == area]
             for area in sorted({mistake.area for mistake, _ in trials})}
    every = [trial for _, trial in trials]
    rows = [_counts(area, mine) for area, mine in [*areas.items(), ("all", every)]]
    share = 100.0 * sum(trial.outcome != "survived" for trial in every) / max(1, len(every))
    page = measure.Report("mutants", "Small mistakes that the tests catch", QUESTION)
    page.table(["area", "planted", "caught", "survived", "seconds"], rows)
    hung = sum(trial.outcome == "hung" for trial in every)
    page.say(f"Caught: {share:.1f} %, {hung} of the mistakes by tests that hung. Bar "
             f"{measure.bar(share, at_least=BAR, unit=' %')}.")
    left = [[mistake.area, f"`{mistake.title}`", mistake.why or "no test notices"]
            for mistake, trial in trials if trial.outcome == "survived"]
    if left:
        page.table(["area", "survived", "why"], [[cell.replace("|", "\\|") for cell in row] for row in left])
    page.finish(out)
    return 0 if share >= BAR else 1


def _counts(area: str, trials: Sequence[Trial]) -> list[str]:
    caught, seconds = sum(trial.outcome != "survived" for trial in trials), sum(trial.seconds for trial in trials)
    return [area, str(len(trials)), str(caught), str(len(trials) - caught), f"{seconds:.0f}"]


def _one_line(text: str) -> str:
    return " ".join(text.split())


if __name__ == "__main__":
    sys.exit(main())
