"""Evaluation over several real processes."""

from pathlib import Path

import torch
from tests.evaluation.fakes import FakeRuns
from tests.processes import run_processes

from unlabeled.engine import features as features_module
from unlabeled.engine.features import Features, gather_features
from unlabeled.evaluation import evaluate as evaluate_module

CPU = torch.device("cpu")


def gathered(rank: int) -> tuple[list[int], list[float], list[str]]:
    """Runs in every process: rank r gives 2 r rows."""
    features_module._GATHERED = 3
    places = torch.arange(2 * rank) + rank * (rank - 1)
    x = places[:, None] * torch.ones(1, 2) if rank else torch.empty(0, 0)
    whole = gather_features(Features(x, places, places % 2, [f"bad-{rank}"]), CPU)
    return whole.index.tolist(), whole.x.sum(1).tolist(), whole.corrupt


def test_gathering_over_real_processes():
    results = run_processes(3, gathered)
    assert results[0] == (list(range(6)), [2.0 * i for i in range(6)], ["bad-0", "bad-1", "bad-2"])
    assert results[1][2] == results[0][2] and results[1][0] == [0, 1]


def in_a_process(rank: int, run: Path) -> list[float] | None:
    evaluate_module.load_run = FakeRuns("digits", run)
    report = evaluate_module.evaluate("knn", run, ["workers=0", "raw_pixels=false"])
    return None if report is None else [score["value"] for n in report.numbers for score in (n.network, n.random_init)]


def test_two_processes_give_the_numbers_of_one(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate_module, "load_run", evaluate_module.load_run)  # restored afterwards
    alone = in_a_process(0, tmp_path / "one")
    assert run_processes(2, in_a_process, tmp_path / "two") == [alone, None]
    assert (tmp_path / "two" / "eval" / "knn-update00000012.json").exists()
