"""Functions in several processes joined by gloo on loopback, and a process that holds a lock."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import pickle
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

# children are forked, one set per call so that no state leaks between calls, from a server that has imported everything
# and holds no threads: fast, and safe unlike a fork of pytest
mp.get_context("forkserver").set_forkserver_preload(["tests.warm"])

HANG = 300  # seconds after which a child says where it stands, and ends


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def run_processes(count: int, work: Callable[..., Any], *args: Any) -> list[Any]:
    """Call work(rank, *args) in `count` processes of one gloo group and return the results in rank order."""
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(_join, (count, free_port(), folder, work, args), nprocs=count, start_method="forkserver")
        # files, since a pipe that nobody reads before the processes have ended holds 64 kB
        return [pickle.loads((Path(folder) / str(rank)).read_bytes()) for rank in range(count)]


def _join(rank: int, count: int, port: int, folder: str, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    faulthandler.dump_traceback_later(HANG, exit=True)
    torch.set_num_threads(1)
    # what a launcher sets: Accelerate joins the group instead of running alone, on one thread
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ.update(address, WORLD_SIZE=str(count), ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1")
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=count)
    (Path(folder) / str(rank)).write_bytes(pickle.dumps(work(rank, *args)))
    dist.barrier()
    dist.destroy_process_group()


@contextlib.contextmanager
def lock_held_by_another(folder: Path) -> Iterator[int]:
    """Hold the lock of a run's folder in a process of its own, and give its number."""
    code = (
        "import sys, pathlib, time; from unlabeled.engine.run.lock import RunLock; "
        "RunLock(pathlib.Path(sys.argv[1])).take(); print('held', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE,
                          env={**os.environ, "PYTHONPATH": "ssl"}) as holder:
        try:
            assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
            yield holder.pid
        finally:
            holder.kill()
