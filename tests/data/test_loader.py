"""Loader processes: order, mistakes of the user, and processes that are stuck."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from unlabeled.data.loader import batches
from unlabeled.errors import UserError


class Stuck:
    """Squares numbers, but hangs at 3 as long as the file is missing, which it writes before."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def make(self, unit: int) -> tuple[int, int]:
        if unit == 3 and not self.file.exists():
            self.file.write_text(str(os.getpid()))
            time.sleep(600)
        if unit == 7:
            raise UserError("seven")
        return unit * unit, os.getpid()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_stuck_process_is_replaced_and_nothing_is_lost(tmp_path: Path, workers: int) -> None:
    file = tmp_path / "stuck"
    with pytest.warns(UserWarning, match="gave nothing for 1 s and are started anew"):
        made = list(batches(Stuck(file), iter(range(7)), workers, patience=1))
    assert [square for square, _ in made] == [n * n for n in range(7)]
    stuck = int(file.read_text())
    assert stuck not in [pid for _, pid in made[3:]]
    with pytest.raises(ProcessLookupError):
        os.kill(stuck, 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_mistake_of_the_user_arrives_as_it_is(tmp_path: Path, workers: int) -> None:
    (tmp_path / "there").touch()
    made = batches(Stuck(tmp_path / "there"), range(9), workers)
    assert [next(made)[0] for _ in range(7)] == [n * n for n in range(7)]
    with pytest.raises(UserError, match="seven"):
        next(made)
