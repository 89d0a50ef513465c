"""Tests of `unlabeled pretrain` after its last update."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import TINY

from unlabeled.cli.main import main


def test_a_protocol_that_cannot_be_run_at_the_end_is_told_apart_from_the_training(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    protocol = tmp_path / "near.yaml"
    protocol.write_text("protocol: knn\nk: [5000]\n")
    recipe, own = TINY["rotnet"]["all"]
    words = [recipe, *own, "backbone.width=0.125", "train.epochs=null", "train.updates=1", "optim.warmup_epochs=0",
             "eval.every=0", f"eval.at_end=['{protocol}']", f"run={tmp_path / 'run'}"]
    assert main(["pretrain", *words]) == 2
    out = capsys.readouterr()
    assert "k is 5000" in out.err and (tmp_path / "run" / "DONE").exists()
    assert f"The training itself is finished and kept in {tmp_path / 'run'}: 'unlabeled evaluate PROTOCOL" in out.err
