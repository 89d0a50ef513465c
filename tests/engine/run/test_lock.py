"""One start at a time in a run's folder, also while another sets it aside, and locks that cannot be had."""

from __future__ import annotations

import errno
import fcntl
import itertools
import json
import os
import socket
import time
from pathlib import Path

import pytest
import torch.multiprocessing as mp
from processes import lock_held_by_another
from tiny import tiny_recipe

from unlabeled.engine.run import lock as run_lock
from unlabeled.engine.run.folder import RunFolder
from unlabeled.engine.run.lock import RunLock
from unlabeled.errors import UserError


def _start_anew(run: Path, out: Path, number: int) -> None:
    folder = RunFolder(run)
    folder.open(tiny_recipe("simclrv2", "plain"), {"info": {}}, fresh=True)
    begin = time.monotonic()
    (run / "trainer").write_text(str(number))
    time.sleep(0.2)
    same = (run / "trainer").read_text() == str(number)  # nobody moved the folder of a live run away
    (out / str(number)).write_text(json.dumps([begin, time.monotonic(), same]))
    folder.lock.release()


def test_starts_with_fresh_come_one_after_the_other(tmp_path: Path) -> None:
    run, out, count = tmp_path / "runs" / "trial", tmp_path / "out", 4
    out.mkdir()
    run.mkdir(parents=True)
    (run / "trainer").write_text("first")
    starts = [mp.get_context("forkserver").Process(target=_start_anew, args=(run, out, n)) for n in range(count)]
    with lock_held_by_another(run):
        for start in starts:
            start.start()
        time.sleep(1.0)  # all of them wait
    for start in starts:
        start.join()
        assert start.exitcode == 0
    spans = sorted(json.loads((out / str(n)).read_text()) for n in range(count))
    assert all(same for _, _, same in spans)
    assert all(end <= begin for (_, end, _), (begin, _, _) in itertools.pairwise(spans)), "two at once"
    folders = [run, *run.parent.glob("trial.replaced-*")]
    assert sorted((f / "trainer").read_text() for f in folders) == [*map(str, range(count)), "first"]


def test_a_lock_that_was_moved_away_is_taken_where_it_belongs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, real, moved = tmp_path / "run", fcntl.lockf, []
    run.mkdir()

    def moves_first(*args: int) -> None:
        if not moved:
            moved.append(os.replace(run, tmp_path / "aside"))
        real(*args)

    monkeypatch.setattr(run_lock.fcntl, "lockf", moves_first)
    lock = RunLock(run)
    lock.take(patience=1, make=True)
    assert lock.held and lock.file.read_text().startswith(f"{os.getpid()} on ")
    monkeypatch.undo()
    moved.clear()
    monkeypatch.setattr(run_lock.fcntl, "lockf", moves_first)
    os.replace(tmp_path / "aside", tmp_path / "other")
    again = RunLock(run)
    again.take(patience=1)
    assert not again.held, "there is no folder to be locked"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT, errno.ENOTDIR])
@pytest.mark.parametrize("call", ["open", "pwrite"])
def test_a_lock_that_cannot_be_written_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, call: str
) -> None:
    def refuses(*args: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(run_lock.os, call, refuses)
    full = number in (errno.ENOSPC, errno.EDQUOT)
    said = "the disk is full" if full else os.strerror(number)
    with pytest.raises(UserError, match=f"cannot write .*lock: {said}"):
        RunLock(tmp_path / "run").take(patience=1, make=True)


def test_a_lock_of_another_form_is_still_a_lock(tmp_path: Path) -> None:
    with lock_held_by_another(tmp_path):
        for content in (b"\xff\xfe\x00bin", b"", b"x" * 10_000):
            (tmp_path / "lock").write_bytes(content)
            with pytest.raises(UserError, match="is being trained by process"):
                RunLock(tmp_path).take(patience=0)
    lock = RunLock(tmp_path)
    lock.take(patience=1)
    assert lock.file.read_text() == f"{os.getpid()} on {socket.gethostname()}\n", "nothing of another's is left"
    lock.release()


def test_what_is_no_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "run" / "lock").mkdir(parents=True)
    for run in (tmp_path / "file", tmp_path / "file" / "run", tmp_path / "run"):
        with pytest.raises(UserError, match="cannot write"):
            RunLock(run).take(patience=0.1, make=True)
