"""Tests of runs that go on in another number of processes: the same batches, and the same losses but for rounding."""

from __future__ import annotations

import itertools
import json
import signal
from pathlib import Path

import numpy as np
import pytest
from processes import run_processes
from tiny import TINY, tiny_recipe

from unlabeled.config.recipe import Recipe
from unlabeled.engine import train as module
from unlabeled.engine.run.record import read_record
from unlabeled.engine.train import train
from unlabeled.engine.updater import Updater
from unlabeled.errors import UserError

# learning rates at which rounding is not another run within a few updates; gradients of the tiny CVRL are large
METHODS = {"simclrv2": 1e-3, "simmatchv2": 1e-3, "poa": 1e-5, "cvrl": 1e-8}
UPDATES = 5
LEGS = ((1, 1), (2, 2), (4, 3), (1, UPDATES))  # processes, and the update after which they are told to leave


def recipe_of(method: str, *more: str) -> Recipe:
    length = [f"optim.lr.base={METHODS[method]}", "train.epochs=null", f"train.updates={UPDATES}", "train.log_every=1"]
    return tiny_recipe(method, next(iter(TINY[method])),
                       [*length, "train.precision=fp32", "eval.every=0", "eval.at_end=[]", *more])


def train_until(rank: int, recipe: Recipe, run: Path, stop: int) -> list[list[int]]:
    """Train up to `stop` updates, then leave as at TERM; return this process's samples of every update."""
    places: list[list[int]] = []
    update = Updater.update

    def counted(self, number, micros, notes, **options):
        clock = type(self.method).clock
        places.append([index for micro in micros for index in micro[clock].index.tolist()])
        if number + 1 == stop < UPDATES:
            notes = [signal.SIGTERM, *notes[1:]]  # as if it had come in time for this update
        return update(self, number, micros, notes, **options)

    Updater.update = counted
    try:
        result = train(recipe, run)
    finally:
        Updater.update = update
    assert result.update == stop
    return places


def losses(run: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["update"]: line["loss"] for line in lines if "loss" in line}


@pytest.mark.parametrize("method", METHODS)
def test_a_run_goes_on_in_one_two_four_and_one_process(tmp_path: Path, method: str) -> None:
    recipe = recipe_of(method, "train.blocks=4") if method == "poa" else recipe_of(method)
    whole = run_processes(1, train_until, recipe, tmp_path / "whole", UPDATES)[0]
    run, samples = tmp_path / "run", []
    for processes, stop in LEGS:
        leg = recipe if processes == 1 and not samples else recipe.model_copy(
            update={"train": recipe.train.model_copy(update={"allow_rescale": True})})
        parts = run_processes(processes, train_until, leg, run, stop)
        samples += [list(itertools.chain(*update)) for update in zip(*parts, strict=True)]
    assert samples == whole
    one, many = losses(tmp_path / "whole"), losses(run)
    assert sorted(one) == sorted(many) == list(range(UPDATES))
    np.testing.assert_allclose([many[k] for k in range(UPDATES)], [one[k] for k in range(UPDATES)], rtol=1e-3)
    starts = read_record(run)["starts"]
    assert [start["processes"] for start in starts] == [1, 2, 4, 1]
    assert all("equal but for rounding" in start["notes"][0] for start in starts[1:])


def test_another_number_of_processes_is_refused_unless_it_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of("simclrv2")
    run_processes(1, train_until, recipe, tmp_path, 2)
    record = json.loads((tmp_path / "run.json").read_text())
    record["starts"][-1]["processes"] = 8
    (tmp_path / "run.json").write_text(json.dumps(record))
    metrics = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"was trained by 8 processes, and now there is 1: start it with 8, or go on "
                                        r"with train\.allow_rescale=true"):
        module.train(recipe, tmp_path)
    assert (tmp_path / "metrics.jsonl").read_bytes() == metrics
