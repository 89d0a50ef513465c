"""The planted mistakes fit the code, and those that tests notice are told from those that they do not."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest
from benchmarks.mutants import LISTS, PACKAGE, ROOT, Mistake, Trial, Workshop, areas, file_of, read, report

MISTAKES = [mistake for file in sorted(LISTS.glob("*.yaml")) for mistake in read(file)]


def test_every_mistake_is_one_and_its_tests_are_there() -> None:
    wrong = []
    for mistake in MISTAKES:
        before = (ROOT / PACKAGE / mistake.file).read_text("utf-8")
        try:
            if ast.parse(mistake.planted(ROOT)) and mistake.planted(ROOT) == before:
                wrong.append(f"{mistake.area}: nothing changes: {mistake.title}")
        except (ValueError, SyntaxError) as error:
            wrong.append(f"{mistake.area}: {mistake.title}: {error}")
        wrong += [f"{mistake.area}: no test {test}" for test in mistake.tests if not _is_there(test)]
    assert not wrong, "\n".join(wrong)
    assert len({(m.file, m.old, m.new) for m in MISTAKES}) == len(MISTAKES) >= 150


def _is_there(test: str) -> bool:
    function = test.partition("::")[2]
    return (ROOT / file_of(test)).is_file() and f"def {function}" in (ROOT / file_of(test)).read_text("utf-8")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project of two functions, one of them without a test."""
    (tmp_path / PACKAGE).mkdir(parents=True)
    (tmp_path / "tests").mkdir()
    (tmp_path / PACKAGE / "toy.py").write_text("def half(x):\n    return x / 2\n\n\ndef twice(x):\n    return 2 * x\n")
    (tmp_path / "tests" / "test_toy.py").write_text(
        "import importlib.util, pathlib\n"
        "spec = importlib.util.spec_from_file_location('toy', pathlib.Path.cwd() / 'ssl/unlabeled/toy.py')\n"
        "toy = importlib.util.module_from_spec(spec)\nspec.loader.exec_module(toy)\n\n\n"
        "def test_half():\n    assert toy.half(4) == 2\n")
    return tmp_path


def planted(old: str, new: str) -> Mistake:
    return Mistake("toys", Path("toy.py"), old, new, ("tests/test_toy.py",))


def workshop(project: Path, **more: object) -> Workshop:
    return Workshop(project, project / "found.jsonl", libraries=(), say=lambda line: None, **more)


def test_mistakes_are_caught_survive_hang_and_are_found_again(project: Path, capsys: pytest.CaptureFixture) -> None:
    mistakes = [planted("x / 2", "x // 3"), planted("2 * x", "3 * x"), planted("x / 2", "[][0]"),
                planted("    return x / 2", "    while True: pass")]
    sound = (project / PACKAGE / "toy.py").read_text()
    found = workshop(project, jobs=2, limit=12.0).run(mistakes)
    assert [trial.outcome for _, trial in found] == ["caught", "survived", "caught", "hung"]
    assert [trial.by for _, trial in found] == ["tests/test_toy.py::test_half", "", "tests/test_toy.py::test_half", ""]
    assert (project / PACKAGE / "toy.py").read_text() == sound
    lines = (project / "found.jsonl").read_text()
    again = workshop(project)
    assert [trial.outcome for _, trial in again.run(mistakes)] == [trial.outcome for _, trial in found]
    assert (project / "found.jsonl").read_text() == lines, "nothing was tried again"
    (project / "tests" / "test_toy.py").write_text((project / "tests" / "test_toy.py").read_text()
                                                   + "\n\ndef test_twice():\n    assert toy.twice(2) == 4\n")
    ((_, trial),) = workshop(project).run(mistakes[1:2])
    assert (trial.outcome, trial.by) == ("caught", "tests/test_toy.py::test_twice"), "its tests have changed"
    assert report(found, None) == 1
    printed = capsys.readouterr().out
    assert "| all | 4 | 3 | 1 |" in printed and "`toy.py: 2 * x -> 3 * x` | no test notices" in printed


def test_what_does_not_fit_and_tests_that_fail_anyway_are_errors(project: Path) -> None:
    with pytest.raises(ValueError, match=r"toys.yaml: 'return' stands 2 times in toy.py, not once"):
        workshop(project).run([planted("return", "yield")])
    (project / "tests" / "test_toy.py").write_text("def test_half():\n    assert False\n")
    with pytest.raises(ValueError, match=r"tests fail where nothing is wrong: tests/test_toy.py::test_half"):
        workshop(project).run([planted("x / 2", "x / 3")])


def test_words_choose_tests_of_a_file(project: Path) -> None:
    (project / "tests" / "test_toy.py").write_text((project / "tests" / "test_toy.py").read_text()
                                                   + "\n\ndef test_twice_of_one():\n    assert toy.twice(1) == 2\n")
    found = []
    for words in ("", " (half)", " (one twice)"):
        (project / "found.jsonl").unlink(missing_ok=True)
        tests = (f"tests/test_toy.py{words}",)
        found += workshop(project).run([Mistake("toys", Path("toy.py"), "2 * x", "3 * x", tests)])
    assert [trial.outcome for _, trial in found] == ["caught", "survived", "caught"]


def test_areas_are_lists_and_a_survivor_below_the_bar_is_allowed(capsys: pytest.CaptureFixture) -> None:
    assert areas([], sys.exit) == sorted({mistake.area for mistake in MISTAKES})
    assert areas(["area=ema,curves"], sys.exit) == ["ema", "curves"]
    with pytest.raises(SystemExit, match="no area 'loses'; there are"):
        areas(["area=loses"], sys.exit)
    many = [(planted("2", str(n)), Trial(str(n), "", "survived" if n == 0 else "caught")) for n in range(30)]
    assert report(many, None) == 0 and "Caught: 96.7 %" in capsys.readouterr().out
