"""A set of millions of samples that is nothing but indexes: opened by mapping, in the same order at every start."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from benchmarks.scale import first_batch, make_set

from unlabeled.config.card import Card
from unlabeled.config.read import read_file
from unlabeled.data.sources.open import open_source

SAMPLES = 3_000_000


@pytest.mark.slow
def test_three_million_samples_are_opened_without_holding_them(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), "ssl", "."]))
    card = make_set(tmp_path, SAMPLES, 300)
    runs = [first_batch(f"data.train={{card: {card}, batch: 64}}") for _ in range(2)]
    assert (tmp_path / "simulated-train.index").stat().st_size < 45 * SAMPLES
    assert runs[0]["data"] == runs[1]["data"] and runs[0]["data"]["n"] == runs[0]["samples"] == SAMPLES
    assert runs[0]["index"] == runs[1]["index"] and len(set(runs[0]["index"])) == 64
    own = runs[1]["opened"]["anonymous"] - runs[1]["before"]["anonymous"]
    assert own < 60, "keys, places and labels of all samples are 126 MB"
    source = open_source(read_file(Path(card), Card), "train")
    assert source.key(2_345_678) == "0002345678" and source.labels[2_345_678] == 678
    assert source.image(SAMPLES - 1).shape == (96, 96, 3)
