"""`train.compile` where there is no compiler."""

from __future__ import annotations

import pytest
import torch
from tiny import differing, snapshot, tiny_recipe, tiny_run

from unlabeled.augment import photometric
from unlabeled.engine import launch


@pytest.fixture(autouse=True)
def as_before():
    yield
    photometric.compile_operations(False)
    torch.compiler.set_stance("default")


def test_a_run_goes_on_without_it_and_says_so_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(launch, "compiler_problem", lambda device: "No working C++ compiler found")
    states = []
    for overrides in ([], ["train.compile=true"]):
        tiny = tiny_run(tiny_recipe("simclrv2", "colour", overrides))
        tiny.train(0, 2)
        states.append(snapshot(tiny))
    assert differing(*states) == []
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "train.compile: going on without it, torch.compile does not work here: No working C++ compiler found"
    ]
