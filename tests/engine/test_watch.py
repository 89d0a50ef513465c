"""A process that stands still, is killed or does not come is named, and the others end."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from processes import free_port

from unlabeled.engine import watch as module
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
    ("SIGSTOP", 0, "silent for 2 s"),  # of the process, or of the meeting place that it keeps
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
    assert said in line and line.endswith("; the same command goes on from update 7")


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


def test_the_thread_that_tells_has_ended_before_python_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = dist.FileStore(str(tmp_path / "store"), 1)
    monkeypatch.setattr(module, "meeting_place", lambda _: store)
    mine = Watch(600.0)
    mine.begin()
    assert mine._teller is not None and mine._teller.is_alive()
    mine._end()
    assert not mine._teller.is_alive()  # one that came back from the store later would abort the process
    assert store.get("watch/0").decode().startswith("ended")


def test_errors_that_are_no_lost_process_stay_errors() -> None:
    assert not Watch(0.1).explain(RuntimeError("shape mismatch"))


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> Watch:
    """What rank 0 of two knows, with looks every half second."""
    monkeypatch.setattr(module, "world", lambda: 2)
    monkeypatch.setattr(module, "rank", lambda: 0)
    monkeypatch.setattr(module, "_TELLING", 0.0)
    return Watch(patience=10.0)


def look(mine: Watch, times: int, told: Callable[[int], dict[int, str]], begun: int | None = None) -> tuple[list, str]:
    """Look so often, as the ranks tell it the n-th time; return who is lost."""
    for n in range(times):
        mine._told = told(n)
        mine.begun = n if begun is None else begun
        mine._count()
    return mine._lost()


def test_who_tells_something_new_at_every_look_is_not_lost_and_who_does_not_is_after_its_patience(two: Watch) -> None:
    assert look(two, 100, lambda n: {0: f"{n} {n} a", 1: f"{n} {n} b"}) == ([], "")
    assert look(two, 20, lambda n: {0: f"{100 + n} 7 a", 1: "99 7 b"}, 7) == ([], ""), "20 looks of half a second"
    lost, said = look(two, 1, lambda n: {0: "130 7 a", 1: "99 7 b"}, 7)
    assert lost == [1] and said == "silent for 10 s: stopped, killed or out of reach"
    assert look(two, 1, lambda n: {0: "131 7 a", 1: "100 7 b"}, 7) == ([], ""), "it was only slow"


def test_who_has_ended_is_not_silent(two: Watch) -> None:
    assert look(two, 100, lambda n: {0: f"{n} 9 a", 1: "ended 9 b"}, 9) == ([], "")


def test_who_does_not_come_to_an_update_is_lost_when_the_others_have_waited_there(two: Watch) -> None:
    assert look(two, 100, lambda n: {0: f"{n} {n} a", 1: f"{n} {n - 1} b"})[0] == [], "one behind, but they go on"
    lost, said = look(two, 21, lambda n: {0: f"{n} 99 a", 1: f"{n} 98 b"}, 99)
    assert lost == [1] and said == "has not come to the update in which the others have waited for 10 s"
    assert look(two, 50, lambda n: {0: f"{n} 99 a", 1: f"{n} 99 b"}, 99) == ([], ""), "a long update of all"


def test_who_is_stopped_is_called_silent_though_it_is_behind_for_as_long(two: Watch) -> None:
    look(two, 3, lambda n: {0: f"{n} 7 a", 1: f"{n} 6 b"}, 7)  # its last beats are heard after the wait has begun
    said = [look(two, 1, lambda _, n=n: {0: f"{9 + n} 7 a", 1: "2 6 b"}, 7)[1] for n in range(20)]
    assert said == [""] * 19 + ["silent for 10 s: stopped, killed or out of reach"]


@pytest.mark.parametrize(("mine", "lost", "checkpoint", "said"), [
    (0, [1], 7, "rank 1 on b: gone. End what is left of the run; the same command goes on from update 7\n"),
    (0, [1], 0, "rank 1 on b: gone. End what is left of the run; the same command goes on from the start\n"),
    (1, [0], 7, "rank 0 on a: gone. End what is left of the run; the same command goes on from update 7\n"),
    (1, [2], 7, ""),
])  # fmt: skip
def test_the_first_that_is_left_speaks(two: Watch, mine: int, lost: list[int], checkpoint: int, said: str,
                                       monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(module, "rank", lambda: mine)
    two._told, two.checkpoint = {0: "1 1 a", 1: "1 1 b"}, checkpoint
    two._say(lost, "gone")
    assert capsys.readouterr().err == said


def test_the_group_waits_longer_than_the_watch() -> None:
    assert module.group_timeout(60.0).total_seconds() == 1800
    assert module.group_timeout(5000.0).total_seconds() == 10_000
