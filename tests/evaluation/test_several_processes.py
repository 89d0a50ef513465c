"""Evaluation over several real processes."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from tests.evaluation.fakes import FakeRuns, Noise, Projection
from tests.processes import run_processes

from unlabeled.augment.geometry import EvalCrop
from unlabeled.config.read import read_recipe
from unlabeled.engine.passes import features as features_module
from unlabeled.engine.passes.features import Embedder, Features, extract, gather_features
from unlabeled.engine.passes.kept_features import LIMIT
from unlabeled.engine.train import train
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


def failing(rank: int) -> str:
    """One process cannot go on: the others must not wait for it for ever."""

    def embed(crops: torch.Tensor) -> torch.Tensor:
        if rank == 1:
            raise RuntimeError("no memory")
        return crops.float().flatten(1)

    try:
        extract({"x": Embedder((EvalCrop(8),), embed)}, Noise(20), batch=4, workers=0, device=CPU, max_corrupt=0)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def test_what_one_process_cannot_read_ends_the_extraction_in_all():
    assert run_processes(2, failing) == ["UserError: another process could not do its part; it says why",
                                         "RuntimeError: no memory"]


def in_a_process(rank: int, run: Path, cache: Path) -> tuple[list[float] | None, int]:
    """Return the numbers, computed anew, and how many images the networks are asked for where features are kept."""
    os.environ.update({"XDG_CACHE_HOME": str(cache), LIMIT: "1"})  # children have the environment of an earlier test
    evaluate_module.load_run = FakeRuns("digits", run)
    settings = ["workers=0", "raw_pixels=false", "precision=fp32"]
    report = evaluate_module.evaluate("knn", run, [*settings, "keep_features=false"])
    real, asked = Projection.forward, []
    Projection.forward = lambda self, x: asked.append(len(x)) or real(self, x)
    try:
        again = evaluate_module.evaluate("knn", run, settings)
    finally:
        Projection.forward = real
    if report is None or again is None:
        return None, sum(asked)
    assert again.numbers == report.numbers
    return [score["value"] for n in report.numbers for score in (n.network, n.random_init)], sum(asked)


def test_two_processes_give_the_numbers_of_one_and_find_its_features_again(tmp_path, own_cache, monkeypatch):
    monkeypatch.setenv(LIMIT, "1")  # restored afterwards, as is the next
    monkeypatch.setattr(evaluate_module, "load_run", evaluate_module.load_run)
    alone, asked = in_a_process(0, tmp_path / "one", own_cache)
    assert asked == 2 * (1297 + 500 + 2)
    assert run_processes(2, in_a_process, tmp_path / "two", own_cache) == [(alone, 0), (None, 0)]
    assert (tmp_path / "two" / "eval" / "knn-precision=fp32-update00000012.json").exists()


GRID = ["method.lr=[0.1, 1.0]", "data.epoch_samples=320", "held_out=0.2"]


def trained_in_a_process(rank: int, run: Path, protocol: str, more: list[str]) -> float | None:
    settings = ["workers=0", "data.batch=64", "epochs=4", "random_init=false", "method.crop={area: [0.6, 1.0]}"]
    report = evaluate_module.evaluate(protocol, run, [*settings, *more])
    return None if report is None else report["linear"].network["value"]


@pytest.mark.parametrize("protocol, more", [("linear-sgd", []), ("linear-grid", GRID)])
def test_a_protocol_that_trains_gives_the_number_of_one_process(tmp_path, protocol, more):
    small = ["backbone.width=0.125", "train.epochs=null", "train.updates=30", "data.train.batch=16", "eval.every=0",
             "eval.at_end=[]", "optim.warmup_epochs=0", "optim.lr.base=0.01"]
    run = tmp_path / "run"
    assert train(read_recipe("demo/simclrv2", small), run).finished
    shutil.copytree(run, tmp_path / "two")
    alone = trained_in_a_process(0, run, protocol, more)
    first, second = run_processes(2, trained_in_a_process, tmp_path / "two", protocol, more)
    assert second is None and alone is not None and abs(first - alone) <= 1.0  # sums in another order
