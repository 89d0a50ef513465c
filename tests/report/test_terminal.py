"""Tables on terminals of any encoding and width, and in pipes: nothing is cut, nothing ends in an error."""

import io

import pytest
from rich.console import Console

from unlabeled.report.report import Number, Report, Split
from unlabeled.report.seeds import print_folds, print_seeds
from unlabeled.report.table import print_reports
from unlabeled.report.terminal import writable

NAME = "classifier-of-a-network-with-a-very-long-name-that-goes-on@.07"


def report(name: str = NAME, run: str = "runs/x", card: str = "digits", shared: int = 0) -> Report:
    score = {"value": 81.25, "deviation": 0.5, "details": {"draws": 20}}
    split = Split("train", 500, 0, 0)
    numbers, cautions = [Number(name, 10.0, score, score, score)], ["learnt by heart"] * (shared > 0)
    return Report("classify", {}, run, "finetune", "all", 1, 0, 0, card, 10, split, split, numbers, {}, shared=shared,
                  cautions=cautions)


def printed(encoding: str, width: int, terminal: bool, show, *arguments) -> str:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, write_through=True)
    console = Console(file=file, width=width, force_terminal=terminal, color_system=None, highlight=False)
    show(*arguments, console)
    return raw.getvalue().decode(encoding)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1", "cp1252"])
@pytest.mark.parametrize("width", [20, 40, 80, 200])
@pytest.mark.parametrize("terminal", [True, False])
def test_no_name_and_no_number_is_ever_cut(encoding, width, terminal):
    text = printed(encoding, width, terminal, print_reports, [report(shared=120)])
    deviation = "81.2 +- 0.5" if encoding == "ascii" else "81.2 ± 0.5"
    for part in (NAME, deviation, "raw pixels", "10.0", "500, 120 in train", "note: learnt by heart"):
        assert part in text
    assert text.count(deviation) == 3 and "…" not in text and "..." not in text
    text = printed(encoding, width, terminal, print_seeds, {NAME: [[report("a")], [report("a")]]}, "protocol")
    assert NAME in text and "95 % interval" in text and text.count(deviation.replace("0.5", "0.0")) == 3


def test_a_pipe_gets_one_line_per_row_and_a_narrow_terminal_the_titles_beside_the_values():
    wide = printed("utf-8", 80, False, print_reports, [report()])
    assert next(line for line in wide.splitlines() if NAME in line).count("81.2 ± 0.5") == 3
    narrow = printed("utf-8", 80, True, print_reports, [report()])
    assert f"{NAME}: pretrained 81.2 ± 0.5, random init 81.2 ± 0.5, raw pixels 81.2 ± 0.5, chance 10.0" in narrow
    assert "accuracy, %" in narrow
    roomy = printed("utf-8", 200, True, print_reports, [report()])
    assert "│" in roomy and "│" not in narrow


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_names_are_taken_as_they_are_and_stay_on_one_line(encoding):
    odd = "runs/[red]x[/red]\n\x1b[2Jb\udcff ü"
    text = printed(encoding, 200, False, print_reports, [report("[b]1[/b]", run=odd, card=odd)])
    assert "[b]1[/b]" in text and "\x1b" not in text
    last = "ü" if encoding == "utf-8" else "\\xfc"
    assert text.count(f"runs/[red]x[/red]\\n\\x1b[2Jb\\udcff {last}") == 2


def test_what_an_encoding_holds_is_left_alone():
    assert writable("ü ± €", "utf-8") == "ü ± €"
    assert writable("ü ± €", "latin-1") == "ü ± \\u20ac"
    assert writable("ü ± €", "ascii") == "\\xfc +- \\u20ac"


def test_every_line_break_is_written_as_its_number():
    breaks = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
    assert len(writable(f"a{breaks}b", "utf-8").splitlines()) == 1


def test_folds_have_a_row_each_and_their_plain_mean():
    folds = []
    for fold, value, chance in (("a", 50.0, 9.0), ("b", 60.0, 10.0), ("c", 73.0, 11.0)):
        number = Number("linear", chance, {"value": value}, None, None)
        train, test = Split(f"train-{fold}", 5, 0, 0), Split(f"val-{fold}", 5, 0, 0)
        folds.append(Report("classify", {}, "x", "finetune", "all", 1, 0, 0, "own", 10, train, test, [number], {}))
    lines = printed("utf-8", 120, False, print_folds, folds).splitlines()
    rows = {line.split("│")[1].strip(): line for line in lines if "linear" in line}
    assert list(rows) == ["train-a, val-a", "train-b, val-b", "train-c, val-c", "mean of 3"]
    assert "60.0" in rows["train-b, val-b"] and "61.0" in rows["mean of 3"] and "10.0" in rows["mean of 3"]
    assert "±" not in "".join(lines)
