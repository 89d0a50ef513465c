"""Loader processes: order, mistakes of the user, and processes that are stuck, stopped, killed or lack something."""

from __future__ import annotations

import errno
import itertools
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from unlabeled.data import parcel, workers
from unlabeled.data.loader import batches
from unlabeled.data.sources.base import CorruptSample
from unlabeled.data.sources.folder import FolderSource
from unlabeled.errors import UserError

Trouble = Callable[[], Any]


def hang() -> None:
    time.sleep(600)


def stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def leave() -> None:
    os._exit(3)


def no_descriptors() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
    Path("/dev/null").read_bytes()


def no_memory() -> None:
    raise MemoryError


def user() -> None:
    raise UserError("seven")


def fault() -> None:
    raise ZeroDivisionError("a fault of the code")


class Squares:
    """Squares numbers, but has `trouble` at 3: the first time, whose process it writes into a file, or every time."""

    def __init__(self, trouble: Trouble, file: Path, every_time: bool = False) -> None:
        self.trouble, self.file, self.every_time = trouble, file, every_time

    def make(self, unit: int) -> tuple[int, int]:
        if unit == 3 and (self.every_time or not self.file.exists()):
            self.file.write_text(str(os.getpid()))
            self.trouble()
        return unit * unit, os.getpid()


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_STOPPED", 0.4)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(("trouble", "said"), [
    (hang, "gave nothing for 1 s; is the file system slow"),
    (stop, "is stopped"),
    (killed, r"was killed \(SIGKILL\), out of memory perhaps"),
    (leave, "exit code 3"),
    (no_descriptors, r"Too many open files \(/dev/null\); raise the limit"),
    (no_memory, "Cannot allocate memory"),
])  # fmt: skip
def test_a_process_in_trouble_is_replaced_and_nothing_is_lost(
    tmp_path: Path, trouble: Trouble, said: str, count: int
) -> None:
    maker = Squares(trouble, tmp_path / "troubled")
    with pytest.warns(UserWarning, match=said + ".*is started anew"):
        made = list(batches(maker, iter(range(9)), count, patience=1))
    assert [square for square, _ in made] == [n * n for n in range(9)]
    troubled = int(maker.file.read_text())
    assert troubled not in [pid for _, pid in made[3:]]
    with pytest.raises(ProcessLookupError):
        os.kill(troubled, 0)


