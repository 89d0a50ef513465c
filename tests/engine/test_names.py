"""Names that are no UTF-8, or hold line breaks: of images, folders and runs."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import tiny_recipe

from unlabeled.config.read import read_recipe
from unlabeled.data.sources.base import CorruptSample, with_reason
from unlabeled.data.sources.fingerprint import Names
from unlabeled.engine.restore import load_run
from unlabeled.engine.train import train

STRANGE = [b"\xff.png", b"a\nb.png", b"caf\xc3\xa9.png", b"\xe9t\xe9.png", b"tab\t.png", b"\xf0\x9f\x90\xb1.png"]


def test_a_run_on_strange_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.StringIO())  # as lenient as what cli.output makes
    data = tmp_path / "d\u00e4ta"
    data.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (24, 12, 12, 3), np.uint8)
    for number in range(24):
        name = os.fsdecode(STRANGE[number]) if number < len(STRANGE) else f"{number}.png"
        Image.fromarray(pixels[number]).save(data / name)
    (data / os.fsdecode(b"bad\xfe.png")).write_bytes(b"")
    run = tmp_path / os.fsdecode(b"run \xff")
    recipe = tiny_recipe("simclrv2", "plain", ["data.train.card=folder", f"data.train.root={data}", "eval.every=1"])
    assert train(recipe, run).finished
    assert read_recipe(run / "recipe.yaml").data.train.root == str(data)
    assert train(recipe, run).finished  # read again, and found to be the same
    assert load_run(run).update == 6
    assert [json.loads(line)["key"] for line in (run / "corrupt.jsonl").read_text().splitlines()] == ["bad\udcfe.png"]


@pytest.mark.parametrize("name", [b"caf\xc3\xa9.png", b"\xff.png", b"plain.png"])
def test_names_come_back_as_the_system_gave_them_in_any_locale(name: bytes) -> None:
    """An ascii locale reads all bytes beyond 127 as escapes, also those of names that are UTF-8."""
    for errors in ("utf-8", "ascii", "latin-1"):
        given = name.decode(errors, "surrogateescape")
        assert Names([given])[0] == given and given.encode(errors, "surrogateescape") == name


def test_a_reason_keeps_to_one_line() -> None:
    assert with_reason(CorruptSample("a\nb.png", "torn").key) == "a\\nb.png: torn"
