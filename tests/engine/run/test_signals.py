"""Signals are remembered, the first of them counts, and handlers are given back where nobody asked for an end."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from unlabeled.cli.main import main
from unlabeled.engine.run.signals import REQUEUE, Interrupted, Signals, ask_for_requeue


@pytest.fixture(autouse=True)
def handlers() -> Iterator[dict[int, object]]:
    before = {number: signal.getsignal(number) for number in Signals.watched}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # these tests may run under nohup themselves
    yield before
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_every_signal_of_a_scheduler_or_terminal_is_remembered(number: int) -> None:
    with Signals() as signals:
        signals.check()
        os.kill(os.getpid(), number)
        assert signals.received == number
        with pytest.raises(Interrupted):
            signals.check()


def test_the_first_one_counts_and_later_ones_change_nothing_also_at_the_end(handlers: dict[int, object]) -> None:
    with Signals() as signals:
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        assert signals.received == signal.SIGUSR1
    os.kill(os.getpid(), signal.SIGTERM)  # while the process ends
    assert signals.received == signal.SIGUSR1


def test_handlers_are_given_back_and_an_ignored_hup_stays_ignored(handlers: dict[int, object]) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with Signals() as signals:
        os.kill(os.getpid(), signal.SIGHUP)
        assert signals.received == 0 and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) != handlers[signal.SIGTERM]
    assert all(signal.getsignal(number) == handlers[number] for number in (signal.SIGINT, signal.SIGTERM))


def test_a_job_script_is_told_by_a_file_where_it_asks_for_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(REQUEUE, raising=False)
    ask_for_requeue()
    monkeypatch.setenv(REQUEUE, str(tmp_path / "requeue"))
    ask_for_requeue()
    assert [path.name for path in tmp_path.iterdir()] == ["requeue"]


def test_usr1_that_a_script_ignores_for_its_launcher_is_heard_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else one that comes while nothing is trained, during an evaluation perhaps, would be lost."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    monkeypatch.delenv(REQUEUE, raising=False)
    main(["recipes"])
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
    monkeypatch.setenv(REQUEUE, str(tmp_path / "requeue"))
    main(["recipes"])
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