class Often:
    """Ends at 3 and at 7, where the process that takes its place does it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def make(self, unit: int) -> int:
        mark = self.folder / f"at-{unit}"
        if unit in (3, 7) and not mark.exists():
            mark.touch()
            leave()
        return unit * unit


@pytest.mark.filterwarnings("ignore:.*is started anew")
def test_a_process_is_replaced_as_often_as_the_new_one_delivers(tmp_path: Path) -> None:
    assert list(batches(Often(tmp_path), range(9), 1, patience=9)) == [n * n for n in range(9)]
    assert len(list(tmp_path.iterdir())) == 2


class Slow:
    def make(self, unit: int) -> int:
        time.sleep(0.3)
        return unit


def test_without_patience_nobody_is_given_up(recwarn: pytest.WarningsRecorder) -> None:
    assert list(batches(Slow(), range(2), 1, patience=0)) == [0, 1] and not recwarn.list


@pytest.mark.filterwarnings("ignore:.*is started anew")
@pytest.mark.parametrize(("trouble", "said"), [
    (hang, "gave nothing for 1 s"), (stop, "is stopped"), (killed, "was killed"), (no_descriptors, "Too many open"),
])  # fmt: skip
def test_what_a_new_process_does_not_cure_is_an_error_in_one_line(tmp_path: Path, trouble: Trouble, said: str) -> None:
    made = batches(Squares(trouble, tmp_path / "troubled", every_time=True), range(9), 2, patience=1)
    assert [next(made)[0] for _ in range(3)] == [0, 1, 4]
    with pytest.raises(UserError, match=f"{said}.*A loader process started anew did no better") as raised:
        next(made)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("trouble", "error", "said"), [
    (user, UserError, "^seven$"), (fault, RuntimeError, r"(?s)loader process.*in fault.*ZeroDivisionError: a fault"),
])  # fmt: skip
def test_mistakes_and_faults_arrive_at_once(tmp_path: Path, trouble: Trouble, error: type, said: str) -> None:
    made = batches(Squares(trouble, tmp_path / "troubled", every_time=True), range(9), 2)
    assert [next(made)[0] for _ in range(3)] == [0, 1, 4]
    with pytest.raises(error, match=said):
        next(made)


@pytest.mark.parametrize(("trouble", "error", "said"), [
    (user, UserError, "^seven$"), (fault, ZeroDivisionError, "^a fault"),
    (no_memory, UserError, "Cannot allocate memory; lower"),
])  # fmt: skip
def test_errors_without_loader_processes(tmp_path: Path, trouble: Trouble, error: type, said: str) -> None:
    with pytest.raises(error, match=said):
        list(batches(Squares(trouble, tmp_path / "troubled"), range(9), 0))


class Pinned:
    def __init__(self, value: int) -> None:
        self.value, self.pinned = value, False

    def pin_memory(self) -> Pinned:
        self.pinned = True
        return self


class Pinnable:
    def make(self, unit: int) -> Pinned:
        if unit == 9:
            raise UserError("nine")
        return Pinned(unit)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_batches_are_pinned_in_order_and_errors_come_after_what_was_made(
    monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    made = list(batches(Pinnable(), range(8), count, pin_memory=True))
    assert [batch.value for batch in made] == list(range(8)) and all(batch.pinned for batch in made)
    seen = []
    with pytest.raises(UserError, match="nine"):
        for batch in batches(Pinnable(), range(12), count, pin_memory=True):
            seen.append(batch.value)
            time.sleep(0.02)  # the error is there before its turn
    assert seen == list(range(9))


def test_waiting_can_be_ended_and_leaves_no_process(tmp_path: Path) -> None:
    maker = Squares(stop, tmp_path / "troubled")
    asked = itertools.count()

    def waiting() -> None:
        if next(asked):
            raise InterruptedError

    made, begin = batches(maker, range(9), 2, waiting=waiting), time.monotonic()
    with pytest.raises(InterruptedError):
        list(made)
    assert time.monotonic() - begin < 4
    with pytest.raises(ProcessLookupError):
        os.kill(int(maker.file.read_text()), 0)


def test_loader_processes_end_with_the_training_process(tmp_path: Path) -> None:
    code = (
        "import os, pathlib; from test_loader import Squares, killed; from unlabeled.data.loader import batches; "
        "made = batches(Squares(killed, pathlib.Path(os.devnull)), range(99), 2); "
        "print(*sorted({pid for _, pid in (next(made) for _ in range(8))}), flush=True); os.kill(os.getpid(), 9)"
    )
    path = os.pathsep.join(["ssl", "tests/data"])
    out = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.PIPE)
    found, until = [int(pid) for pid in out.stdout.split()], time.monotonic() + 5
    assert found and out.returncode == -signal.SIGKILL

    def running(pid: int) -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except OSError:
            return False

    while any(map(running, found)):
        assert time.monotonic() < until
        time.sleep(0.02)


def everything() -> Iterator[Any]:
    yield torch.arange(24, dtype=torch.float32).reshape(2, 3, 4).permute(2, 0, 1)
    yield torch.rand(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    yield torch.zeros(0, 3)
    yield torch.tensor(7)
    yield torch.arange(20)[3:9:2]
    yield torch.ones(1, 3).expand(4, 3)
    yield torch.randint(0, 255, (300, 1000), dtype=torch.uint8)
    yield np.array([True, False])
    yield {"names": ["a" * 100] * 1000, "none": None, "array": np.arange(5.0)}
    yield "x" * 100_000


class Given:
    def make(self, unit: int) -> Any:
        torch.manual_seed(0)
        return list(everything())[unit]


def test_what_is_sent_arrives_with_its_strides(tmp_path: Path) -> None:
    torch.manual_seed(0)
    for sent, got in zip(everything(), batches(Given(), range(10), 2), strict=True):
        if isinstance(sent, torch.Tensor):
            torch.manual_seed(0)
            assert got.dtype == sent.dtype and got.stride() == sent.stride()
        elif isinstance(sent, np.ndarray):
            assert np.array_equal(sent, got)
        elif isinstance(sent, dict):
            assert sent["names"] == got["names"] and np.array_equal(sent["array"], got["array"])
        else:
            assert sent == got
    for value in (torch.arange(24).reshape(2, 3, 4).permute(2, 0, 1), torch.arange(20)[3:9:2], torch.tensor(7)):
        here, there = parcel.link()
        parcel.send(here, value)
        assert torch.equal(parcel.receive(there), value)


def test_a_link_tells_its_end_and_nothing_arrives_in_part() -> None:
    here, there = parcel.link()
    parcel.send(here, list(range(10)))
    here.close()
    assert parcel.receive(there) == list(range(10))
    with pytest.raises(EOFError):
        parcel.receive(there)
    with pytest.raises(ConnectionError):
        parcel.send(there, 1)


def test_what_the_system_lacks_is_no_corrupt_sample(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "folder.png").mkdir()
    source = FolderSource("name", "split", tmp_path, ["a.png", "folder.png", "missing.png", "x" * 300])
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        with pytest.raises(OSError, match="Too many open files") as raised:
            source.image(0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert raised.value.errno == errno.EMFILE
    assert source.image(0).shape == (4, 4, 3)
    for index in (1, 2, 3):
        with pytest.raises(CorruptSample):
            source.image(index)


