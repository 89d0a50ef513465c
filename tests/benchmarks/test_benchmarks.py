"""Every benchmark runs, at tiny size: what it prints is whole, and nothing is claimed of the numbers."""

from __future__ import annotations

import json
import re
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
NAMES = ["augment", "before_after", "data", "elastic", "evaluation", "kills", "passes", "pixpro_share", "poa",
         "records", "relabel", "relabel_share", "scale", "soak", "startup", "throughput", "video",
         "video_layout"]  # fmt: skip


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


@pytest.mark.slow
def test_a_day_on_a_gpu_keeps_its_results_and_fails_with_its_tests(tmp_path, monkeypatch, capsys):
    day = import_module("benchmarks.gpu_day")
    assert day.main(["part=speeed"]) == 2 and "settings are part=tests" in capsys.readouterr().err
    assert day.main(["quick=true", f"out={tmp_path}"]) == 0, capsys.readouterr().out
    text = (tmp_path / "gpu.md").read_text()
    assert capsys.readouterr().out.strip() == text.strip() and str(tmp_path) not in text and str(ROOT) not in text
    parts = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in ("tests", "speed", "train")}
    assert all(part["good"] for part in parts.values())
    assert ["tests passed", "2", "all: met"] in parts["tests"]["rows"]
    assert any(row[0] == "32 px, end to end" for row in parts["speed"]["rows"])
    assert re.search(r"\| train \| knn20@.07 \| [\d.]+, untrained [\d.]+, pixels [\d.]+, chance [\d.]+ % \|", text)
    monkeypatch.setitem(day.PARTS, "speed", lambda day, result: day.run(result, ["-c", "while True: pass"], "log", 0.5))
    assert day.main(["part=speed", f"out={tmp_path}"]) == 1, "what hangs is ended, and said"
    assert "| speed | log | ended after 1 s | missed |" in capsys.readouterr().out
    said = "tests/gpu/a.py::b[x y] PASSED [ 1%]\n[gw0] [ 2%] FAILED tests/gpu/a.py::c \ntests/gpu/a.py::d SKIPPED (no)"
    assert day.outcomes(said) == {"tests/gpu/a.py::b[x y]": "PASSED", "tests/gpu/a.py::c": "FAILED",
                                  "tests/gpu/a.py::d": "SKIPPED"}
