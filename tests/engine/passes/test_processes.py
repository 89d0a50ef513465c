"""Passes of several processes and several jobs: each block once, all end together, no torn files."""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch
import torch.multiprocessing as mp
from tests.engine.passes.toys import contents, sums, toy_pass
from tests.evaluation.fakes import Noise
from tests.processes import run_processes

from unlabeled.config.passes.shared import Part
from unlabeled.data.batch import Batch
from unlabeled.errors import UserError

SLOW = 0.05  # seconds


def shared(rank: int, out: Path, broken: tuple[int, ...]) -> tuple[int, list[int], int]:
    """Return how many blocks this process computed, which samples have no row, and how many rows there are."""
    begun: list[int] = []

    def compute(batch: Batch) -> dict[str, torch.Tensor]:
        begun.append(int(batch.index[0]) // 64)
        time.sleep(SLOW if rank == 0 else 3 * SLOW)  # a slow process leaves the others more
        return sums(batch)

    store = toy_pass(out, Noise(640, broken), max_corrupt=1, compute=compute)
    assert store is not None
    return len(set(begun)), sorted(store.unreadable), len(store)


def test_processes_share_the_blocks_and_give_the_bytes_of_one(tmp_path: Path) -> None:
    toy_pass(tmp_path / "one", Noise(640, (3, 300)), max_corrupt=1)
    (fast, *first), (slow, *second) = run_processes(2, shared, tmp_path / "two", (3, 300))
    assert fast + slow == 10 and fast > slow > 0
    assert first == second == [[3, 300], 640]
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def failing(rank: int, out: Path, user_error: bool) -> tuple[str, int]:
    """The process that comes to sample 64 fails; the other one must not go on to the end."""
    batches = 0

    def compute(batch: Batch) -> dict[str, torch.Tensor]:
        nonlocal batches
        batches += 1
        if int(batch.index[0]) == 64:
            raise UserError("the network is tired") if user_error else RuntimeError("no memory")
        time.sleep(SLOW)
        return sums(batch)

    try:
        toy_pass(out, Noise(1280), compute=compute)
    except Exception as error:
        return f"{type(error).__name__}: {error}", batches
    return "nothing", batches


def test_a_process_that_fails_ends_all_with_its_message(tmp_path: Path) -> None:
    results = run_processes(2, failing, tmp_path, True)
    assert [words for words, _ in results] == ["UserError: the network is tired"] * 2
    assert sum(batches for _, batches in results) < 40  # of 80
    assert toy_pass(tmp_path, Noise(1280)) is not None
    results = run_processes(2, failing, tmp_path / "fault", False)
    assert sorted(words for words, _ in results) == [
        "RuntimeError: no memory", "UserError: another process could not do its part; it says why"]


def refused(rank: int, out: Path) -> str:
    try:
        toy_pass(out, about={"teacher": "products"})
    except UserError as error:
        return str(error)
    return "nothing"


def test_all_processes_refuse_the_folder_of_another_pass(tmp_path: Path) -> None:
    toy_pass(tmp_path)
    first, second = run_processes(2, refused, tmp_path)
    assert first == second and "teacher sums there, products now" in first


def _job(number: int, out: Path, parts: list[Part]) -> None:
    def compute(batch: Batch) -> dict[str, torch.Tensor]:
        time.sleep(0.002)
        return sums(batch)

    torch.set_num_threads(1)
    toy_pass(out, Noise(640), part=parts[number], compute=compute)
    os._exit(0)  # nothing of pytest's


def test_jobs_at_once_on_one_folder(tmp_path: Path) -> None:
    toy_pass(tmp_path / "one", Noise(640))
    parts = [Part(1, 2), Part(2, 2), Part(1, 2), Part()]  # two have the same, one has everything
    mp.start_processes(_job, (tmp_path / "jobs", parts), nprocs=len(parts), start_method="forkserver")
    assert toy_pass(tmp_path / "jobs", Noise(640)) is not None
    assert contents(tmp_path / "jobs") == contents(tmp_path / "one")
    assert sorted(path.name for path in (tmp_path / "jobs").iterdir()) == sorted(contents(tmp_path / "one"))
