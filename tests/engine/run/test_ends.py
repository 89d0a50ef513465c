"""How a run ends before its time: by signals, or for want of data. It is saved, and goes on to the same bits."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run_processes
from tiny import UPDATES, tiny_recipe

from unlabeled.data.stream import TrainStream
from unlabeled.engine import train as loop
from unlabeled.engine.run.signals import Signals
from unlabeled.engine.train import train
from unlabeled.errors import UserError

RECIPE = ("simclrv2", "plain")
REAL = TrainStream.updates


def ends_at(update: int, end: Callable[[Callable[[], None]], Any]) -> Callable[..., Iterator[Any]]:
    def updates(self: TrainStream, start: int, stop: int, waiting: Callable[[], None] = lambda: None) -> Iterator[Any]:
        for number, batch in enumerate(REAL(self, start, stop, waiting), start):
            if number == update:
                end(waiting)
            yield batch

    return updates


def no_data(waiting: Callable[[], None]) -> None:
    raise UserError("no data")


def signalled(number: int) -> Callable[[Callable[[], None]], None]:
    def end(waiting: Callable[[], None]) -> None:
        os.kill(os.getpid(), number)
        while True:  # a loader process that gives nothing any more
            waiting()

    return end


def weights(run: Path, update: int) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoints" / f"update-{update:08d}.pt", weights_only=True)["method"]


@pytest.fixture(autouse=True)
def _own_handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in Signals.watched}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored, and a run would wait for ever
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", Signals.watched)
def test_a_signal_ends_the_wait_for_data_and_the_run_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    recipe = tiny_recipe(*RECIPE)
    monkeypatch.setattr(TrainStream, "updates", ends_at(4, signalled(number)))
    result = train(recipe, tmp_path / "run")
    assert (result.update, result.finished) == (4, False)
    assert result.exit_code == (130 if number == signal.SIGINT else 0)
    assert (tmp_path / "run" / "REQUEUE").exists() == (number != signal.SIGINT)
    name = signal.Signals(number).name
    assert f"{name}: saved after update 4; the same command goes on from there" in capsys.readouterr().err
    os.kill(os.getpid(), number)  # a launcher passes on what the scheduler has sent already
    if number != signal.SIGHUP:
        return
    monkeypatch.undo()
    (tmp_path / "run" / "views.png").write_bytes(b"of the first update")
    metrics = tmp_path / "run" / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + '{"update": 4, "stale": 9.0}\n')  # killed after its checkpoint
    assert train(recipe, tmp_path / "run").finished and train(recipe, tmp_path / "whole").finished
    logged = [json.loads(line)["update"] for line in metrics.read_text().splitlines()]
    assert len(logged) == len(set(logged)) and logged[-1] == UPDATES - 1 and "stale" not in metrics.read_text()
    assert (tmp_path / "run" / "views.png").read_bytes() == b"of the first update"
    assert not (tmp_path / "run" / "REQUEUE").exists(), "or a finished run would be started for ever"
    whole = weights(tmp_path / "whole", UPDATES)
    assert all(torch.equal(x, whole[name]) for name, x in weights(tmp_path / "run", UPDATES).items())


def test_before_the_first_update_there_is_nothing_to_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(TrainStream, "updates", ends_at(0, signalled(signal.SIGTERM)))
    assert train(tiny_recipe(*RECIPE), tmp_path / "run").update == 0
    assert "SIGTERM: nothing was trained yet" in capsys.readouterr().err
    assert not list((tmp_path / "run").glob("checkpoints/*"))


def test_hup_that_nohup_ignores_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with Signals() as signals:
        os.kill(os.getpid(), signal.SIGHUP)
        assert not signals.received
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.received == signal.SIGTERM


@pytest.mark.parametrize(("error", "said"), [
    (UserError("no data"), r"^no data\nSaved after update 4; the same command goes on from there$"),
    (ZeroDivisionError("a fault"), "^a fault$"),
])  # fmt: skip
def test_a_run_without_data_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    def end(waiting: Callable[[], None]) -> None:
        raise error

    monkeypatch.setattr(TrainStream, "updates", ends_at(4, end))
    with pytest.raises(type(error), match=said):
        train(tiny_recipe(*RECIPE), tmp_path / "run")
    assert weights(tmp_path / "run", 4)


def _one_rank_without(rank: int, run: Path, end: str) -> str:
    torch.manual_seed(0)
    if rank == 1:
        TrainStream.updates = ends_at(3, no_data if end == "data" else signalled(signal.SIGTERM))  # type: ignore
    recipe = tiny_recipe(*RECIPE)
    try:
        said = str(train(recipe, run).exit_code)
    except UserError as error:
        said = str(error)
    TrainStream.updates = REAL  # type: ignore[method-assign]
    train(recipe, run)
    train(recipe, run.with_name("whole"))
    return said


@pytest.mark.parametrize(("end", "said"), [
    ("data", "no data\nSaved after update 3; the same command goes on from there"), ("signal", "0"),
])  # fmt: skip
def test_a_rank_without_data_does_not_hold_up_the_others(tmp_path: Path, end: str, said: str) -> None:
    assert run_processes(2, _one_rank_without, tmp_path / "run", end) == [said, said]
    assert weights(tmp_path / "run", 3)
    whole = weights(tmp_path / "whole", UPDATES)
    assert all(torch.equal(x, whole[name]) for name, x in weights(tmp_path / "run", UPDATES).items())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_after_the_last_update_keeps_the_run_from_going_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The exports are written, and what would be measured then is left to the same command."""
    real = loop.write_exports

    def write_exports(*arguments: Any) -> str:
        os.kill(os.getpid(), number)
        return real(*arguments)

    monkeypatch.setattr(loop, "write_exports", write_exports)
    result = train(tiny_recipe(*RECIPE), tmp_path / "run")
    assert (result.update, result.finished, result.exit_code) == (UPDATES, False, 130 if number == signal.SIGINT else 0)
    assert (tmp_path / "run" / "DONE").exists() and (tmp_path / "run" / "export" / "backbone.safetensors").exists()
    assert train(tiny_recipe(*RECIPE), tmp_path / "run").finished


def test_a_signal_that_another_process_heard_after_the_last_update_ends_this_one_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "max_over_ranks", lambda heard: heard.clamp_min(signal.SIGTERM))
    assert not train(tiny_recipe(*RECIPE), tmp_path / "run").finished
    assert (tmp_path / "run" / "REQUEUE").exists()
