"""Files are written whole or not at all, and what killed processes left goes."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import BinaryIO

import pytest

from unlabeled.errors import UserError
from unlabeled.ops.machine import files
from unlabeled.ops.machine.files import refuse_unwritable, sweep, temporary, write_atomically


def test_a_write_that_is_killed_leaves_the_old_file_and_the_next_write_clears_the_rest(tmp_path: Path) -> None:
    code = (
        "import sys, os, pathlib; from unlabeled.ops.machine.files import write_atomically; "
        "write_atomically(pathlib.Path(sys.argv[1]), lambda file: (file.write(b'half'), os.kill(os.getpid(), 9)))"
    )
    path = tmp_path / "new" / "model.pt"
    write_atomically(path, lambda file: file.write(b"whole"))
    for _ in range(3):
        subprocess.run([sys.executable, "-c", code, str(path)], env={**os.environ, "PYTHONPATH": "ssl"}, check=False)
    assert path.read_bytes() == b"whole" and len(list(path.parent.iterdir())) == 4
    write_atomically(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new" and list(path.parent.iterdir()) == [path]


def test_other_machines_files_stay_for_a_day_unless_the_folder_is_ones_own(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(files, "_machine", lambda: "01234567")
    theirs = temporary(tmp_path / "x.json")
    theirs.write_bytes(b"")
    monkeypatch.undo()
    sweep(tmp_path)
    assert theirs.exists()
    os.utime(theirs, (time.time() - 100_000,) * 2)
    sweep(tmp_path)
    assert not theirs.exists()
    theirs.write_bytes(b"")
    sweep(tmp_path, owned=True)
    assert not theirs.exists()
    mine = temporary(tmp_path / "x.json")
    mine.write_bytes(b"")
    sweep(tmp_path, owned=True)
    assert mine.exists(), "this process may write in another thread"


def test_long_names_still_have_room(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 220)
    write_atomically(path, lambda file: file.write(b"x"))
    assert path.read_bytes() == b"x"


def test_a_place_that_takes_nothing_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for write in (
        lambda path: write_atomically(path, lambda file: file.write(b"")),
        lambda path: refuse_unwritable(path, "name another"),
    ):
        with pytest.raises(UserError, match=r"cannot write .*file/x: (File exists|Not a directory)"):
            write(tmp_path / "file" / "x")
    with pytest.raises(UserError, match="cannot write"):
        refuse_unwritable(Path("/proc/none/x"), "name another")


def test_a_write_that_fails_leaves_the_old_file_alone(tmp_path: Path) -> None:
    def full(file: BinaryIO) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "model.pt"
    write_atomically(path, lambda file: file.write(b"whole"))
    with pytest.raises(UserError, match="the disk is full"):
        write_atomically(path, full)
    assert path.read_bytes() == b"whole" and list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="told from /proc")
def test_a_process_that_has_ended_unnoticed_does_not_live(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        left = tmp_path / f".x.json.{files._machine()}-{process.pid}.tmp"
        left.write_bytes(b"")
        sweep(tmp_path)
        assert left.exists()
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # its parent does not fetch it
        sweep(tmp_path)
        assert not left.exists()
