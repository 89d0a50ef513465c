"""`unlabeled features` killed at random moments, in one and two processes and split over jobs: the same files."""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from tests.processes import free_port

from unlabeled.cli.main import main

KILLS = 10


def command(arguments: list[str], rank: int, world: int, port: int) -> None:
    """Run the command line in a process of its own, one of `world`."""
    if world > 1:
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank)}
        os.environ.update(address, WORLD_SIZE=str(world), ACCELERATE_USE_CPU="true")
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    raise SystemExit(main(arguments))


def start(arguments: list[str], world: int = 1) -> list[BaseProcess]:
    context, port = multiprocessing.get_context("forkserver"), free_port()
    crew = [context.Process(target=command, args=(arguments, rank, world, port)) for rank in range(world)]
    for process in crew:
        process.start()
    return crew


def kill(crew: list[BaseProcess]) -> None:
    for process in crew:
        process.kill()
        process.join()


def end(crew: list[BaseProcess]) -> None:
    for process in crew:
        process.join()
        assert process.exitcode == 0


def blocks(rows: Path) -> int:
    return len(list(rows.glob("rows-*")))


def wait(until: Callable[[], bool], crew: list[BaseProcess]) -> None:
    end_of_patience = time.monotonic() + 120
    while not until() and all(process.is_alive() for process in crew):
        assert time.monotonic() < end_of_patience
        time.sleep(0.001)


@pytest.fixture(scope="module")
def arguments(finished: Path) -> list[str]:
    return ["features", str(finished), "digits", "workers=0", "precision=fp32", "batch=4"]  # 21 blocks


@pytest.fixture(scope="module")
def expected(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a pass that nobody disturbed."""
    out = tmp_path_factory.mktemp("expected") / "x.npy"
    end(start([*arguments, f"out={out}"]))
    return files(out.parent)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("world", [1, 2])
def test_ten_kills_leave_no_trace(
        world: int, arguments: list[str], expected: dict[str, bytes], tmp_path: Path) -> None:
    draw, rows, seen = random.Random(world), tmp_path / "x.rows", []
    for _ in range(KILLS):
        before = blocks(rows)
        crew = start([*arguments, f"out={tmp_path / 'x.npy'}"], world)
        more = draw.choice([0, 1, 1, 1, 2])
        wait(lambda: blocks(rows) >= before + more, crew)  # noqa: B023
        time.sleep(draw.random() * 0.03)
        kill(crew)
        seen.append(blocks(rows))
    assert seen == sorted(seen) and len(set(seen)) > 3  # nothing was lost, and kills came at several moments
    end(start([*arguments, f"out={tmp_path / 'x.npy'}"], world))
    assert files(tmp_path) == expected


def test_two_jobs_and_kills_of_both(arguments: list[str], expected: dict[str, bytes], tmp_path: Path) -> None:
    draw, rows = random.Random(3), tmp_path / "x.rows"
    for number in (2, 1, 2):
        crew = start([*arguments, f"out={tmp_path / 'x.npy'}", f"part={number}/2"])
        before = blocks(rows)
        wait(lambda: blocks(rows) > before + 1, crew)  # noqa: B023
        time.sleep(draw.random() * 0.02)
        kill(crew)
    both = [start([*arguments, f"out={tmp_path / 'x.npy'}", f"part={number}/2"]) for number in (1, 2)]
    for crew in both:
        end(crew)
    assert files(tmp_path) == expected


def test_the_files_are_what_other_programs_read(
        arguments: list[str], expected: dict[str, bytes], tmp_path: Path) -> None:
    end(start([*arguments, f"out={tmp_path / 'x.safetensors'}"]))
    (tmp_path / "y.npy").write_bytes(expected["x.npy"])
    x = np.load(tmp_path / "y.npy")
    np.testing.assert_array_equal(load_file(tmp_path / "x.safetensors")["features"], x)
    np.save(tmp_path / "z.npy", x)
    assert (tmp_path / "z.npy").read_bytes() == expected["x.npy"]
    assert len(x) == len(expected["x.txt"].splitlines()) == 1297
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.safetensors", "x.txt", "y.npy", "z.npy"]
