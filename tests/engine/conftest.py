"""A finished run, and one that was cut short."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.engine.tiny_runs import rotnet

from unlabeled.engine.train import train


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "finished"
    assert train(rotnet(), run).finished
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A run of six updates that ended after four."""
    cut = tmp_path / "run"
    shutil.copytree(finished, cut, ignore=shutil.ignore_patterns("DONE", "export", "update-00000006.*", "lock"))
    (cut / "SAVED").write_text("4\n")
    shutil.copy(cut / "checkpoints" / "update-00000004.pt", cut / "kept.pt")
    return cut
