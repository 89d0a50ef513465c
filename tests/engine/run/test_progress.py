"""Progress: times as people say them, values with their update, and long passes that are told of."""

import pytest

from unlabeled.engine.run import progress
from unlabeled.engine.run.progress import LongPass, ProgressBar, duration

VALUES = {"loss": 1.23456, "lr": 0.1, "images_per_s": 321.0, "data_wait": 0.25}


@pytest.mark.parametrize("seconds, said", [
    (0, "0 s"), (0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min"), (60, "1 min"), (3540, "59 min"), (3599, "1 h"),
    (3600, "1 h"), (3700, "1 h 2 min"), (7200, "2 h"), (86399, "1 d"), (86400, "1 d"), (97200, "1 d 3 h"),
    (90000 + 1700, "1 d 1 h"), (10 * 86400 + 1, "10 d"), (-3, "0 s"),
])
def test_times_are_written_as_people_say_them(seconds, said):
    assert duration(seconds) == said


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    return now


def test_a_line_says_of_which_update_its_values_are(clock, capsys):
    bar = ProgressBar(1000, 0, shown=True)
    bar.note(1, VALUES)
    clock[0] = 40.0
    bar.advance(4)
    assert capsys.readouterr().out == ("update 4/1000  loss 1.2346  lr 0.1  321 images/s  waiting for data 25%  "
                                       "(at update 1)  2 h 46 min left\n")
    bar.note(5, VALUES)
    clock[0] = 50.0
    bar.advance(5)
    assert capsys.readouterr().out == ""
    clock[0] = 100.0
    bar.note(10, VALUES)
    bar.advance(10)
    assert "update 10/1000  loss" in (out := capsys.readouterr().out) and "at update" not in out


def test_what_was_done_before_a_resume_does_not_shorten_the_time_left(clock, capsys):
    bar = ProgressBar(1000, 900, shown=True)
    bar.note(901, VALUES)
    clock[0] = 60.0
    bar.advance(901)
    assert "1 h 39 min left" in capsys.readouterr().out


def test_a_short_pass_is_silent_and_a_long_one_speaks_now_and_then(clock, capsys):
    told = LongPass("features of 'train'", 1000, shown=True)
    for second in (0, 1, 1.9):
        clock[0] = second
        told.advance(10)
    assert capsys.readouterr().out == ""
    lines = []
    for second in range(2, 101):
        clock[0] = second
        told.advance(10 * second)
        lines += capsys.readouterr().out.splitlines()
    assert lines == ["features of 'train': 20 of 1000 images, 10 images/s, 2 min left",
                     "features of 'train': 320 of 1000 images, 10 images/s, 1 min left",
                     "features of 'train': 620 of 1000 images, 10 images/s, 38 s left",
                     "features of 'train': 920 of 1000 images, 10 images/s, 8 s left"]
    clock[0] = 1000
    LongPass("x", 10, shown=False).advance(5)
    told.advance(1000)
    assert capsys.readouterr().out == ""


def test_a_pass_of_few_slow_parts_says_that_it_is_alive(clock, capsys):
    told = LongPass("logistic", 6, shown=True, unit="fits")
    clock[0] = 3.0
    told.step()
    told.advance(2)
    clock[0] = 40.0
    told.step()
    assert capsys.readouterr().out.splitlines() == ["logistic: 0 of 6 fits", "logistic: 2 of 6 fits, 0.05 fits/s, "
                                                    "1 min left"]


def test_on_a_terminal_a_bar_shows_it_and_goes_away(clock, monkeypatch, capsys):
    monkeypatch.setattr(progress.sys.stdout, "isatty", lambda: True)
    shown = []
    monkeypatch.setattr(progress, "Progress", lambda *a, **k: FakeBar(shown))
    with pytest.raises(RuntimeError), LongPass("kNN", 100, shown=True) as told:
        told.advance(10)
        clock[0] = 5.0
        told.advance(50)
        raise RuntimeError
    assert shown == ["start", "kNN: 50 of 100 images, 10 images/s, 5 s left", "stop"]


class FakeBar:
    def __init__(self, shown):
        self.shown = shown

    def add_task(self, *args, **options):
        return 0

    def start(self):
        self.shown.append("start")

    def update(self, task, completed, description):
        self.shown.append(description)

    def stop(self):
        self.shown.append("stop")
