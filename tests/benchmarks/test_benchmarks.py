"""Every benchmark runs, at tiny size: what it prints is whole, and nothing is claimed of the numbers."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
NAMES = ["augment", "before_after", "data", "evaluation", "pixpro_share", "soak", "startup", "throughput"]


@pytest.fixture(autouse=True)
def threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_benchmark_runs(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "argv", [name, "--quick"])
    out = tmp_path / "result.md"
    assert import_module(f"benchmarks.{name}").main(["--quick", "--out", str(out)]) == 0
    text = out.read_text()
    assert capsys.readouterr().out.strip() == text.strip()
    assert text.startswith("# ") and "Question: " in text
    assert f"- Command: `python -m benchmarks.{name} --quick`" in text and "- Machine: " in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) >= 4 and any(": met" in row or ": missed" in row for row in rows)
    assert str(tmp_path) not in text and str(ROOT) not in text


def test_every_benchmark_is_told_of():
    readme = (ROOT / "benchmarks" / "README.md").read_text()
    for name in NAMES:
        assert f"python -m benchmarks.{name}" in readme


def test_turns_are_taken_and_every_second_round_runs_backwards():
    measure = import_module("benchmarks.measure")
    said: list[str] = []
    seconds = measure.take_turns({"a": lambda: said.append("a"), "b": lambda: said.append("b")}, 3,
                                 prepare=lambda name: said.append(name.upper()))
    assert {name: len(taken) for name, taken in seconds.items()} == {"a": 3, "b": 3}
    assert "".join(said) == "BbAa" + "AaBb" + "BbAa" + "AaBb"
    assert measure.ratio([2.0, 6.0, 4.0], [1.0, 1.0, 2.0]) == 2.0
    assert measure.bar(1.0, at_most=1.08) == "<= 1.08: met" and measure.bar(7.9, at_least=8) == ">= 8: missed"
