"""A process that stands still, is killed or does not come is named, and the others end."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from processes import free_port

from unlabeled.engine.watch import Watch, watch

PATIENCE = 2.0


def _work(number: int, port: int, folder: Path, trouble: str, victim: int) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(number), WORLD_SIZE="2")
    sys.stderr = open(folder / f"stderr{number}", "w", buffering=1)  # noqa: SIM115
    dist.init_process_group("gloo")
    mine = watch(PATIENCE)
    mine.checkpoint = 7
    try:
        while True:
            mine.begun += 1
            dist.all_reduce(torch.ones(3))
            time.sleep(0.05)
            if mine.begun == 20 and number == victim:
                if trouble == "stand":
                    time.sleep(60)
                os.kill(os.getpid(), getattr(signal, trouble))
    except RuntimeError as error:
        os._exit(1 if mine.explain(error) else 9)


@pytest.mark.parametrize(("trouble", "victim", "said"), [
    ("SIGSTOP", 1, "silent for 2 s: stopped, killed or out of reach"),
    ("SIGSTOP", 0, "the processes' meeting place at 127.0.0.1:.* has been silent for 2 s"),
    ("SIGKILL", 1, "ended, or cannot be reached"),
    ("SIGKILL", 0, "ended, or cannot be reached"),
    ("stand", 1, "has not come to the update in which the others have waited for 2 s"),
])  # fmt: skip
def test_a_rank_that_is_lost_is_named(tmp_path: Path, trouble: str, victim: int, said: str) -> None:
    port, context = free_port(), mp.get_context("forkserver")
    ranks = [context.Process(target=_work, args=(n, port, tmp_path, trouble, victim)) for n in range(2)]
    for process in ranks:
        process.start()
    survivor = ranks[1 - victim]
    survivor.join(60)
    ranks[victim].kill()
    assert survivor.exitcode == 1
    (line,) = [line for line in (tmp_path / f"stderr{1 - victim}").read_text().splitlines() if line.startswith("rank ")]
    assert line.startswith(f"rank {victim} on {os.uname().nodename}: ")
    assert said.split(".*")[0] in line and line.endswith("; the same command goes on from update 7")


def test_time_in_which_all_are_stopped_is_no_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = Watch(patience=10.0)
    alone._told = {0: "1 1 here"}
    for _ in range(5):
        alone._count()  # one look each, however much time has passed on the clock
        monkeypatch.setattr(time, "monotonic", lambda: 1e9)
    assert alone._lost() == ([], "")
    for _ in range(40):
        alone._count()
    assert alone._lost()[0] == [0]


def test_errors_that_are_no_lost_process_stay_errors() -> None:
    assert not Watch(0.1).explain(RuntimeError("shape mismatch"))
