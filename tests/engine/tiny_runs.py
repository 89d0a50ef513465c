"""Tiny RotNet runs, what must be equal of two of them, and how earlier versions left them."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tests.tiny import tiny_recipe

from unlabeled.config.recipe import Recipe
from unlabeled.engine.restore import load_run
from unlabeled.engine.run.record import read_record

SHORT = ["train.checkpoint_every=2", "train.log_every=1"]


def rotnet(*more: str) -> Recipe:
    return tiny_recipe("rotnet", "all", [*SHORT, *more])


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_run(run).method.state_dict()


def assert_same(run: Path, finished: Path) -> None:
    assert (run / "DONE").exists()
    a, b = weights(run), weights(finished)
    assert all(torch.equal(a[name], b[name]) for name in b)
    lines = [json.loads(line)["update"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines == list(range(6))


def older(run: Path) -> None:
    """Make the folder one of a version that kept neither starts nor recipes with its checkpoints."""
    (run / "SAVED").unlink()
    record = read_record(run)
    (run / "run.json").write_text(json.dumps({**record["starts"][0], "info": record["info"]}))
    for file in (run / "checkpoints").glob("*.json"):
        about = json.loads(file.read_text())
        file.write_text(json.dumps({"update": about["update"], "sha256": about["sha256"]}))
